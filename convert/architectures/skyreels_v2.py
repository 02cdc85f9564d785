"""SkyReels V2: Wan's body. Names: Skywork's checkpoints (Wan's names) and Diffusers' SkyReelsV2Transformer3DModel.

The shapes are those of Diffusers' class as configured by default. The released 1.3B and 14B models have the shapes of
Wan 2.1 in these sizes, so that their adapters are Wan's.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .wan import WAN_BLOCK, WAN_ENDS, WAN_TEXT_ENCODER

SKYREELS_V2 = Architecture(
    id="skyreels-v2",
    name="SkyReels V2",
    kin="wan21-14b-t2v",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", WAN_ENDS),
                Group("blocks.{0-31}", "blocks.{0-31}", WAN_BLOCK),
            ),
            sizes={"width": 2048, "mlp": 8192, "latent": 16, "patch": 64},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        WAN_TEXT_ENCODER,
    ),
)
