"""LTX-Video 2B. Names and shapes: Lightricks' checkpoint and Diffusers' LTXVideoTransformer3DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .ltx import LTX_ADALN, LTX_ATTENTION, LTX_CAPTION, LTX_FEED_FORWARD
from .text_encoders import T5XXL, T5XXL_SIZES

ENDS = (
    Row("patchify_proj", "proj_in", ("width", 128)),
    Row("proj_out", "proj_out", (128, "width")),
)

LTX_VIDEO = Architecture(
    id="ltx-video",
    name="LTX-Video 2B",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("adaln_single", "time_embed", LTX_ADALN),
                Group("caption_projection", "caption_projection", LTX_CAPTION),
                Group("transformer_blocks.{0-27}.attn1", "transformer_blocks.{0-27}.attn1", LTX_ATTENTION),
                Group("transformer_blocks.{0-27}.attn2", "transformer_blocks.{0-27}.attn2", LTX_ATTENTION),
                Group("transformer_blocks.{0-27}.ff", "transformer_blocks.{0-27}.ff", LTX_FEED_FORWARD),
            ),
            sizes={"width": 2048, "inner": 2048, "context": 2048, "caption": 4096, "modulation": 6 * 2048},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "t5xxl",
            groups=T5XXL,
            sizes=T5XXL_SIZES,
            prefixes={
                "kohya": ("lora_te1", "lora_te"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.t5xxl.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.t5xxl.transformer",),
            folder="text_encoder",
        ),
    ),
)
