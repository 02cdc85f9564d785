"""Stable Diffusion XL base. Names and shapes: the sd_xl_base_1.0 checkpoint and Diffusers' UNet2DConditionModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Positional, Row
from .blocks import (
    CLIP_ENDS,
    CLIP_LAYER,
    DOWNSAMPLE,
    ENDS,
    RESNET,
    RESNET_SKIP,
    SPATIAL_LINEAR,
    TRANSFORMER,
    TRANSFORMER_POSITIONS,
    UNET_PREFIXES,
    UPSAMPLE,
)

LABEL_EMBEDDING = (
    Row("label_emb.0.0", "add_embedding.linear_1", ("time", 2816)),
    Row("label_emb.0.2", "add_embedding.linear_2", ("time", "time")),
)
RESNETS = (
    Group("", "", ENDS),
    Group("", "", LABEL_EMBEDDING),
    Group("input_blocks.{1-2}.0", "down_blocks.0.resnets.{0-1}", RESNET, {"in": 320, "out": 320}),
    Group("input_blocks.3.0", "down_blocks.0.downsamplers.0", DOWNSAMPLE, {"width": 320}),
    Group("input_blocks.4.0", "down_blocks.1.resnets.0", RESNET_SKIP, {"in": 320, "out": 640}),
    Group("input_blocks.5.0", "down_blocks.1.resnets.1", RESNET, {"in": 640, "out": 640}),
    Group("input_blocks.6.0", "down_blocks.1.downsamplers.0", DOWNSAMPLE, {"width": 640}),
    Group("input_blocks.7.0", "down_blocks.2.resnets.0", RESNET_SKIP, {"in": 640, "out": 1280}),
    Group("input_blocks.8.0", "down_blocks.2.resnets.1", RESNET, {"in": 1280, "out": 1280}),
    Group("middle_block.0", "mid_block.resnets.0", RESNET, {"in": 1280, "out": 1280}),
    Group("middle_block.2", "mid_block.resnets.1", RESNET, {"in": 1280, "out": 1280}),
    Group("output_blocks.{0-1}.0", "up_blocks.0.resnets.{0-1}", RESNET_SKIP, {"in": 2560, "out": 1280}),
    Group("output_blocks.2.0", "up_blocks.0.resnets.2", RESNET_SKIP, {"in": 1920, "out": 1280}),
    Group("output_blocks.2.2", "up_blocks.0.upsamplers.0", UPSAMPLE, {"width": 1280}),
    Group("output_blocks.3.0", "up_blocks.1.resnets.0", RESNET_SKIP, {"in": 1920, "out": 640}),
    Group("output_blocks.4.0", "up_blocks.1.resnets.1", RESNET_SKIP, {"in": 1280, "out": 640}),
    Group("output_blocks.5.0", "up_blocks.1.resnets.2", RESNET_SKIP, {"in": 960, "out": 640}),
    Group("output_blocks.5.2", "up_blocks.1.upsamplers.0", UPSAMPLE, {"width": 640}),
    Group("output_blocks.6.0", "up_blocks.2.resnets.0", RESNET_SKIP, {"in": 960, "out": 320}),
    Group("output_blocks.{7-8}.0", "up_blocks.2.resnets.{1-2}", RESNET_SKIP, {"in": 640, "out": 320}),
)
ATTENTIONS = (  # original name, Diffusers name, last transformer block, width
    ("input_blocks.{4-5}.1", "down_blocks.1.attentions.{0-1}", 1, 640),
    ("input_blocks.{7-8}.1", "down_blocks.2.attentions.{0-1}", 9, 1280),
    ("output_blocks.{0-2}.1", "up_blocks.0.attentions.{0-2}", 9, 1280),
    ("output_blocks.{3-5}.1", "up_blocks.1.attentions.{0-2}", 1, 640),
    ("middle_block.1", "mid_block.attentions.0", 9, 1280),
)

SDXL = Architecture(
    id="sdxl",
    name="Stable Diffusion XL",
    components=(
        Component(
            "denoiser",
            groups=(
                *RESNETS,
                *(
                    Group(original, diffusers, SPATIAL_LINEAR, {"width": width})
                    for original, diffusers, _, width in ATTENTIONS
                ),
                *(
                    Group(
                        f"{original}.transformer_blocks.{{0-{last}}}",
                        f"{diffusers}.transformer_blocks.{{0-{last}}}",
                        TRANSFORMER,
                        {"width": width},
                    )
                    for original, diffusers, last, width in ATTENTIONS
                ),
            ),
            sizes={"first": 320, "time": 1280, "latent": 4, "context": 2048},
            prefixes=UNET_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="unet",
            positional=tuple(
                Positional(f"{diffusers}.transformer_blocks.{{0-{last}}}", TRANSFORMER_POSITIONS)
                for _, diffusers, last, _ in ATTENTIONS
            ),
        ),
        Component(
            "clip_l",
            groups=(
                Group("text_model", "text_model", CLIP_ENDS),
                Group("text_model.encoder.layers.{0-11}", "text_model.encoder.layers.{0-11}", CLIP_LAYER),
            ),
            sizes={"width": 768},
            prefixes={
                "kohya": ("lora_te1",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.clip_l.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("conditioner.embedders.0.transformer",),
            folder="text_encoder",
        ),
        Component(
            "clip_g",
            groups=(
                Group("text_model", "text_model", CLIP_ENDS),
                Group("text_model.encoder.layers.{0-31}", "text_model.encoder.layers.{0-31}", CLIP_LAYER),
                Group("", "", (Row("text_projection", "text_projection", ("width", "width")),)),
            ),
            sizes={"width": 1280},
            prefixes={
                "kohya": ("lora_te2",),
                "diffusers": ("text_encoder_2",),
                "comfy": ("text_encoders.clip_g.transformer",),
                "peft": ("text_encoder_2.base_model.model",),
            },
            checkpoint=("conditioner.embedders.1.model",),
            folder="text_encoder_2",
        ),
    ),
    kohya_naming="original",
    metadata={
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
    hints={
        "ss_base_model_version": ("sdxl",),
        "modelspec.architecture": ("stable-diffusion-xl-v1-base", "stable-diffusion-xl-v1.0-base"),
    },
)
