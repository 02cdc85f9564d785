"""HiDream-I1 and E1. Names and shapes: ComfyUI's and Diffusers' HiDreamImageTransformer2DModel, which agree."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .text_encoders import (
    CLIP_G,
    CLIP_G_SIZES,
    CLIP_L_PROJECTED,
    CLIP_L_SIZES,
    LLAMA31_8B,
    LLAMA31_8B_SIZES,
    T5XXL,
    T5XXL_SIZES,
)

IMAGE = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("attn1.to_q", ("width", "width")),
        ("attn1.to_k", ("width", "width")),
        ("attn1.to_v", ("width", "width")),
        ("attn1.to_out", ("width", "width")),
        ("attn1.q_rms_norm", ("width",)),
        ("attn1.k_rms_norm", ("width",)),
        ("ff_i.gate", (4, "width")),
        ("ff_i.shared_experts.w1", ("shared", "width")),
        ("ff_i.shared_experts.w2", ("width", "shared")),
        ("ff_i.shared_experts.w3", ("shared", "width")),
        ("ff_i.experts.{0-3}.w1", ("mlp", "width")),
        ("ff_i.experts.{0-3}.w2", ("width", "mlp")),
        ("ff_i.experts.{0-3}.w3", ("mlp", "width")),
    )
)
TEXT = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("attn1.to_q_t", ("width", "width")),
        ("attn1.to_k_t", ("width", "width")),
        ("attn1.to_v_t", ("width", "width")),
        ("attn1.to_out_t", ("width", "width")),
        ("attn1.q_rms_norm_t", ("width",)),
        ("attn1.k_rms_norm_t", ("width",)),
        ("ff_t.w1", ("mlp", "width")),
        ("ff_t.w2", ("width", "mlp")),
        ("ff_t.w3", ("mlp", "width")),
    )
)
DOUBLE = (*IMAGE, *TEXT, Row("adaLN_modulation.1", "adaLN_modulation.1", ("12*width", "width")))
SINGLE = (*IMAGE, Row("adaLN_modulation.1", "adaLN_modulation.1", ("6*width", "width")))
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("t_embedder.timestep_embedder.linear_1", ("width", 256)),
        ("t_embedder.timestep_embedder.linear_2", ("width", "width")),
        ("p_embedder.pooled_embedder.linear_1", ("width", 2048)),
        ("p_embedder.pooled_embedder.linear_2", ("width", "width")),
        ("x_embedder.proj", ("width", 64)),
        ("caption_projection.{0-48}.linear", ("width", 4096)),
        ("final_layer.linear", (64, "width")),
        ("final_layer.adaLN_modulation.1", ("2*width", "width")),
    )
)
TEXT_ENCODERS = (  # name in ComfyUI, groups, sizes, kohya's prefix, folder
    ("clip_l", CLIP_L_PROJECTED, CLIP_L_SIZES, "lora_te1", "text_encoder"),
    ("clip_g", CLIP_G, CLIP_G_SIZES, "lora_te2", "text_encoder_2"),
    ("t5xxl", T5XXL, T5XXL_SIZES, "lora_te3", "text_encoder_3"),
    ("llama", LLAMA31_8B, LLAMA31_8B_SIZES, "lora_te4", "text_encoder_4"),
)

HIDREAM = Architecture(
    id="hidream",
    name="HiDream-I1",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("double_stream_blocks.{0-15}.block", "double_stream_blocks.{0-15}.block", DOUBLE),
                Group("single_stream_blocks.{0-31}.block", "single_stream_blocks.{0-31}.block", SINGLE),
            ),
            sizes={"width": 2560, "mlp": 6912, "shared": 3584},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        *(
            Component(
                id,
                groups=groups,
                sizes=sizes,
                prefixes={
                    "kohya": (kohya,),
                    "diffusers": (folder,),
                    "comfy": (f"text_encoders.{id}.transformer",),
                    "peft": (f"{folder}.base_model.model",),
                },
                checkpoint=(f"text_encoders.{id}.transformer",),
                folder=folder,
            )
            for id, groups, sizes, kohya, folder in TEXT_ENCODERS
        ),
    ),
    metadata={"ss_base_model_version": "hidream_i1", "modelspec.architecture": "hidream-i1/lora"},
    hints={"ss_base_model_version": ("hidream_i1", "hidream_e1"), "modelspec.architecture": ("hidream-i1",)},
)
