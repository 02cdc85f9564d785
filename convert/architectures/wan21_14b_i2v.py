"""Wan 14B, image to video: Wan 2.1, and both experts of Wan 2.2 A14B, which has no image attention and embedder.

Names and shapes: Wan-AI's checkpoint and Diffusers' WanTransformer3DModel.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .wan import (
    WAN_BLOCK,
    WAN_ENDS,
    WAN_IMAGE_BLOCK,
    WAN_IMAGE_ENDS,
    WAN_METADATA,
    WAN_TEXT_ENCODER,
)

WAN21_14B_I2V = Architecture(
    id="wan21-14b-i2v",
    name="Wan 2.1 / 2.2 14B (image to video)",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*WAN_ENDS, *WAN_IMAGE_ENDS)),
                Group("blocks.{0-39}", "blocks.{0-39}", (*WAN_BLOCK, *WAN_IMAGE_BLOCK)),
            ),
            sizes={"width": 5120, "mlp": 13824, "latent": 36, "patch": 64},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        WAN_TEXT_ENCODER,
    ),
    metadata=WAN_METADATA,
)
