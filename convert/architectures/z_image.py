"""Z-Image. Names and shapes: the Lumina-style checkpoint that ComfyUI loads and Diffusers' ZImageTransformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import QWEN3_4B, QWEN3_4B_SIZES

REFINER = (
    Row("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"), ("3*width", "width")),
    Row("attention.out", "attention.to_out.0", ("width", "width")),
    Row("attention.q_norm", "attention.norm_q", ("head",)),
    Row("attention.k_norm", "attention.norm_k", ("head",)),
    Row("feed_forward.w1", "feed_forward.w1", ("mlp", "width")),
    Row("feed_forward.w2", "feed_forward.w2", ("width", "mlp")),
    Row("feed_forward.w3", "feed_forward.w3", ("mlp", "width")),
    Row("attention_norm1", "attention_norm1", ("width",)),
    Row("attention_norm2", "attention_norm2", ("width",)),
    Row("ffn_norm1", "ffn_norm1", ("width",)),
    Row("ffn_norm2", "ffn_norm2", ("width",)),
)
BLOCK = (*REFINER, Row("adaLN_modulation.0", "adaLN_modulation.0", ("4*width", "time")))
ENDS = (
    Row("x_embedder", "all_x_embedder.2-1", ("width", 64)),
    Row("t_embedder.mlp.0", "t_embedder.mlp.0", (1024, "time")),
    Row("t_embedder.mlp.2", "t_embedder.mlp.2", ("time", 1024)),
    Row("cap_embedder.0", "cap_embedder.0", ("context",)),
    Row("cap_embedder.1", "cap_embedder.1", ("width", "context")),
    Row("final_layer.linear", "all_final_layer.2-1.linear", (64, "width")),
    Row("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1", ("width", "time")),
)

Z_IMAGE = Architecture(
    id="z-image",
    name="Z-Image",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("noise_refiner.{0-1}", "noise_refiner.{0-1}", BLOCK),
                Group("context_refiner.{0-1}", "context_refiner.{0-1}", REFINER),
                Group("layers.{0-29}", "layers.{0-29}", BLOCK),
            ),
            sizes={"width": 3840, "head": 128, "mlp": 10240, "time": 256, "context": 2560},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen3_4b",
            groups=QWEN3_4B,
            sizes=QWEN3_4B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen3_4b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen3_4b.transformer",),
            folder="text_encoder",
        ),
    ),
    metadata={"ss_base_model_version": "z_image", "modelspec.architecture": "Z-Image/lora"},
    hints={"ss_base_model_version": ("z_image", "zimage"), "modelspec.architecture": ("Z-Image",)},
    aitoolkit=("comfy", "diffusers"),
)
