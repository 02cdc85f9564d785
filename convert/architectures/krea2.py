"""Krea 2. Names and shapes: the released checkpoint, which ComfyUI loads, and Diffusers' Krea2Transformer2DModel."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Row
from .blocks import DIT_PREFIXES

BLOCK = (
    Row("attn.wq", "attn.to_q", ("width", "width")),
    Row("attn.wk", "attn.to_k", ("keys", "width")),
    Row("attn.wv", "attn.to_v", ("keys", "width")),
    Row("attn.gate", "attn.to_gate", ("width", "width")),
    Row("attn.wo", "attn.to_out.0", ("width", "width")),
    Row("attn.qknorm.qnorm", "attn.norm_q", (128,)),
    Row("attn.qknorm.knorm", "attn.norm_k", (128,)),
    Row("mlp.gate", "ff.gate", ("mlp", "width")),
    Row("mlp.up", "ff.up", ("mlp", "width")),
    Row("mlp.down", "ff.down", ("width", "mlp")),
    Row("prenorm", "norm1", ("width",)),
    Row("postnorm", "norm2", ("width",)),
)
ENDS = (
    Row("first", "img_in", ("width", 64)),
    Row("tmlp.0", "time_embed.linear_1", ("width", 256)),
    Row("tmlp.2", "time_embed.linear_2", ("width", "width")),
    Row("tproj.1", "time_mod_proj", ("6*width", "width")),
    Row("txtfusion.projector", "text_fusion.projector", (1, 12)),  # from twelve layers of the text encoder
    Row("txtmlp.0", "txt_in.norm", ("context",)),
    Row("txtmlp.1", "txt_in.linear_1", ("width", "context")),
    Row("txtmlp.3", "txt_in.linear_2", ("width", "width")),
    Row("last.norm", "final_layer.norm", ("width",)),
    Row("last.linear", "final_layer.linear", (64, "width")),
)
TEXT_SIZES = {"width": 2560, "keys": 2560, "mlp": 6912}

KREA2 = Architecture(
    id="krea2",
    name="Krea 2",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", ENDS),
                Group("txtfusion.layerwise_blocks.{0-1}", "text_fusion.layerwise_blocks.{0-1}", BLOCK, TEXT_SIZES),
                Group("txtfusion.refiner_blocks.{0-1}", "text_fusion.refiner_blocks.{0-1}", BLOCK, TEXT_SIZES),
                Group("blocks.{0-27}", "transformer_blocks.{0-27}", BLOCK),
            ),
            sizes={"width": 6144, "keys": 1536, "mlp": 16384, "context": 2560},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    metadata={"ss_base_model_version": "krea2", "modelspec.architecture": "Krea-2/lora"},
    hints={"ss_base_model_version": ("krea2",), "modelspec.architecture": ("Krea-2",)},
    namings=(Naming("krea2-out", of="diffusers", endings=((".to_out.0", ".to_out"),)),),
)
