"""PixArt-Sigma and PixArt-Alpha. Names and shapes: the PixArt-Sigma checkpoint, Diffusers' PixArtTransformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import FLAT_DIT_PREFIXES
from .text_encoders import T5XXL, T5XXL_SIZES

PIXART_SIGMA = Architecture(
    id="pixart-sigma",
    name="PixArt-Sigma",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("x_embedder.proj", "pos_embed.proj", ("width", 4, 2, 2)),
                        Row("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1", ("width", 256)),
                        Row("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2", ("width", "width")),
                        Row("t_block.1", "adaln_single.linear", ("6*width", "width")),
                        Row("y_embedder.y_proj.fc1", "caption_projection.linear_1", ("width", 4096)),
                        Row("y_embedder.y_proj.fc2", "caption_projection.linear_2", ("width", "width")),
                        Row("final_layer.linear", "proj_out", (32, "width")),
                        # PixArt-Alpha at 1024 pixels alone
                        Row("csize_embedder.mlp.0", "adaln_single.emb.resolution_embedder.linear_1", (384, 256)),
                        Row("csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2", (384, 384)),
                        Row("ar_embedder.mlp.0", "adaln_single.emb.aspect_ratio_embedder.linear_1", (384, 256)),
                        Row("ar_embedder.mlp.2", "adaln_single.emb.aspect_ratio_embedder.linear_2", (384, 384)),
                    ),
                ),
                Group(
                    "blocks.{0-27}",
                    "transformer_blocks.{0-27}",
                    (
                        Row("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), ("3*width", "width")),
                        Row("attn.proj", "attn1.to_out.0", ("width", "width")),
                        Row("cross_attn.q_linear", "attn2.to_q", ("width", "width")),
                        Row("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"), ("2*width", "width")),
                        Row("cross_attn.proj", "attn2.to_out.0", ("width", "width")),
                        Row("mlp.fc1", "ff.net.0.proj", ("4*width", "width")),
                        Row("mlp.fc2", "ff.net.2", ("width", "4*width")),
                    ),
                ),
            ),
            sizes={"width": 1152},
            prefixes={**FLAT_DIT_PREFIXES, "peft": (*FLAT_DIT_PREFIXES["peft"], "unet.base_model.model")},
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "t5xxl",
            groups=T5XXL,
            sizes=T5XXL_SIZES,
            prefixes={
                "kohya": ("lora_te1",),
                "onetrainer": ("lora_te",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.t5xxl.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.t5xxl.transformer",),
            folder="text_encoder",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "pixart",
        "modelspec.architecture": "pixart-sigma/lora",
    },
    hints={
        "ss_base_model_version": ("pixart",),
        "modelspec.architecture": ("pixart",),
    },
)
