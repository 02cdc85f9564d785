"""ControlNets of Stable Diffusion XL and Stability's Control-LoRAs. Names and shapes: Diffusers' ControlNetModel.

The format is also used for the encoder of SD 1.x, whose further blocks are named too.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group
from .blocks import DOWNSAMPLE, ENDS, RESNET, SPATIAL_CONV, SPATIAL_LINEAR, TRANSFORMER
from .controlnet import CONTROLNET_PREFIXES, HINT, ZERO_CONVOLUTION
from .sdxl import ATTENTIONS, LABEL_EMBEDDING, RESNETS

ENCODER = ("input_blocks", "middle_block")
SD1_ONLY = (  # blocks of SD 1.x's encoder that SDXL has not
    Group("input_blocks.{1-2}.1", "down_blocks.0.attentions.{0-1}", SPATIAL_CONV, {"width": 320}),
    Group(
        "input_blocks.{1-2}.1.transformer_blocks.0",
        "down_blocks.0.attentions.{0-1}.transformer_blocks.0",
        TRANSFORMER,
        {"width": 320, "context": 768},
    ),
    Group("input_blocks.9.0", "down_blocks.2.downsamplers.0", DOWNSAMPLE, {"width": 1280}),
    Group("input_blocks.{10-11}.0", "down_blocks.3.resnets.{0-1}", RESNET, {"in": 1280, "out": 1280}),
    Group("zero_convs.{9-11}", "controlnet_down_blocks.{9-11}", ZERO_CONVOLUTION, {"width": 1280}),
)

SDXL_CONTROLNET = Architecture(
    id="sdxl-controlnet",
    name="ControlNet for Stable Diffusion (Control-LoRA)",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS[:3]),
                Group("", "", LABEL_EMBEDDING),
                *(group for group in RESNETS if group.original.startswith(ENCODER)),
                *(
                    Group(original, diffusers, SPATIAL_LINEAR, {"width": width})
                    for original, diffusers, _, width in ATTENTIONS
                    if original.startswith(ENCODER)
                ),
                *(
                    Group(
                        f"{original}.transformer_blocks.{{0-{last}}}",
                        f"{diffusers}.transformer_blocks.{{0-{last}}}",
                        TRANSFORMER,
                        {"width": width},
                    )
                    for original, diffusers, last, width in ATTENTIONS
                    if original.startswith(ENCODER)
                ),
                *SD1_ONLY,
                HINT,
                Group("zero_convs.{0-3}", "controlnet_down_blocks.{0-3}", ZERO_CONVOLUTION, {"width": 320}),
                Group("zero_convs.{4-6}", "controlnet_down_blocks.{4-6}", ZERO_CONVOLUTION, {"width": 640}),
                Group("zero_convs.{7-8}", "controlnet_down_blocks.{7-8}", ZERO_CONVOLUTION, {"width": 1280}),
                Group("middle_block_out", "controlnet_mid_block", ZERO_CONVOLUTION, {"width": 1280}),
            ),
            sizes={"first": 320, "time": 1280, "latent": 4, "context": 2048},
            prefixes=CONTROLNET_PREFIXES,
            checkpoint=("control_model",),
            folder="controlnet",
        ),
    ),
    aitoolkit=("diffusers", "diffusers"),
)
