"""Wan 2.2 TI2V 5B. Names and shapes: Wan-AI's checkpoint and Diffusers' WanTransformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .wan import WAN_BLOCK, WAN_ENDS, WAN_METADATA, WAN_TEXT_ENCODER

WAN22_5B = Architecture(
    id="wan22-5b",
    name="Wan 2.2 5B (text and image to video)",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", WAN_ENDS),
                Group("blocks.{0-29}", "blocks.{0-29}", WAN_BLOCK),
            ),
            sizes={"width": 3072, "mlp": 14336, "latent": 48, "patch": 192},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        WAN_TEXT_ENCODER,
    ),
    metadata=WAN_METADATA,
    hints={"ss_base_model_version": ("wan_2.2_5b",)},
)
