"""Ovis-Image: a smaller Flux whose MLPs are gated.

Names and shapes: ComfyUI's Flux with gated MLPs (the original names), Diffusers' OvisImageTransformer2DModel and its
conversion script. In the double blocks Diffusers stacks `up_proj` on `gate_proj`, the only place where it fuses what
the original keeps apart: that weight stands here under Diffusers' name.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Row
from .blocks import DIT_PREFIXES
from .flux_blocks import DOUBLE_ATTENTION, DOUBLE_MODULATION, EMBEDDER, IN, OUT, SINGLE_MODULATION, SINGLE_NORMS
from .text_encoders import QWEN3_06B

OVIS_DOUBLE = (
    *DOUBLE_ATTENTION,
    *DOUBLE_MODULATION,
    Row("img_mlp.down_proj", "ff.net.2", ("width", "4*width")),
    Row("txt_mlp.down_proj", "ff_context.net.2", ("width", "4*width")),
)
OVIS_FUSED = (
    Row("ff.net.0.proj", "ff.net.0.proj", ("8*width", "width")),
    Row("ff_context.net.0.proj", "ff_context.net.0.proj", ("8*width", "width")),
)
OVIS_SINGLE = (
    *SINGLE_NORMS,
    *SINGLE_MODULATION,
    Row(
        "linear1",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        ("11*width", "width"),
        blocks=("width", "width", "width", "8*width"),
    ),
    Row("linear2", "proj_out", ("width", "5*width")),
)

OVIS_IMAGE = Architecture(
    id="ovis-image",
    name="Ovis-Image",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*IN, *OUT, Row("txt_norm", "context_embedder_norm", ("context",)))),
                Group("time_in", "timestep_embedder", EMBEDDER, {"in": 256}),
                Group("double_blocks.{0-5}", "transformer_blocks.{0-5}", OVIS_DOUBLE),
                Group("transformer_blocks.{0-5}", "transformer_blocks.{0-5}", OVIS_FUSED),
                Group("single_blocks.{0-26}", "single_transformer_blocks.{0-26}", OVIS_SINGLE),
            ),
            sizes={"width": 3072, "latent": 64, "context": 2048},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "qwen3_2b",
            groups=QWEN3_06B,  # as many layers, but wider
            sizes={"width": 2048, "queries": 2048, "keys": 1024, "mlp": 6144, "vocabulary": 151936},
            prefixes={
                "kohya": ("lora_te", "lora_te1"),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen3_2b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen3_2b.transformer",),
            folder="text_encoder",
        ),
    ),
    namings=(Naming("ovis", of="original", beginning=("txt_", "semantic_txt_")),),  # the published checkpoint's
    kohya_naming="original",
    aitoolkit=("diffusers", "diffusers"),
)
