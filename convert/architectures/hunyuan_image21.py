"""HunyuanImage 2.1. Names and shapes: ComfyUI's model and Diffusers' HunyuanImageTransformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Row
from .blocks import DIT_PREFIXES
from .flux_blocks import DOUBLE, EMBEDDER, SINGLE
from .hunyuan_blocks import BYT5, HUNYUAN_ENDS, TENCENT_SPLIT
from .text_encoders import QWEN25_7B, QWEN25_7B_SIZES

HUNYUAN_IMAGE21 = Architecture(
    id="hunyuan-image21",
    name="HunyuanImage 2.1",
    components=(
        Component(
            "denoiser",
            groups=(
                *HUNYUAN_ENDS,
                Group("img_in", "x_embedder", (Row("proj", "proj", ("width", 64, 1, 1)),)),
                Group("time_in", "time_guidance_embed.timestep_embedder", EMBEDDER, {"in": 256}),
                BYT5,
                Group("double_blocks.{0-19}", "transformer_blocks.{0-19}", DOUBLE),
                Group("single_blocks.{0-39}", "single_transformer_blocks.{0-39}", SINGLE),
            ),
            sizes={"width": 3584, "latent": 64, "context": 3584},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen25_7b",
            groups=QWEN25_7B,
            sizes=QWEN25_7B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen25_7b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen25_7b.transformer",),
            folder="text_encoder",
        ),
    ),
    namings=(
        *TENCENT_SPLIT,
        Naming(
            "tencent-single",
            of="diffusers",
            beginning=("single_transformer_blocks.", "single_blocks."),
            endings=(
                (".attn.to_q", ".linear1_q"),
                (".attn.to_k", ".linear1_k"),
                (".attn.to_v", ".linear1_v"),
                (".proj_mlp", ".linear1_mlp"),
                (".proj_out", ".linear2.fc"),
            ),
        ),
    ),
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "hunyuan-image-2.1",
        "modelspec.architecture": "hunyuan-image-2.1/lora",
    },
    hints={
        "ss_base_model_version": ("hunyuan-image-2.1",),
        "modelspec.architecture": ("hunyuan-image-2.1",),
    },
)
