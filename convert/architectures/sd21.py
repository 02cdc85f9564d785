"""Stable Diffusion 2.x. Names and shapes: the v2 checkpoint, Diffusers' UNet, OpenCLIP ViT-H as transformers has it."""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import CLIP_ENDS, CLIP_LAYER, CLIP_POSITIONS, SD_UNET_POSITIONS, SPATIAL_LINEAR, UNET_PREFIXES
from .sd_unet import SD_ATTENTIONS, SD_RESNETS, SD_TRANSFORMERS

SD21 = Architecture(
    id="sd21",
    name="Stable Diffusion 2.x",
    components=(
        Component(
            "denoiser",
            groups=(
                *SD_RESNETS,
                *(
                    Group(original, diffusers, SPATIAL_LINEAR, {"width": width})
                    for original, diffusers, width in SD_ATTENTIONS
                ),
                *SD_TRANSFORMERS,
            ),
            sizes={"first": 320, "time": 1280, "latent": 4, "context": 1024},
            prefixes=UNET_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="unet",
            positional=SD_UNET_POSITIONS,
        ),
        Component(
            "clip_h",
            groups=(
                Group("text_model", "text_model", CLIP_ENDS),
                # 24 layers in OpenCLIP; transformers' conversion for SD 2.x holds 23, since the last one is never used
                Group("text_model.encoder.layers.{0-23}", "text_model.encoder.layers.{0-23}", CLIP_LAYER),
            ),
            sizes={"width": 1024},
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.clip_h.transformer",),
                "peft": ("text_encoder.base_model.model",),
                "positional": ("text_encoder",),
            },
            checkpoint=("cond_stage_model.model",),
            folder="text_encoder",
            positional=CLIP_POSITIONS,
        ),
    ),
    kohya_naming="diffusers",
    metadata={
        "ss_base_model_version": "sd_v2",
        "ss_v2": "True",
        "modelspec.architecture": "stable-diffusion-v2-512/lora",
    },
    hints={
        "ss_base_model_version": ("sd_v2", "sd_2"),
        "ss_v2": ("True",),
        "modelspec.architecture": ("stable-diffusion-v2",),
    },
)
