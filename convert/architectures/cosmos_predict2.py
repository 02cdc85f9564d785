"""Cosmos-Predict2 2B, text to image. Names and shapes: NVIDIA's checkpoint and Diffusers' CosmosTransformer3DModel.

Anima has the same body. An adapter of the body alone fits both, unless its metadata name Anima.
"""

from __future__ import annotations

from ..model import Architecture, Component
from .blocks import DIT_PREFIXES
from .cosmos import COSMOS_2B, COSMOS_2B_SIZES

COSMOS_PREDICT2 = Architecture(
    id="cosmos-predict2",
    name="Cosmos-Predict2 2B",
    components=(
        Component(
            "denoiser",
            groups=COSMOS_2B,
            sizes=COSMOS_2B_SIZES,
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model", "net"),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "cosmos_predict2"},
    hints={"ss_base_model_version": ("cosmos_predict2",)},
)
