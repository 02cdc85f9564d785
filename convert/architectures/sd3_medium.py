"""Stable Diffusion 3 medium. Names and shapes: the sd3_medium checkpoint and Diffusers' SD3Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import FLAT_DIT_PREFIXES
from .sd3 import SD3_BLOCK, SD3_CONTEXT, SD3_ENDS, SD3_LAST, SD3_MODULATION, SD3_TEXT_ENCODERS

SD3_MEDIUM = Architecture(
    id="sd3-medium",
    name="Stable Diffusion 3 medium",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", SD3_ENDS),
                Group("joint_blocks.{0-23}", "transformer_blocks.{0-23}", SD3_BLOCK),
                Group("joint_blocks.{0-23}", "transformer_blocks.{0-23}", SD3_MODULATION),
                Group("joint_blocks.{0-22}", "transformer_blocks.{0-22}", SD3_CONTEXT),
                Group("joint_blocks.23", "transformer_blocks.23", SD3_LAST),
            ),
            sizes={"width": 1536},
            prefixes=FLAT_DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        *SD3_TEXT_ENCODERS,
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "medium",
        "modelspec.architecture": "stable-diffusion-3-medium/lora",
    },
    hints={
        "ss_base_model_version": ("medium",),
        "modelspec.architecture": ("stable-diffusion-3-medium", "stable-diffusion-v3-medium"),
    },
)
