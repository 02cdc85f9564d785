"""ERNIE-Image as released, 8 billion parameters. Sizes: the ones that ComfyUI's model has built in."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .ernie_rows import ERNIE_36

ERNIE_IMAGE_8B = Architecture(
    id="ernie-image-8b",
    name="ERNIE-Image 8B",
    components=(
        Component(
            "denoiser",
            groups=ERNIE_36,
            sizes={"width": 4096, "mlp": 12288, "context": 3072},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "ernie_image", "modelspec.architecture": "Ernie/lora"},
)
