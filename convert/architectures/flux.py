"""FLUX.1: dev, schnell, Fill, Kontext and the control models, which differ in no module that adapters are trained for.

Names and shapes: Black Forest Labs' model and Diffusers' FluxTransformer2DModel. Fill and the control models take more
channels at `img_in`; schnell has no `guidance_in`.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming
from .blocks import FLAT_DIT_PREFIXES
from .flux_blocks import BODY, EMBEDDER, IN, OUT
from .text_encoders import CLIP_L, CLIP_L_SIZES, T5XXL, T5XXL_SIZES

FLUX = Architecture(
    id="flux",
    name="FLUX.1",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*IN, *OUT)),
                Group("time_in", "time_text_embed.timestep_embedder", EMBEDDER, {"in": 256}),
                Group("guidance_in", "time_text_embed.guidance_embedder", EMBEDDER, {"in": 256}),
                Group("vector_in", "time_text_embed.text_embedder", EMBEDDER, {"in": 768}),
                *BODY,
            ),
            sizes={"width": 3072, "latent": 64, "context": 4096},
            prefixes=FLAT_DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
        Component(
            "clip_l",
            groups=CLIP_L,
            sizes=CLIP_L_SIZES,
            prefixes={
                "kohya": ("lora_te1", "lora_te"),
                "onetrainer": ("lora_te1",),
                "diffusers": ("text_encoder",),
                "comfy": ("text_encoders.clip_l.transformer",),
                "peft": ("text_encoder.base_model.model",),
            },
            checkpoint=("text_encoders.clip_l.transformer",),
            folder="text_encoder",
        ),
        Component(
            "t5xxl",
            groups=T5XXL,
            sizes=T5XXL_SIZES,
            prefixes={
                "kohya": ("lora_te3", "lora_te2"),  # sd-scripts, OneTrainer
                "onetrainer": ("lora_te2",),
                "diffusers": ("text_encoder_2",),
                "comfy": ("text_encoders.t5xxl.transformer",),
                "peft": ("text_encoder_2.base_model.model",),
            },
            checkpoint=("text_encoders.t5xxl.transformer",),
            folder="text_encoder_2",
        ),
    ),
    namings=(
        Naming(
            "xlabs",
            of="original",
            endings=(
                ("img_attn.qkv", "processor.qkv_lora1"),
                ("img_attn.proj", "processor.proj_lora1"),
                ("txt_attn.qkv", "processor.qkv_lora2"),
                ("txt_attn.proj", "processor.proj_lora2"),
                ("linear1", "processor.qkv_lora"),  # USO; no layer on the MLP's rows
                ("linear2", "processor.proj_lora"),
            ),
            spans={"processor.qkv_lora": 3},
            suffixes=("processor",),
        ),
        Naming("trailing-underscore", of="diffusers", endings=(("", "_"),)),  # TheLastBen's: lora_unet_..._attn_to_q_
    ),
    kohya_naming="original",
    aitoolkit=("diffusers", "diffusers"),
    metadata={
        "ss_base_model_version": "flux1",
        "modelspec.architecture": "flux-1-dev/lora",
    },
    hints={
        "ss_base_model_version": ("flux1", "flux.1", "flux_kontext"),
        "modelspec.architecture": ("flux-1", "Flux.1"),
    },
)
