"""Stable Diffusion 1.x. Names and shapes: CompVis' v1 checkpoint and Diffusers' UNet2DConditionModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import CLIP_ENDS, CLIP_LAYER, CLIP_POSITIONS, SD_UNET_POSITIONS, SPATIAL_CONV, UNET_PREFIXES
from .sd_unet import SD_ATTENTIONS, SD_RESNETS, SD_TRANSFORMERS

SD15 = Architecture(
    id="sd15",
    name="Stable Diffusion 1.x",
    components=(
        Component(
            "denoiser",
            groups=(
                *SD_RESNETS,
                *(
                    Group(original, diffusers, SPATIAL_CONV, {"width": width})
                    for original, diffusers, width in SD_ATTENTIONS
                ),
                *SD_TRANSFORMERS,
            ),
            sizes={"first": 320, "time": 1280, "latent": 4, "context": 768},
            prefixes=UNET_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="unet",
            positional=SD_UNET_POSITIONS,
        ),
        Component(
            "clip_l",
            groups=(
                Group("text_model", "text_model", CLIP_ENDS),
                Group("text_model.encoder.layers.{0-11}", "text_model.encoder.layers.{0-11}", CLIP_LAYER),
            ),
            sizes={"width": 768},
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.clip_l.transformer",),
                "peft": ("text_encoder.base_model.model",),
                "positional": ("text_encoder",),
            },
            checkpoint=("cond_stage_model.transformer",),
            folder="text_encoder",
            positional=CLIP_POSITIONS,
        ),
    ),
    kohya_naming="diffusers",
    metadata={
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    },
    hints={
        "ss_base_model_version": ("sd_v1", "sd_1"),
        "modelspec.architecture": ("stable-diffusion-v1",),
    },
)
