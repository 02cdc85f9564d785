"""Bria FIBO: Flux' body that feeds a projection of the text into each block. Diffusers alone has it.

Names and shapes: Diffusers' BriaFiboTransformer2DModel.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .flux_diffusers_blocks import ENDS, LINEARS, SINGLE_TRANSFORMER_BLOCK, TRANSFORMER_BLOCK

EMBEDDERS = (
    Row("x_embedder", "x_embedder", ("width", "latent")),
    Row("context_embedder", "context_embedder", ("width", 4096)),
    Row("caption_projection.{0-56}.linear", "caption_projection.{0-56}.linear", (1536, 2048)),
)
BLOCKS = (
    ("transformer_blocks.{0-18}", TRANSFORMER_BLOCK),
    ("single_transformer_blocks.{0-37}", SINGLE_TRANSFORMER_BLOCK),
)

BRIA_FIBO = Architecture(
    id="bria-fibo",
    name="Bria FIBO",
    kin="flux",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*EMBEDDERS, *ENDS)),
                Group("time_embed.timestep_embedder", "time_embed.timestep_embedder", LINEARS, {"in": 256}),
                *(Group(name, name, rows) for name, rows in BLOCKS),
            ),
            sizes={"width": 3072, "latent": 64},
            prefixes=DIT_PREFIXES,
            folder="transformer",
        ),
    ),
    kohya_naming="diffusers",
    aitoolkit=("diffusers", "diffusers"),
)
