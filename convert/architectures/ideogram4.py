"""Ideogram 4. Names and shapes: the checkpoint that ComfyUI loads and Diffusers' Ideogram4Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

BLOCK = (
    Row("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"), ("3*width", "width")),
    Row("attention.o", "attention.to_out.0", ("width", "width")),
    Row("attention.norm_q", "attention.norm_q", ("head",)),
    Row("attention.norm_k", "attention.norm_k", ("head",)),
    Row("feed_forward.w1", "feed_forward.w1", ("mlp", "width")),
    Row("feed_forward.w2", "feed_forward.w2", ("width", "mlp")),
    Row("feed_forward.w3", "feed_forward.w3", ("mlp", "width")),
    Row("attention_norm1", "attention_norm1", ("width",)),
    Row("attention_norm2", "attention_norm2", ("width",)),
    Row("ffn_norm1", "ffn_norm1", ("width",)),
    Row("ffn_norm2", "ffn_norm2", ("width",)),
    Row("adaln_modulation", "adaln_modulation", ("4*width", "time")),
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("input_proj", ("width", 128)),
        ("llm_cond_norm", ("context",)),
        ("llm_cond_proj", ("width", "context")),
        ("t_embedding.mlp_in", ("width", "width")),
        ("t_embedding.mlp_out", ("width", "width")),
        ("adaln_proj", ("time", "width")),
        ("embed_image_indicator", (2, "width")),
        ("final_layer.linear", (128, "width")),
        ("final_layer.adaln_modulation", ("width", "time")),
    )
)

IDEOGRAM4 = Architecture(
    id="ideogram4",
    name="Ideogram 4",
    components=(
        Component(
            "denoiser",
            groups=(Group("", "", ENDS), Group("layers.{0-33}", "layers.{0-33}", BLOCK)),
            sizes={"width": 4608, "head": 256, "mlp": 12288, "time": 512, "context": 53248},
            prefixes={**DIT_PREFIXES, "diffusers": ("transformer", "conditional_transformer")},
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "ideogram4", "modelspec.architecture": "Ideogram-4/lora"},
    hints={"ss_base_model_version": ("ideogram4",), "modelspec.architecture": ("Ideogram",)},
)
