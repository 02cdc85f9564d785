"""HunyuanVideo 1.5. Names and shapes: ComfyUI's model and Diffusers' HunyuanVideo15Transformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .flux_blocks import DOUBLE, EMBEDDER
from .hunyuan_blocks import BYT5, HUNYUAN_ENDS, TENCENT_SPLIT
from .text_encoders import QWEN25_7B, QWEN25_7B_SIZES

VISION = (
    Row("proj.0", "norm_in", (1152,)),
    Row("proj.1", "linear_1", (1152, 1152)),
    Row("proj.3", "linear_2", ("width", 1152)),
    Row("proj.4", "norm_out", ("width",)),
)

HUNYUAN_VIDEO15 = Architecture(
    id="hunyuan-video15",
    name="HunyuanVideo 1.5",
    components=(
        Component(
            "denoiser",
            groups=(
                *HUNYUAN_ENDS,
                Group("img_in", "x_embedder", (Row("proj", "proj", ("width", 65, 1, 1, 1)),)),
                Group("time_in", "time_embed.timestep_embedder", EMBEDDER, {"in": 256}),
                Group("", "", (Row("cond_type_embedding", "cond_type_embed", (3, "width")),)),
                BYT5,
                Group("vision_in", "image_embedder", VISION),
                Group("double_blocks.{0-53}", "transformer_blocks.{0-53}", DOUBLE),
            ),
            sizes={"width": 2048, "latent": 32, "context": 3584},
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
    namings=TENCENT_SPLIT,
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "hunyuan_video_1_5",
        "modelspec.architecture": "hunyuan-video-1.5/lora",
    },
    hints={
        "ss_base_model_version": ("hunyuan_video_1_5",),
        "modelspec.architecture": ("hunyuan-video-1.5",),
    },
)
