"""CogView4. Names and shapes: Diffusers' CogView4Transformer2DModel; LoRA files know no other names."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .cogview import COGVIEW, COGVIEW_SIZES

COGVIEW4 = Architecture(
    id="cogview4",
    name="CogView4",
    components=(
        Component(
            "denoiser",
            groups=COGVIEW,
            sizes=COGVIEW_SIZES,
            prefixes=DIT_PREFIXES,
            folder="transformer",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={"ss_base_model_version": "cogview4"},
    hints={"ss_base_model_version": ("cogview4",)},
)
