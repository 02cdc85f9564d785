"""Lumina-Image 2.0. Names and shapes: the released checkpoint and Diffusers' Lumina2Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import GEMMA2_2B, GEMMA2_2B_SIZES

LAYER = (
    Row(
        "attention.qkv",
        ("attn.to_q", "attn.to_k", "attn.to_v"),
        (3840, "width"),
        blocks=("width", "keys", "keys"),
    ),
    Row("attention.out", "attn.to_out.0", ("width", "width")),
    Row("attention.q_norm", "attn.norm_q", ("head",)),
    Row("attention.k_norm", "attn.norm_k", ("head",)),
    Row("feed_forward.w1", "feed_forward.linear_1", ("4*width", "width")),
    Row("feed_forward.w2", "feed_forward.linear_2", ("width", "4*width")),
    Row("feed_forward.w3", "feed_forward.linear_3", ("4*width", "width")),
    Row("attention_norm2", "norm2", ("width",)),
    Row("ffn_norm1", "ffn_norm1", ("width",)),
    Row("ffn_norm2", "ffn_norm2", ("width",)),
)
REFINER = (*LAYER, Row("attention_norm1", "norm1", ("width",)))
BLOCK = (
    *LAYER,
    Row("attention_norm1", "norm1.norm", ("width",)),
    Row("adaLN_modulation.1", "norm1.linear", ("4*width", "time")),
)
ENDS = (
    Row("x_embedder", "x_embedder", ("width", 64)),
    Row("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1", ("time", 256)),
    Row("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2", ("time", "time")),
    Row("cap_embedder.0", "time_caption_embed.caption_embedder.0", ("context",)),
    Row("cap_embedder.1", "time_caption_embed.caption_embedder.1", ("width", "context")),
    Row("final_layer.adaLN_modulation.1", "norm_out.linear_1", ("width", "time")),
    Row("final_layer.linear", "norm_out.linear_2", (64, "width")),
)

LUMINA2 = Architecture(
    id="lumina2",
    name="Lumina-Image 2.0",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("noise_refiner.{0-1}", "noise_refiner.{0-1}", BLOCK),
                Group("context_refiner.{0-1}", "context_refiner.{0-1}", REFINER),
                Group("layers.{0-25}", "layers.{0-25}", BLOCK),
            ),
            sizes={"width": 2304, "keys": 768, "head": 96, "time": 1024, "context": 2304},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "gemma2_2b",
            groups=GEMMA2_2B,
            sizes=GEMMA2_2B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.gemma2_2b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.gemma2_2b.transformer",),
            folder="text_encoder",
        ),
    ),
    metadata={"ss_base_model_version": "lumina2", "modelspec.architecture": "lumina-2/lora"},
    hints={"ss_base_model_version": ("lumina2",), "modelspec.architecture": ("lumina-2",)},
)
