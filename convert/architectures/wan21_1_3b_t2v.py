"""Wan 2.1 1.3B, text to video. Names and shapes: Wan-AI's checkpoint and Diffusers' WanTransformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .wan import WAN_BLOCK, WAN_ENDS, WAN_METADATA, WAN_TEXT_ENCODER

WAN21_1_3B_T2V = Architecture(
    id="wan21-1.3b-t2v",
    name="Wan 2.1 1.3B (text to video)",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", WAN_ENDS),
                Group("blocks.{0-29}", "blocks.{0-29}", WAN_BLOCK),
            ),
            sizes={"width": 1536, "mlp": 8960, "latent": 16, "patch": 64},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        WAN_TEXT_ENCODER,
    ),
    metadata=WAN_METADATA,
)
