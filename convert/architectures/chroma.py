"""Chroma: Flux' body without modulation layers, which one distilled guidance network replaces.

Names and shapes: the published checkpoint and Diffusers' ChromaTransformer2DModel.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import FLAT_DIT_PREFIXES
from .flux_blocks import DOUBLE_ATTENTION, DOUBLE_MLP, IN, PROJ_OUT, SINGLE_LINEAR, SINGLE_NORMS
from .text_encoders import T5XXL, T5XXL_SIZES

GUIDANCE = (
    Row("in_proj", "in_proj", ("guidance", "latent")),
    Row("layers.{0-4}.in_layer", "layers.{0-4}.linear_1", ("guidance", "guidance")),
    Row("layers.{0-4}.out_layer", "layers.{0-4}.linear_2", ("guidance", "guidance")),
    Row("norms.{0-4}", "norms.{0-4}", ("guidance",)),
    Row("out_proj", "out_proj", ("width", "guidance")),
)

CHROMA = Architecture(
    id="chroma",
    name="Chroma",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*IN, *PROJ_OUT)),
                Group("distilled_guidance_layer", "distilled_guidance_layer", GUIDANCE),
                Group("double_blocks.{0-18}", "transformer_blocks.{0-18}", (*DOUBLE_ATTENTION, *DOUBLE_MLP)),
                Group("single_blocks.{0-37}", "single_transformer_blocks.{0-37}", (*SINGLE_LINEAR, *SINGLE_NORMS)),
            ),
            sizes={"width": 3072, "latent": 64, "context": 4096, "guidance": 5120},
            prefixes=FLAT_DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "t5xxl",
            groups=T5XXL,
            sizes=T5XXL_SIZES,
            prefixes={
                "kohya": ("lora_te1", "lora_te3", "lora_te"),  # OneTrainer and ComfyUI, sd-scripts, old OneTrainer
                "onetrainer": ("lora_te",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.t5xxl.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.t5xxl.transformer",),
            folder="text_encoder",
        ),
    ),
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
    metadata={
        "ss_base_model_version": "chroma",
        "modelspec.architecture": "chroma/lora",
    },
    hints={
        "ss_base_model_version": ("chroma",),
        "modelspec.architecture": ("chroma", "Chroma"),
    },
)
