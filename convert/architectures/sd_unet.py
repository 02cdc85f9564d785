"""The UNet body that SD 1.x and SD 2.x share."""

from __future__ import annotations

from ..model import Group
from .blocks import DOWNSAMPLE, ENDS, RESNET, RESNET_SKIP, TRANSFORMER, UPSAMPLE

SD_RESNETS = (
    Group("", "", ENDS),
    Group("input_blocks.{1-2}.0", "down_blocks.0.resnets.{0-1}", RESNET, {"in": 320, "out": 320}),
    Group("input_blocks.3.0", "down_blocks.0.downsamplers.0", DOWNSAMPLE, {"width": 320}),
    Group("input_blocks.4.0", "down_blocks.1.resnets.0", RESNET_SKIP, {"in": 320, "out": 640}),
    Group("input_blocks.5.0", "down_blocks.1.resnets.1", RESNET, {"in": 640, "out": 640}),
    Group("input_blocks.6.0", "down_blocks.1.downsamplers.0", DOWNSAMPLE, {"width": 640}),
    Group("input_blocks.7.0", "down_blocks.2.resnets.0", RESNET_SKIP, {"in": 640, "out": 1280}),
    Group("input_blocks.8.0", "down_blocks.2.resnets.1", RESNET, {"in": 1280, "out": 1280}),
    Group("input_blocks.9.0", "down_blocks.2.downsamplers.0", DOWNSAMPLE, {"width": 1280}),
    Group("input_blocks.{10-11}.0", "down_blocks.3.resnets.{0-1}", RESNET, {"in": 1280, "out": 1280}),
    Group("middle_block.0", "mid_block.resnets.0", RESNET, {"in": 1280, "out": 1280}),
    Group("middle_block.2", "mid_block.resnets.1", RESNET, {"in": 1280, "out": 1280}),
    Group("output_blocks.{0-2}.0", "up_blocks.0.resnets.{0-2}", RESNET_SKIP, {"in": 2560, "out": 1280}),
    Group("output_blocks.2.1", "up_blocks.0.upsamplers.0", UPSAMPLE, {"width": 1280}),
    Group("output_blocks.{3-4}.0", "up_blocks.1.resnets.{0-1}", RESNET_SKIP, {"in": 2560, "out": 1280}),
    Group("output_blocks.5.0", "up_blocks.1.resnets.2", RESNET_SKIP, {"in": 1920, "out": 1280}),
    Group("output_blocks.5.2", "up_blocks.1.upsamplers.0", UPSAMPLE, {"width": 1280}),
    Group("output_blocks.6.0", "up_blocks.2.resnets.0", RESNET_SKIP, {"in": 1920, "out": 640}),
    Group("output_blocks.7.0", "up_blocks.2.resnets.1", RESNET_SKIP, {"in": 1280, "out": 640}),
    Group("output_blocks.8.0", "up_blocks.2.resnets.2", RESNET_SKIP, {"in": 960, "out": 640}),
    Group("output_blocks.8.2", "up_blocks.2.upsamplers.0", UPSAMPLE, {"width": 640}),
    Group("output_blocks.9.0", "up_blocks.3.resnets.0", RESNET_SKIP, {"in": 960, "out": 320}),
    Group("output_blocks.{10-11}.0", "up_blocks.3.resnets.{1-2}", RESNET_SKIP, {"in": 640, "out": 320}),
)
SD_ATTENTIONS = (  # original name, Diffusers name, width
    ("input_blocks.{1-2}.1", "down_blocks.0.attentions.{0-1}", 320),
    ("input_blocks.{4-5}.1", "down_blocks.1.attentions.{0-1}", 640),
    ("input_blocks.{7-8}.1", "down_blocks.2.attentions.{0-1}", 1280),
    ("middle_block.1", "mid_block.attentions.0", 1280),
    ("output_blocks.{3-5}.1", "up_blocks.1.attentions.{0-2}", 1280),
    ("output_blocks.{6-8}.1", "up_blocks.2.attentions.{0-2}", 640),
    ("output_blocks.{9-11}.1", "up_blocks.3.attentions.{0-2}", 320),
)
SD_TRANSFORMERS = tuple(
    Group(f"{original}.transformer_blocks.0", f"{diffusers}.transformer_blocks.0", TRANSFORMER, {"width": width})
    for original, diffusers, width in SD_ATTENTIONS
)
