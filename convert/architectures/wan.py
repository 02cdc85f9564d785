"""The body and the text encoder that the Wan families share; SkyReels V2 has the same body."""

from __future__ import annotations

from ..model import Component, Row
from .text_encoders import UMT5XXL, UMT5XXL_SIZES

WAN_ENDS = (
    Row("patch_embedding", "patch_embedding", ("width", "latent", 1, 2, 2)),
    Row("text_embedding.0", "condition_embedder.text_embedder.linear_1", ("width", 4096)),
    Row("text_embedding.2", "condition_embedder.text_embedder.linear_2", ("width", "width")),
    Row("time_embedding.0", "condition_embedder.time_embedder.linear_1", ("width", 256)),
    Row("time_embedding.2", "condition_embedder.time_embedder.linear_2", ("width", "width")),
    Row("time_projection.1", "condition_embedder.time_proj", ("6*width", "width")),
    Row("head.head", "proj_out", ("patch", "width")),
    Row("head.modulation", "scale_shift_table", (1, 2, "width")),  # a parameter of its own
)
WAN_BLOCK = (
    Row("self_attn.q", "attn1.to_q", ("width", "width")),
    Row("self_attn.k", "attn1.to_k", ("width", "width")),
    Row("self_attn.v", "attn1.to_v", ("width", "width")),
    Row("self_attn.o", "attn1.to_out.0", ("width", "width")),
    Row("self_attn.norm_q", "attn1.norm_q", ("width",)),
    Row("self_attn.norm_k", "attn1.norm_k", ("width",)),
    Row("cross_attn.q", "attn2.to_q", ("width", "width")),
    Row("cross_attn.k", "attn2.to_k", ("width", "width")),
    Row("cross_attn.v", "attn2.to_v", ("width", "width")),
    Row("cross_attn.o", "attn2.to_out.0", ("width", "width")),
    Row("cross_attn.norm_q", "attn2.norm_q", ("width",)),
    Row("cross_attn.norm_k", "attn2.norm_k", ("width",)),
    Row("norm3", "norm2", ("width",)),  # Wan runs norm1, norm3, norm2; Diffusers counts in that order
    Row("ffn.0", "ffn.net.0.proj", ("mlp", "width")),
    Row("ffn.2", "ffn.net.2", ("width", "mlp")),
    Row("modulation", "scale_shift_table", (1, 6, "width")),  # a parameter of its own
)
WAN_IMAGE_ENDS = (  # image to video of Wan 2.1: the picture's CLIP features
    Row("img_emb.proj.0", "condition_embedder.image_embedder.norm1", (1280,)),
    Row("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj", (1280, 1280)),
    Row("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2", ("width", 1280)),
    Row("img_emb.proj.4", "condition_embedder.image_embedder.norm2", ("width",)),
)
WAN_IMAGE_BLOCK = (
    Row("cross_attn.k_img", "attn2.add_k_proj", ("width", "width")),
    Row("cross_attn.v_img", "attn2.add_v_proj", ("width", "width")),
    Row("cross_attn.norm_k_img", "attn2.norm_added_k", ("width",)),
)

WAN_TEXT_ENCODER = Component(
    "umt5xxl",
    groups=UMT5XXL,
    sizes=UMT5XXL_SIZES,
    prefixes={
        "kohya": ("lora_te", "lora_te1"),
        "diffusers": ("text_encoder",),
        "comfy": ("text_encoders.umt5xxl.transformer",),
        "peft": ("text_encoder.base_model.model",),
    },
    checkpoint=("text_encoders.umt5xxl.transformer",),
    folder="text_encoder",
)
WAN_METADATA = {"ss_base_model_version": "wan", "modelspec.architecture": "wan2.1/lora"}
