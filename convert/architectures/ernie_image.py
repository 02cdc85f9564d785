"""ERNIE-Image in the size of Diffusers' default configuration."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .ernie_rows import ERNIE_24

ERNIE_IMAGE = Architecture(
    id="ernie-image",
    name="ERNIE-Image",
    components=(
        Component(
            "denoiser",
            groups=ERNIE_24,
            sizes={"width": 3072, "mlp": 8192, "context": 2560},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "ernie_image", "modelspec.architecture": "Ernie/lora"},
    hints={"ss_base_model_version": ("ernie_image",), "modelspec.architecture": ("Ernie",)},
)
