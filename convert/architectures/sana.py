"""Sana 1.6B. Names and shapes: Diffusers' SanaTransformer2DModel; original names: its loader of NVIDIA's checkpoint."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import GEMMA2_2B, GEMMA2_2B_SIZES

SANA = Architecture(
    id="sana",
    name="Sana",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("x_embedder.proj", "patch_embed.proj", ("width", 32, 1, 1)),
                        Row("t_embedder.mlp.0", "time_embed.emb.timestep_embedder.linear_1", ("width", 256)),
                        Row("t_embedder.mlp.2", "time_embed.emb.timestep_embedder.linear_2", ("width", "width")),
                        Row("t_block.1", "time_embed.linear", ("6*width", "width")),
                        Row("y_embedder.y_proj.fc1", "caption_projection.linear_1", ("width", 2304)),
                        Row("y_embedder.y_proj.fc2", "caption_projection.linear_2", ("width", "width")),
                        Row("attention_y_norm", "caption_norm", ("width",)),
                        Row("final_layer.linear", "proj_out", (32, "width")),
                    ),
                ),
                Group(
                    "blocks.{0-19}",
                    "transformer_blocks.{0-19}",
                    (
                        Row("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("3*width", "width")),
                        Row("attn.proj", "attn1.to_out.0", ("width", "width")),
                        Row("cross_attn.q_linear", "attn2.to_q", ("width", "width")),
                        Row("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"), ("2*width", "width")),
                        Row("cross_attn.proj", "attn2.to_out.0", ("width", "width")),
                        Row("mlp.inverted_conv.conv", "ff.conv_inverted", ("5*width", "width", 1, 1)),
                        Row("mlp.depth_conv.conv", "ff.conv_depth", ("5*width", 1, 3, 3)),
                        Row("mlp.point_conv.conv", "ff.conv_point", ("width", "half", 1, 1)),
                    ),
                ),
            ),
            sizes={"width": 2240, "half": 5600},
            prefixes=DIT_PREFIXES,
            folder="transformer",
        ),
        Component(
            "gemma2_2b",
            groups=GEMMA2_2B,
            sizes=GEMMA2_2B_SIZES,
            prefixes={
                "kohya": ("lora_te",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.gemma2_2b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            folder="text_encoder",
        ),
    ),
    kohya_naming="diffusers",  # OneTrainer's, the only trainer that writes these keys
    aitoolkit=("diffusers", "diffusers"),
    metadata={"modelspec.architecture": "sana/lora"},
    hints={"modelspec.architecture": ("sana/",)},
)
