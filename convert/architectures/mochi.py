"""Mochi 1 preview. Names and shapes: Genmo's checkpoint and Diffusers' MochiTransformer3DModel.

Diffusers holds the halves of the gated feed-forwards and of the last modulation the other way round.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import T5XXL, T5XXL_SIZES

ENDS = (
    Row("x_embedder.proj", "patch_embed.proj", ("width", 12, 2, 2)),
    Row("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1", ("width", 256)),
    Row("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2", ("width", "width")),
    Row("t5_y_embedder.to_kv", "time_embed.pooler.to_kv", (8192, 4096)),
    Row("t5_y_embedder.to_q", "time_embed.pooler.to_q", (4096, 4096)),
    Row("t5_y_embedder.to_out", "time_embed.pooler.to_out", ("width", 4096)),
    Row("t5_yproj", "time_embed.caption_proj", ("text", 4096)),
    Row("final_layer.mod", "norm_out.linear", ("2*width", "width"), swapped=True),
    Row("final_layer.linear", "proj_out", (48, "width")),
)
BLOCK = (
    Row("mod_x", "norm1.linear", ("4*width", "width")),
    Row("attn.qkv_x", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("3*width", "width")),
    Row("attn.qkv_y", ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"), ("3*width", "text")),
    Row("attn.q_norm_x", "attn1.norm_q", (128,)),
    Row("attn.k_norm_x", "attn1.norm_k", (128,)),
    Row("attn.q_norm_y", "attn1.norm_added_q", (128,)),
    Row("attn.k_norm_y", "attn1.norm_added_k", (128,)),
    Row("attn.proj_x", "attn1.to_out.0", ("width", "width")),
    Row("mlp_x.w1", "ff.net.0.proj", (16384, "width"), swapped=True),
    Row("mlp_x.w2", "ff.net.2", ("width", 8192)),
)
BLOCK_TEXT = (  # in all blocks but the last
    Row("mod_y", "norm1_context.linear", ("4*text", "width")),
    Row("attn.proj_y", "attn1.to_add_out", ("text", "width")),
    Row("mlp_y.w1", "ff_context.net.0.proj", (8192, "text"), swapped=True),
    Row("mlp_y.w2", "ff_context.net.2", ("text", 4096)),
)
BLOCK_TEXT_LAST = (Row("mod_y", "norm1_context.linear_1", ("text", "width")),)

MOCHI = Architecture(
    id="mochi",
    name="Mochi 1",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("blocks.{0-47}", "transformer_blocks.{0-47}", BLOCK),
                Group("blocks.{0-46}", "transformer_blocks.{0-46}", BLOCK_TEXT),
                Group("blocks.47", "transformer_blocks.47", BLOCK_TEXT_LAST),
            ),
            sizes={"width": 3072, "text": 1536},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "t5xxl",
            groups=T5XXL,
            sizes=T5XXL_SIZES,
            prefixes={
                "kohya": ("lora_te1", "lora_te"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.t5xxl.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.t5xxl.transformer",),
            folder="text_encoder",
        ),
    ),
)
