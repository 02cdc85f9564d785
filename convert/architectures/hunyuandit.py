"""Hunyuan-DiT 1.2. Names and shapes: Tencent's checkpoint and Diffusers' HunyuanDiT2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import HYDIT_CLIP, HYDIT_CLIP_SIZES

HUNYUANDIT = Architecture(
    id="hunyuandit",
    name="Hunyuan-DiT",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("x_embedder.proj", "pos_embed.proj", ("width", 4, 2, 2)),
                        Row("mlp_t5.0", "text_embedder.linear_1", (8192, 2048)),
                        Row("mlp_t5.2", "text_embedder.linear_2", ("context", 8192)),
                        Row("t_embedder.mlp.0", "time_extra_emb.timestep_embedder.linear_1", ("width", 256)),
                        Row("t_embedder.mlp.2", "time_extra_emb.timestep_embedder.linear_2", ("width", "width")),
                        Row("pooler.k_proj", "time_extra_emb.pooler.k_proj", (2048, 2048)),
                        Row("pooler.q_proj", "time_extra_emb.pooler.q_proj", (2048, 2048)),
                        Row("pooler.v_proj", "time_extra_emb.pooler.v_proj", (2048, 2048)),
                        Row("pooler.c_proj", "time_extra_emb.pooler.c_proj", (1024, 2048)),
                        Row("extra_embedder.0", "time_extra_emb.extra_embedder.linear_1", ("4*width", 1024)),
                        Row("extra_embedder.2", "time_extra_emb.extra_embedder.linear_2", ("width", "4*width")),
                        Row("final_layer.linear", "proj_out", (32, "width")),
                        Row("final_layer.adaLN_modulation.1", "norm_out.linear", ("2*width", "width"), swapped=True),
                    ),
                ),
                Group(
                    "blocks.{0-39}",
                    "blocks.{0-39}",
                    (
                        Row("attn1.Wqkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("3*width", "width")),
                        Row("attn1.out_proj", "attn1.to_out.0", ("width", "width")),
                        Row("attn1.q_norm", "attn1.norm_q", (88,)),
                        Row("attn1.k_norm", "attn1.norm_k", (88,)),
                        Row("attn2.q_proj", "attn2.to_q", ("width", "width")),
                        Row("attn2.kv_proj", ("attn2.to_k", "attn2.to_v"), ("2*width", "context")),
                        Row("attn2.out_proj", "attn2.to_out.0", ("width", "width")),
                        Row("attn2.q_norm", "attn2.norm_q", (88,)),
                        Row("attn2.k_norm", "attn2.norm_k", (88,)),
                        Row("mlp.fc1", "ff.net.0.proj", ("mlp", "width")),
                        Row("mlp.fc2", "ff.net.2", ("width", "mlp")),
                        Row("default_modulation.1", "norm1.linear", ("width", "width")),
                        Row("norm1", "norm1.norm", ("width",)),
                        Row("norm2", "norm3", ("width",)),  # Diffusers counts these two the other way round
                        Row("norm3", "norm2", ("width",)),
                    ),
                ),
                Group(
                    "blocks.{21-39}",
                    "blocks.{21-39}",
                    (
                        Row("skip_norm", "skip_norm", ("2*width",)),
                        Row("skip_linear", "skip_linear", ("width", "2*width")),
                    ),
                ),
            ),
            sizes={"width": 1408, "mlp": 6144, "context": 1024},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model", "model"),
            folder="transformer",
        ),
        Component(
            "hydit_clip",
            groups=HYDIT_CLIP,
            sizes=HYDIT_CLIP_SIZES,
            prefixes={
                "kohya": ("lora_te1",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.hydit_clip.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.hydit_clip.transformer",),
            folder="text_encoder",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
)
