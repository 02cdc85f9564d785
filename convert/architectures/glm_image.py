"""GLM-Image in the size of Diffusers' default configuration."""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .glm_rows import GLM_30

GLM_IMAGE = Architecture(
    id="glm-image",
    name="GLM-Image",
    kin="cogview4",
    components=(
        Component(
            "denoiser",
            groups=GLM_30,
            sizes={"width": 2560, "time": 512},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
)
