"""Qwen-Image 2.1. Names and shapes: Diffusers' QwenImage21Transformer2DModel.

The original layout holds the feed-forward's gate and value in one weight, gate first (Diffusers'
`convert_qwen_image21_transformer_checkpoint_to_diffusers`); all other names agree.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

BLOCK = (
    Row("attn.to_q", "attn.to_q", ("width", "width")),
    Row("attn.to_k", "attn.to_k", ("width", "width")),
    Row("attn.to_v", "attn.to_v", ("width", "width")),
    Row("attn.to_out.0", "attn.to_out.0", ("width", "width")),
    Row("attn.norm_q", "attn.norm_q", ("head",)),
    Row("attn.norm_k", "attn.norm_k", ("head",)),
    Row("img_mlp.gate_up", ("img_mlp.gate_layer", "img_mlp.proj"), ("6*width", "width")),
    Row("img_mlp.out", "img_mlp.out", ("width", "3*width")),
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("time_text_embed.timestep_embedder.linear_1", ("width", 256)),
        ("time_text_embed.timestep_embedder.linear_2", ("width", "width")),
        ("txt_in.text_norm", ("context",)),
        ("txt_in.in_layer", ("width", "context")),
        ("txt_in.out_layer", ("width", "width")),
        ("img_in", ("width", 64)),
        ("modulation.1", ("4*width", "width")),
        ("norm_out.linear", ("width", "width")),
        ("proj_out", (64, "width")),
    )
)

QWEN_IMAGE21 = Architecture(
    id="qwen-image21",
    name="Qwen-Image 2.1",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("transformer_blocks.{0-31}", "transformer_blocks.{0-31}", BLOCK),
            ),
            sizes={"width": 4096, "head": 128, "context": 4096},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"modelspec.architecture": "Qwen-Image-2.1/lora"},
    hints={"modelspec.architecture": ("Qwen-Image-2.1",)},
)
