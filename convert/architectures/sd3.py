"""Rows that Stable Diffusion 3 and 3.5 share, and their text encoders."""

from __future__ import annotations

from ..model import Component, Row
from .text_encoders import CLIP_G, CLIP_G_SIZES, CLIP_L_PROJECTED, CLIP_L_SIZES, T5XXL, T5XXL_SIZES

SD3_ENDS = (
    Row("x_embedder.proj", "pos_embed.proj", ("width", 16, 2, 2)),
    Row("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1", ("width", 256)),
    Row("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2", ("width", "width")),
    Row("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1", ("width", 2048)),
    Row("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2", ("width", "width")),
    Row("context_embedder", "context_embedder", ("width", 4096)),
    Row("final_layer.linear", "proj_out", (64, "width")),
    Row("final_layer.adaLN_modulation.1", "norm_out.linear", ("2*width", "width"), swapped=True),
)
SD3_BLOCK = (  # every block
    Row("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), ("3*width", "width")),
    Row("x_block.attn.proj", "attn.to_out.0", ("width", "width")),
    Row("x_block.mlp.fc1", "ff.net.0.proj", ("4*width", "width")),
    Row("x_block.mlp.fc2", "ff.net.2", ("width", "4*width")),
    Row("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("3*width", "width")),
)
SD3_MODULATION = (Row("x_block.adaLN_modulation.1", "norm1.linear", ("6*width", "width")),)
SD3_CONTEXT = (  # every block but the last, which has no text left to change
    Row("context_block.attn.proj", "attn.to_add_out", ("width", "width")),
    Row("context_block.mlp.fc1", "ff_context.net.0.proj", ("4*width", "width")),
    Row("context_block.mlp.fc2", "ff_context.net.2", ("width", "4*width")),
    Row("context_block.adaLN_modulation.1", "norm1_context.linear", ("6*width", "width")),
)
SD3_LAST = (Row("context_block.adaLN_modulation.1", "norm1_context.linear", ("2*width", "width"), swapped=True),)
SD35_NORMS = (
    Row("x_block.attn.ln_q", "attn.norm_q", (64,)),
    Row("x_block.attn.ln_k", "attn.norm_k", (64,)),
    Row("context_block.attn.ln_q", "attn.norm_added_q", (64,)),
    Row("context_block.attn.ln_k", "attn.norm_added_k", (64,)),
)
SD35_DUAL = (  # 3.5 medium: the first blocks have a second self-attention
    Row("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v"), ("3*width", "width")),
    Row("x_block.attn2.proj", "attn2.to_out.0", ("width", "width")),
    Row("x_block.attn2.ln_q", "attn2.norm_q", (64,)),
    Row("x_block.attn2.ln_k", "attn2.norm_k", (64,)),
    Row("x_block.adaLN_modulation.1", "norm1.linear", ("9*width", "width")),
)

SD3_TEXT_ENCODERS = (
    Component(
        "clip_l",
        groups=CLIP_L_PROJECTED,
        sizes=CLIP_L_SIZES,
        prefixes={
            "kohya": ("lora_te1",),
            "diffusers": ("text_encoder",),
            "comfy": ("text_encoders.clip_l.transformer",),
            "peft": ("text_encoder.base_model.model",),
        },
        checkpoint=("text_encoders.clip_l.transformer",),
        folder="text_encoder",
    ),
    Component(
        "clip_g",
        groups=CLIP_G,
        sizes=CLIP_G_SIZES,
        prefixes={
            "kohya": ("lora_te2",),
            "diffusers": ("text_encoder_2",),
            "comfy": ("text_encoders.clip_g.transformer",),
            "peft": ("text_encoder_2.base_model.model",),
        },
        checkpoint=("text_encoders.clip_g.transformer",),
        folder="text_encoder_2",
    ),
    Component(
        "t5xxl",
        groups=T5XXL,
        sizes=T5XXL_SIZES,
        prefixes={
            "kohya": ("lora_te3",),
            "diffusers": ("text_encoder_3",),
            "comfy": ("text_encoders.t5xxl.transformer",),
            "peft": ("text_encoder_3.base_model.model",),
        },
        checkpoint=("text_encoders.t5xxl.transformer",),
        folder="text_encoder_3",
    ),
)
