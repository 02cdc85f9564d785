"""Anima: the body of Cosmos-Predict2 2B, an adapter between language model and body, and Qwen3 0.6B.

Names and shapes: CircleStone Labs' checkpoint and Diffusers' CosmosTransformer3DModel. Diffusers holds the adapter
(`llm_adapter`) outside of the transformer, as `text_conditioner`, with the same names inside.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .cosmos import COSMOS_2B, COSMOS_2B_SIZES
from .text_encoders import QWEN3_06B, QWEN3_06B_SIZES

ADAPTER_ENDS = (
    Row("embed", "embed", (32128, 1024)),
    Row("out_proj", "out_proj", (1024, 1024)),
    Row("norm", "norm", (1024,)),
)
ADAPTER_ATTENTION = (
    Row("q_proj", "q_proj", (1024, 1024)),
    Row("k_proj", "k_proj", (1024, 1024)),
    Row("v_proj", "v_proj", (1024, 1024)),
    Row("o_proj", "o_proj", (1024, 1024)),
    Row("q_norm", "q_norm", (64,)),
    Row("k_norm", "k_norm", (64,)),
)
ADAPTER_BLOCK = (
    Row("norm_self_attn", "norm_self_attn", (1024,)),
    Row("norm_cross_attn", "norm_cross_attn", (1024,)),
    Row("norm_mlp", "norm_mlp", (1024,)),
    Row("mlp.0", "mlp.0", (4096, 1024)),
    Row("mlp.2", "mlp.2", (1024, 4096)),
)
ADAPTER = (
    Group("", "", ADAPTER_ENDS),
    Group("blocks.{0-5}", "blocks.{0-5}", ADAPTER_BLOCK),
    Group("blocks.{0-5}.self_attn", "blocks.{0-5}.self_attn", ADAPTER_ATTENTION),
    Group("blocks.{0-5}.cross_attn", "blocks.{0-5}.cross_attn", ADAPTER_ATTENTION),
)

ANIMA = Architecture(
    id="anima",
    name="Anima",
    components=(
        Component(
            "denoiser",
            groups=COSMOS_2B,
            sizes=COSMOS_2B_SIZES,
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model", "net"),
            folder="transformer",
        ),
        Component(
            "llm_adapter",
            groups=ADAPTER,
            prefixes={
                "kohya": ("lora_unet_llm_adapter", "lycoris_llm_adapter"),
                "diffusers": ("text_conditioner", "transformer.llm_adapter"),
                "comfy": ("diffusion_model.llm_adapter",),
                "peft": ("text_conditioner.base_model.model", "base_model.model.llm_adapter"),
                "bare": ("llm_adapter", "net.llm_adapter"),
            },
            checkpoint=("model.diffusion_model.llm_adapter", "net.llm_adapter"),
            folder="text_conditioner",
        ),
        Component(
            "qwen3_06b",
            groups=QWEN3_06B,
            sizes=QWEN3_06B_SIZES,
            prefixes={
                "kohya": ("lora_te",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.qwen3_06b.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.qwen3_06b.transformer",),
            folder="text_encoder",
        ),
    ),
    metadata={"ss_base_model_version": "anima", "modelspec.architecture": "anima-preview/lora"},
    hints={"ss_base_model_version": ("anima",), "modelspec.architecture": ("anima", "Anima")},
)
