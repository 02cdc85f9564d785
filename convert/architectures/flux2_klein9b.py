"""FLUX.2 klein 9B. Names and shapes: Black Forest Labs' model and Diffusers' Flux2Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .flux2 import FLUX2_DOUBLE, FLUX2_ENDS, FLUX2_NAMINGS, FLUX2_SINGLE
from .text_encoders import QWEN3_8B, QWEN3_8B_SIZES

FLUX2_KLEIN9B = Architecture(
    id="flux2-klein9b",
    name="FLUX.2 klein 9B",
    components=(
        Component(
            "denoiser",
            groups=(
                *FLUX2_ENDS,
                Group("double_blocks.{0-7}", "transformer_blocks.{0-7}", FLUX2_DOUBLE),
                Group("single_blocks.{0-23}", "single_transformer_blocks.{0-23}", FLUX2_SINGLE),
            ),
            sizes={"width": 4096, "latent": 128, "context": 12288},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen3_8b",
            groups=QWEN3_8B,
            sizes=QWEN3_8B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen3_8b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen3_8b.transformer",),
            folder="text_encoder",
        ),
    ),
    namings=FLUX2_NAMINGS,
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "flux_2_klein_9b",
        "modelspec.architecture": "Flux.2-klein-9b/lora",
    },
    hints={
        "ss_base_model_version": ("flux_2_klein_9b", "flux2_klein_9b"),
        "modelspec.architecture": ("Flux.2-klein-9b",),
    },
)
