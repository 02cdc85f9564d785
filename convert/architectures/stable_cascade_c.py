"""Stable Cascade, stage C. Names and shapes: ComfyUI's StageC and Diffusers' StableCascadeUNet.

Blocks come in threes: residual, time step, attention.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Positional, Row
from .text_encoders import CLIP_G, CLIP_G_SIZES

RESIDUAL = (
    Row("depthwise", "depthwise", ("width", 1, 3, 3)),
    Row("channelwise.0", "channelwise.0", ("4*width", "in")),
    Row("channelwise.4", "channelwise.4", ("width", "4*width")),
)
TIME_STEP = (
    Row("mapper", "mapper", ("2*width", 64)),
    Row("mapper_sca", "mapper_sca", ("2*width", 64)),
    Row("mapper_crp", "mapper_crp", ("2*width", 64)),
)
ATTENTION = (
    Row("attention.attn.to_q", "attention.to_q", ("width", "width")),
    Row("attention.attn.to_k", "attention.to_k", ("width", "width")),
    Row("attention.attn.to_v", "attention.to_v", ("width", "width")),
    Row("attention.attn.out_proj", "attention.to_out.0", ("width", "width")),
    Row("kv_mapper.1", "kv_mapper.1", ("width", "width")),
)
POSITIONS = tuple(("MultiheadAttention", f"attention.{name}") for name in ("to_out.0", "to_q", "to_k", "to_v"))
LEVELS = (("down_blocks.0", 24), ("down_blocks.1", 72), ("up_blocks.0", 72), ("up_blocks.1", 24))  # how many blocks

STABLE_CASCADE_C = Architecture(
    id="stable-cascade-c",
    name="Stable Cascade (stage C)",
    components=(
        Component(
            "denoiser",
            groups=(
                Group(
                    "",
                    "",
                    (
                        Row("clip_txt_mapper", "clip_txt_mapper", ("width", 1280)),
                        Row("clip_txt_pooled_mapper", "clip_txt_pooled_mapper", ("4*width", 1280)),
                        Row("clip_img_mapper", "clip_img_mapper", ("4*width", 768)),
                        Row("embedding.1", "embedding.1", ("width", 16, 1, 1)),
                        Row("down_downscalers.1.1.blocks.0", "down_downscalers.1.1.blocks.0", ("width", "width", 1, 1)),
                        Row("up_upscalers.0.1.blocks.1", "up_upscalers.0.1.blocks.1", ("width", "width", 1, 1)),
                        Row("clf.1", "clf.1", (16, "width", 1, 1)),
                    ),
                ),
                *(
                    # the first block on the way up from the lower level takes the skip connection too
                    Group(block, block, RESIDUAL, {"in": 4096 if block == "up_blocks.1.0" else 2048})
                    for block in (f"{level}.{n}" for level, blocks in LEVELS for n in range(0, blocks, 3))
                ),
                *(
                    Group(block, block, TIME_STEP)
                    for block in (f"{level}.{n}" for level, blocks in LEVELS for n in range(1, blocks, 3))
                ),
                *(
                    Group(block, block, ATTENTION)
                    for block in (f"{level}.{n}" for level, blocks in LEVELS for n in range(2, blocks, 3))
                ),
            ),
            sizes={"width": 2048},
            prefixes={
                "kohya": ("lora_prior_unet", "lora_unet"),
                "onetrainer": ("lora_prior_unet",),
                "diffusers": ("prior",),
                "comfy": ("diffusion_model",),
                "peft": ("base_model.model", "prior.base_model.model"),
                "bare": ("", "model.diffusion_model"),
                "positional": ("prior",),
            },
            checkpoint=("model.diffusion_model", ""),
            folder="prior",
            positional=tuple(
                Positional(f"{level}.{n}", POSITIONS) for level, blocks in LEVELS for n in range(2, blocks, 3)
            ),
        ),
        Component(
            "clip_g",
            groups=CLIP_G,
            sizes=CLIP_G_SIZES,
            prefixes={
                "kohya": ("lora_prior_te", "lora_te"),
                "onetrainer": ("lora_prior_te",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.clip_g.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoder",),
            folder="text_encoder",
        ),
    ),
    namings=(
        Naming(  # OneTrainer names the parts of torch's fused attention weight
            "in_proj",
            of="original",
            endings=(
                (".attention.attn.to_q", ".attention.attn.in_proj.0"),
                (".attention.attn.to_k", ".attention.attn.in_proj.1"),
                (".attention.attn.to_v", ".attention.attn.in_proj.2"),
            ),
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "stable_cascade",
        "modelspec.architecture": "stable-cascade/lora",
    },
    hints={
        "ss_base_model_version": ("stable_cascade",),
        "modelspec.architecture": ("stable-cascade",),
    },
)
