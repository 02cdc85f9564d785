"""FLUX.2 dev. Names and shapes: Black Forest Labs' model and Diffusers' Flux2Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .flux2 import FLUX2_DOUBLE, FLUX2_ENDS, FLUX2_NAMINGS, FLUX2_SINGLE
from .flux_blocks import EMBEDDER
from .text_encoders import MISTRAL3_24B, MISTRAL3_24B_SIZES

FLUX2_DEV = Architecture(
    id="flux2-dev",
    name="FLUX.2 dev",
    components=(
        Component(
            "denoiser",
            groups=(
                *FLUX2_ENDS,
                Group("guidance_in", "time_guidance_embed.guidance_embedder", EMBEDDER, {"in": 256}),
                Group("double_blocks.{0-7}", "transformer_blocks.{0-7}", FLUX2_DOUBLE),
                Group("single_blocks.{0-47}", "single_transformer_blocks.{0-47}", FLUX2_SINGLE),
            ),
            sizes={"width": 6144, "latent": 128, "context": 15360},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "mistral3_24b",
            groups=MISTRAL3_24B,
            sizes=MISTRAL3_24B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.mistral3_24b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.mistral3_24b.transformer",),
            folder="text_encoder",
        ),
    ),
    namings=FLUX2_NAMINGS,
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "flux_2_dev",
        "modelspec.architecture": "Flux.2-dev/lora",
    },
    hints={
        "ss_base_model_version": ("flux_2_dev",),
        "modelspec.architecture": ("Flux.2-dev",),
    },
)
