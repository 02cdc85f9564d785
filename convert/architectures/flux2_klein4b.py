"""FLUX.2 klein 4B. Names and shapes: Black Forest Labs' model and Diffusers' Flux2Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .flux2 import FLUX2_DOUBLE, FLUX2_ENDS, FLUX2_NAMINGS, FLUX2_SINGLE
from .text_encoders import QWEN3_4B, QWEN3_4B_SIZES

FLUX2_KLEIN4B = Architecture(
    id="flux2-klein4b",
    name="FLUX.2 klein 4B",
    components=(
        Component(
            "denoiser",
            groups=(
                *FLUX2_ENDS,
                Group("double_blocks.{0-4}", "transformer_blocks.{0-4}", FLUX2_DOUBLE),
                Group("single_blocks.{0-19}", "single_transformer_blocks.{0-19}", FLUX2_SINGLE),
            ),
            sizes={"width": 3072, "latent": 128, "context": 7680},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen3_4b",
            groups=QWEN3_4B,
            sizes=QWEN3_4B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen3_4b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen3_4b.transformer",),
            folder="text_encoder",
        ),
    ),
    namings=FLUX2_NAMINGS,
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "flux_2_klein_4b",
        "modelspec.architecture": "Flux.2-klein-4b/lora",
    },
    hints={
        "ss_base_model_version": ("flux_2_klein_4b", "flux2_klein_4b"),
        "modelspec.architecture": ("Flux.2-klein-4b",),
    },
)
