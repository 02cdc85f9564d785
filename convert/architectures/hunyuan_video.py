"""HunyuanVideo. Names and shapes: ComfyUI's model and Diffusers' HunyuanVideoTransformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import FLAT_DIT_PREFIXES
from .flux_blocks import DOUBLE, EMBEDDER, SINGLE
from .hunyuan_blocks import HUNYUAN_ENDS, TENCENT
from .text_encoders import CLIP_L, CLIP_L_SIZES, LLAMA31_8B, LLAVA_LLAMA3_8B_SIZES

HUNYUAN_VIDEO = Architecture(
    id="hunyuan-video",
    name="HunyuanVideo",
    components=(
        Component(
            "denoiser",
            groups=(
                *HUNYUAN_ENDS,
                Group("img_in", "x_embedder", (Row("proj", "proj", ("width", 16, 1, 2, 2)),)),
                Group("time_in", "time_text_embed.timestep_embedder", EMBEDDER, {"in": 256}),
                Group("guidance_in", "time_text_embed.guidance_embedder", EMBEDDER, {"in": 256}),
                Group("vector_in", "time_text_embed.text_embedder", EMBEDDER, {"in": 768}),
                Group("double_blocks.{0-19}", "transformer_blocks.{0-19}", DOUBLE),
                Group("single_blocks.{0-39}", "single_transformer_blocks.{0-39}", SINGLE),
            ),
            sizes={"width": 3072, "latent": 64, "context": 4096},
            prefixes=FLAT_DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "llama",
            groups=LLAMA31_8B,
            sizes=LLAVA_LLAMA3_8B_SIZES,
            prefixes={
                "kohya": ("lora_te1",),
                "onetrainer": ("lora_te1",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.llama.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.llama.transformer",),
            folder="text_encoder",
        ),
        Component(
            "clip_l",
            groups=CLIP_L,
            sizes=CLIP_L_SIZES,
            prefixes={
                "kohya": ("lora_te2",),
                "onetrainer": ("lora_te2",),
                "diffusers": ("text_encoder_2",),
                "comfy": ("text_encoders.clip_l.transformer",),
                "peft": ("text_encoder_2.base_model.model",),
            },
            checkpoint=("text_encoders.clip_l.transformer",),
            folder="text_encoder_2",
        ),
    ),
    namings=(TENCENT,),
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "hunyuan_video",
        "modelspec.architecture": "hunyuan-video/lora",
    },
    hints={
        "modelspec.architecture": ("hunyuan-video/",),
    },
)
