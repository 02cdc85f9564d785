"""Stable Diffusion 3.5 large and large turbo. Names and shapes: sd3.5_large and Diffusers' SD3Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import FLAT_DIT_PREFIXES
from .sd3 import SD3_BLOCK, SD3_CONTEXT, SD3_ENDS, SD3_LAST, SD3_MODULATION, SD3_TEXT_ENCODERS, SD35_NORMS

SD35_LARGE = Architecture(
    id="sd35-large",
    name="Stable Diffusion 3.5 large",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", SD3_ENDS),
                Group("joint_blocks.{0-37}", "transformer_blocks.{0-37}", SD3_BLOCK),
                Group("joint_blocks.{0-37}", "transformer_blocks.{0-37}", SD35_NORMS),
                Group("joint_blocks.{0-37}", "transformer_blocks.{0-37}", SD3_MODULATION),
                Group("joint_blocks.{0-36}", "transformer_blocks.{0-36}", SD3_CONTEXT),
                Group("joint_blocks.37", "transformer_blocks.37", SD3_LAST),
            ),
            sizes={"width": 2432},
            prefixes=FLAT_DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        *SD3_TEXT_ENCODERS,
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "5-large",
        "modelspec.architecture": "stable-diffusion-3-5-large/lora",
    },
    hints={
        "ss_base_model_version": ("5-large",),
        "modelspec.architecture": ("stable-diffusion-3-5-large",),
    },
)
