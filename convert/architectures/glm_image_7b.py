"""GLM-Image as released, 7 billion parameters. Sizes: the released configuration (32 heads of 128)."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .glm_rows import GLM_30

GLM_IMAGE_7B = Architecture(
    id="glm-image-7b",
    name="GLM-Image 7B",
    components=(
        Component(
            "denoiser",
            groups=GLM_30,
            sizes={"width": 4096, "time": 512},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
)
