"""Stable Diffusion 3.5 medium. Names and shapes: the sd3.5_medium checkpoint and Diffusers' SD3Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import FLAT_DIT_PREFIXES
from .sd3 import SD3_BLOCK, SD3_CONTEXT, SD3_ENDS, SD3_LAST, SD3_MODULATION, SD3_TEXT_ENCODERS, SD35_DUAL, SD35_NORMS

SD35_MEDIUM = Architecture(
    id="sd35-medium",
    name="Stable Diffusion 3.5 medium",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", SD3_ENDS),
                Group("joint_blocks.{0-23}", "transformer_blocks.{0-23}", SD3_BLOCK),
                Group("joint_blocks.{0-23}", "transformer_blocks.{0-23}", SD35_NORMS),
                Group("joint_blocks.{0-12}", "transformer_blocks.{0-12}", SD35_DUAL),
                Group("joint_blocks.{13-23}", "transformer_blocks.{13-23}", SD3_MODULATION),
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
        "ss_base_model_version": "5-medium",
        "modelspec.architecture": "stable-diffusion-3-5-medium/lora",
    },
    hints={
        "ss_base_model_version": ("5-medium",),
        "modelspec.architecture": ("stable-diffusion-3-5-medium",),
    },
)
