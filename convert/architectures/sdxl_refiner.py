"""Stable Diffusion XL refiner. Names and shapes: sd_xl_refiner_1.0 and Diffusers' UNet2DConditionModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DOWNSAMPLE, ENDS, RESNET, RESNET_SKIP, SPATIAL_LINEAR, TRANSFORMER, UNET_PREFIXES, UPSAMPLE
from .text_encoders import CLIP_G, CLIP_G_SIZES

LABEL_EMBEDDING = (
    Row("label_emb.0.0", "add_embedding.linear_1", ("time", 2560)),
    Row("label_emb.0.2", "add_embedding.linear_2", ("time", "time")),
)
RESNETS = (
    Group("input_blocks.{1-2}.0", "down_blocks.0.resnets.{0-1}", RESNET, {"in": 384, "out": 384}),
    Group("input_blocks.3.0", "down_blocks.0.downsamplers.0", DOWNSAMPLE, {"width": 384}),
    Group("input_blocks.4.0", "down_blocks.1.resnets.0", RESNET_SKIP, {"in": 384, "out": 768}),
    Group("input_blocks.5.0", "down_blocks.1.resnets.1", RESNET, {"in": 768, "out": 768}),
    Group("input_blocks.6.0", "down_blocks.1.downsamplers.0", DOWNSAMPLE, {"width": 768}),
    Group("input_blocks.7.0", "down_blocks.2.resnets.0", RESNET_SKIP, {"in": 768, "out": 1536}),
    Group("input_blocks.8.0", "down_blocks.2.resnets.1", RESNET, {"in": 1536, "out": 1536}),
    Group("input_blocks.9.0", "down_blocks.2.downsamplers.0", DOWNSAMPLE, {"width": 1536}),
    Group("input_blocks.{10-11}.0", "down_blocks.3.resnets.{0-1}", RESNET, {"in": 1536, "out": 1536}),
    Group("middle_block.0", "mid_block.resnets.0", RESNET, {"in": 1536, "out": 1536}),
    Group("middle_block.2", "mid_block.resnets.1", RESNET, {"in": 1536, "out": 1536}),
    Group("output_blocks.{0-2}.0", "up_blocks.0.resnets.{0-2}", RESNET_SKIP, {"in": 3072, "out": 1536}),
    Group("output_blocks.2.1", "up_blocks.0.upsamplers.0", UPSAMPLE, {"width": 1536}),
    Group("output_blocks.{3-4}.0", "up_blocks.1.resnets.{0-1}", RESNET_SKIP, {"in": 3072, "out": 1536}),
    Group("output_blocks.5.0", "up_blocks.1.resnets.2", RESNET_SKIP, {"in": 2304, "out": 1536}),
    Group("output_blocks.5.2", "up_blocks.1.upsamplers.0", UPSAMPLE, {"width": 1536}),
    Group("output_blocks.6.0", "up_blocks.2.resnets.0", RESNET_SKIP, {"in": 2304, "out": 768}),
    Group("output_blocks.7.0", "up_blocks.2.resnets.1", RESNET_SKIP, {"in": 1536, "out": 768}),
    Group("output_blocks.8.0", "up_blocks.2.resnets.2", RESNET_SKIP, {"in": 1152, "out": 768}),
    Group("output_blocks.8.2", "up_blocks.2.upsamplers.0", UPSAMPLE, {"width": 768}),
    Group("output_blocks.9.0", "up_blocks.3.resnets.0", RESNET_SKIP, {"in": 1152, "out": 384}),
    Group("output_blocks.{10-11}.0", "up_blocks.3.resnets.{1-2}", RESNET_SKIP, {"in": 768, "out": 384}),
)
ATTENTIONS = (  # original name, Diffusers name, width
    ("input_blocks.{4-5}.1", "down_blocks.1.attentions.{0-1}", 768),
    ("input_blocks.{7-8}.1", "down_blocks.2.attentions.{0-1}", 1536),
    ("middle_block.1", "mid_block.attentions.0", 1536),
    ("output_blocks.{3-5}.1", "up_blocks.1.attentions.{0-2}", 1536),
    ("output_blocks.{6-8}.1", "up_blocks.2.attentions.{0-2}", 768),
)

SDXL_REFINER = Architecture(
    id="sdxl-refiner",
    name="Stable Diffusion XL refiner",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("", "", LABEL_EMBEDDING),
                *RESNETS,
                *(
                    Group(original, diffusers, SPATIAL_LINEAR, {"width": width})
                    for original, diffusers, width in ATTENTIONS
                ),
                *(
                    Group(
                        f"{original}.transformer_blocks.{{0-3}}",
                        f"{diffusers}.transformer_blocks.{{0-3}}",
                        TRANSFORMER,
                        {"width": width},
                    )
                    for original, diffusers, width in ATTENTIONS
                ),
            ),
            sizes={"first": 384, "time": 1536, "latent": 4, "context": 1280},
            prefixes=UNET_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="unet",
        ),
        Component(
            "clip_g",
            groups=CLIP_G,
            sizes=CLIP_G_SIZES,
            prefixes={
                "kohya": ("lora_te", "lora_te2"),  # ComfyUI reads the first where CLIP-G is alone
                "diffusers": ("text_encoder_2",),
                "comfy": ("text_encoders.clip_g.transformer",),
                "peft": ("text_encoder_2.base_model.model",),
            },
            checkpoint=("conditioner.embedders.0.model",),
            folder="text_encoder_2",
        ),
    ),
    metadata={"modelspec.architecture": "stable-diffusion-xl-v1-refiner/lora"},
    hints={"modelspec.architecture": ("stable-diffusion-xl-v1-refiner",)},
)
