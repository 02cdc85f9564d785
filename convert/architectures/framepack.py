"""FramePack: HunyuanVideo's body with embedders for clean frames and for an image, under Diffusers' names.

Names and shapes: FramePack's own model, which keeps Diffusers' names, as does HunyuanVideoFramepackTransformer3DModel.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .flux_diffusers_blocks import ENDS, LINEARS, SINGLE_TRANSFORMER_BLOCK, TRANSFORMER_BLOCK

EMBEDDERS = (
    Row("x_embedder.proj", "x_embedder.proj", ("width", 16, 1, 2, 2)),
    Row("clean_x_embedder.proj", "clean_x_embedder.proj", ("width", 16, 1, 2, 2)),
    Row("clean_x_embedder.proj_2x", "clean_x_embedder.proj_2x", ("width", 16, 2, 4, 4)),
    Row("clean_x_embedder.proj_4x", "clean_x_embedder.proj_4x", ("width", 16, 4, 8, 8)),
    Row("image_projection.up", "image_projection.up", ("3*width", 1152)),
    Row("image_projection.down", "image_projection.down", ("width", "3*width")),
    Row("context_embedder.proj_in", "context_embedder.proj_in", ("width", 4096)),
)
REFINER_BLOCK = (
    *(Row(f"attn.{name}", f"attn.{name}", ("width", "width")) for name in ("to_q", "to_k", "to_v", "to_out.0")),
    Row("ff.net.0.proj", "ff.net.0.proj", ("4*width", "width")),
    Row("ff.net.2", "ff.net.2", ("width", "4*width")),
    Row("norm1", "norm1", ("width",)),
    Row("norm2", "norm2", ("width",)),
    Row("norm_out.linear", "norm_out.linear", ("2*width", "width")),
)
CONDITIONS = (  # embedder, width of what comes in
    ("context_embedder.time_text_embed.timestep_embedder", 256),
    ("context_embedder.time_text_embed.text_embedder", 4096),
    ("time_text_embed.timestep_embedder", 256),
    ("time_text_embed.guidance_embedder", 256),
    ("time_text_embed.text_embedder", 768),
)
BLOCKS = (
    ("context_embedder.token_refiner.refiner_blocks.{0-1}", REFINER_BLOCK),
    ("transformer_blocks.{0-19}", TRANSFORMER_BLOCK),
    ("single_transformer_blocks.{0-39}", SINGLE_TRANSFORMER_BLOCK),
)

FRAMEPACK = Architecture(
    id="framepack",
    name="FramePack",
    kin="hunyuan-video",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*EMBEDDERS, *ENDS)),
                *(Group(name, name, LINEARS, {"in": width}) for name, width in CONDITIONS),
                *(Group(name, name, rows) for name, rows in BLOCKS),
            ),
            sizes={"width": 3072, "latent": 64},
            prefixes=DIT_PREFIXES,
            folder="transformer",
        ),
    ),
    kohya_naming="diffusers",
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "framepack",
        "modelspec.architecture": "framepack/lora",
    },
    hints={
        "ss_base_model_version": ("framepack",),
        "modelspec.architecture": ("framepack",),
    },
)
