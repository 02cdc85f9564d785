"""CogView3-Plus. Names and shapes: Diffusers' CogView3PlusTransformer2DModel; LoRA files know no other names."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .cogview import COGVIEW, COGVIEW_SIZES

COGVIEW3PLUS = Architecture(
    id="cogview3plus",
    name="CogView3-Plus",
    kin="cogview4",
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
    metadata={"ss_base_model_version": "cogview3plus"},
    hints={"ss_base_model_version": ("cogview3plus",)},
)
