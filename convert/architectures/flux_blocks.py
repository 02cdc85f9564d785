"""Blocks that Flux and its kin share: rows below a group's name.

Sources: Black Forest Labs' model (the names that ComfyUI has) and Diffusers' FluxTransformer2DModel; row blocks and
swapped halves: Diffusers' conversion of single-file checkpoints.
"""

from __future__ import annotations

from ..model import Group, Row

EMBEDDER = (
    Row("in_layer", "linear_1", ("width", "in")),
    Row("out_layer", "linear_2", ("width", "width")),
)

DOUBLE_ATTENTION = (
    Row("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), ("3*width", "width")),
    Row("img_attn.norm.query_norm", "attn.norm_q", (128,)),
    Row("img_attn.norm.key_norm", "attn.norm_k", (128,)),
    Row("img_attn.proj", "attn.to_out.0", ("width", "width")),
    Row("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), ("3*width", "width")),
    Row("txt_attn.norm.query_norm", "attn.norm_added_q", (128,)),
    Row("txt_attn.norm.key_norm", "attn.norm_added_k", (128,)),
    Row("txt_attn.proj", "attn.to_add_out", ("width", "width")),
)
DOUBLE_MLP = (
    Row("img_mlp.0", "ff.net.0.proj", ("4*width", "width")),
    Row("img_mlp.2", "ff.net.2", ("width", "4*width")),
    Row("txt_mlp.0", "ff_context.net.0.proj", ("4*width", "width")),
    Row("txt_mlp.2", "ff_context.net.2", ("width", "4*width")),
)
DOUBLE_MODULATION = (
    Row("img_mod.lin", "norm1.linear", ("6*width", "width")),
    Row("txt_mod.lin", "norm1_context.linear", ("6*width", "width")),
)
DOUBLE = (*DOUBLE_MODULATION, *DOUBLE_ATTENTION, *DOUBLE_MLP)

SINGLE_NORMS = (
    Row("norm.query_norm", "attn.norm_q", (128,)),
    Row("norm.key_norm", "attn.norm_k", (128,)),
)
SINGLE_LINEAR = (
    Row(
        "linear1",
        ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        ("7*width", "width"),
        blocks=("width", "width", "width", "4*width"),
    ),
    Row("linear2", "proj_out", ("width", "5*width")),
)
SINGLE_MODULATION = (Row("modulation.lin", "norm.linear", ("3*width", "width")),)
SINGLE = (*SINGLE_LINEAR, *SINGLE_NORMS, *SINGLE_MODULATION)

IN = (
    Row("img_in", "x_embedder", ("width", "latent")),
    Row("txt_in", "context_embedder", ("width", "context")),
)
PROJ_OUT = (Row("final_layer.linear", "proj_out", ("latent", "width")),)
NORM_OUT = (Row("final_layer.adaLN_modulation.1", "norm_out.linear", ("2*width", "width"), swapped=True),)
OUT = (*PROJ_OUT, *NORM_OUT)

BODY = (  # 19 double and 38 single blocks: Flux, LongCat-Image
    Group("double_blocks.{0-18}", "transformer_blocks.{0-18}", DOUBLE),
    Group("single_blocks.{0-37}", "single_transformer_blocks.{0-37}", SINGLE),
)
