"""OmniGen 2. Names and shapes: ComfyUI's OmniGen2Transformer2DModel, which keeps those of the model's own pipeline."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

LAYER = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("attn.to_q", ("width", "width")),
        ("attn.to_k", ("keys", "width")),
        ("attn.to_v", ("keys", "width")),
        ("attn.to_out.0", ("width", "width")),
        ("attn.norm_q", ("head",)),
        ("attn.norm_k", ("head",)),
        ("feed_forward.linear_1", ("mlp", "width")),
        ("feed_forward.linear_2", ("width", "mlp")),
        ("feed_forward.linear_3", ("mlp", "width")),
        ("norm2", ("width",)),
        ("ffn_norm1", ("width",)),
        ("ffn_norm2", ("width",)),
    )
)
REFINER = (*LAYER, Row("norm1", "norm1", ("width",)))
BLOCK = (
    *LAYER,
    Row("norm1.norm", "norm1.norm", ("width",)),
    Row("norm1.linear", "norm1.linear", ("4*width", "time")),
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("x_embedder", ("width", 64)),
        ("ref_image_patch_embedder", ("width", 64)),
        ("time_caption_embed.timestep_embedder.linear_1", ("time", 256)),
        ("time_caption_embed.timestep_embedder.linear_2", ("time", "time")),
        ("time_caption_embed.caption_embedder.0", ("context",)),
        ("time_caption_embed.caption_embedder.1", ("width", "context")),
        ("norm_out.linear_1", ("width", "time")),
        ("norm_out.linear_2", (64, "width")),
    )
)

OMNIGEN2 = Architecture(
    id="omnigen2",
    name="OmniGen 2",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("noise_refiner.{0-1}", "noise_refiner.{0-1}", BLOCK),
                Group("ref_image_refiner.{0-1}", "ref_image_refiner.{0-1}", BLOCK),
                Group("context_refiner.{0-1}", "context_refiner.{0-1}", REFINER),
                Group("layers.{0-31}", "layers.{0-31}", BLOCK),
            ),
            sizes={"width": 2520, "keys": 840, "head": 120, "mlp": 10240, "time": 1024, "context": 2048},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "omnigen2"},
    hints={"ss_base_model_version": ("omnigen2",)},
)
