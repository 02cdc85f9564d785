"""LongCat-Image: Flux' body with Qwen2.5-VL for its text.

Names and shapes: Diffusers' LongCatImageTransformer2DModel; ComfyUI runs it as a Flux, whence the original names.
Diffusers' last layer takes scale before shift and ComfyUI's shift before scale, so its halves are swapped.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DIT_PREFIXES
from .flux_blocks import BODY, EMBEDDER, IN, OUT
from .text_encoders import QWEN25_7B, QWEN25_7B_SIZES

LONGCAT_IMAGE = Architecture(
    id="longcat-image",
    name="LongCat-Image",
    kin="flux",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*IN, *OUT)),
                Group("time_in", "time_embed.timestep_embedder", EMBEDDER, {"in": 256}),
                *BODY,
            ),
            sizes={"width": 3072, "latent": 64, "context": 3584},
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
    kohya_naming="original",
    aitoolkit=("diffusers", "diffusers"),
)
