"""Qwen-Image and its editing and layered siblings, which have the same weights' names and shapes.

Names and shapes: ComfyUI's QwenImageTransformer2DModel and Diffusers' class of the same name; the two layouts agree.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import QWEN25_7B, QWEN25_7B_SIZES

BLOCK = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("img_mod.1", ("6*width", "width")),
        ("txt_mod.1", ("6*width", "width")),
        ("attn.to_q", ("width", "width")),
        ("attn.to_k", ("width", "width")),
        ("attn.to_v", ("width", "width")),
        ("attn.add_q_proj", ("width", "width")),
        ("attn.add_k_proj", ("width", "width")),
        ("attn.add_v_proj", ("width", "width")),
        ("attn.to_out.0", ("width", "width")),
        ("attn.to_add_out", ("width", "width")),
        ("attn.norm_q", ("head",)),
        ("attn.norm_k", ("head",)),
        ("attn.norm_added_q", ("head",)),
        ("attn.norm_added_k", ("head",)),
        ("img_mlp.net.0.proj", ("4*width", "width")),
        ("img_mlp.net.2", ("width", "4*width")),
        ("txt_mlp.net.0.proj", ("4*width", "width")),
        ("txt_mlp.net.2", ("width", "4*width")),
    )
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("time_text_embed.timestep_embedder.linear_1", ("width", 256)),
        ("time_text_embed.timestep_embedder.linear_2", ("width", "width")),
        ("img_in", ("width", 64)),
        ("txt_norm", ("context",)),
        ("txt_in", ("width", "context")),
        ("norm_out.linear", ("2*width", "width")),
        ("proj_out", (64, "width")),
    )
)

QWEN_IMAGE = Architecture(
    id="qwen-image",
    name="Qwen-Image",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("transformer_blocks.{0-59}", "transformer_blocks.{0-59}", BLOCK),
            ),
            sizes={"width": 3072, "head": 128, "context": 3584},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen25_7b",
            groups=QWEN25_7B,
            sizes=QWEN25_7B_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te1", "lora_te_model_language_model"),
                "diffusers": ("text_encoder", "text_encoder.model.language_model"),
                "comfy": ("text_encoders.qwen25_7b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen25_7b.transformer",),
            folder="text_encoder",
        ),
    ),
    metadata={"ss_base_model_version": "qwen_image", "modelspec.architecture": "Qwen-Image/lora"},
    hints={
        "ss_base_model_version": ("qwen_image",),
        "modelspec.architecture": ("Qwen-Image/", "Qwen-Image-Edit", "Qwen-Image-Layered"),
    },
)
