"""What the HunyuanVideo family adds to Flux' blocks: the text refiner, and the names of Tencent's own code.

Sources: ComfyUI's model (the original names), Diffusers' HunyuanVideo models and conversions, Tencent's code as the
trainers carry it. The halves are swapped in the last layer alone: a refiner block's modulation makes two gates, in the
same order everywhere.
"""

from __future__ import annotations

from ..model import Group, Naming, Row
from .flux_blocks import EMBEDDER, OUT

REFINER_BLOCK = (
    Row("adaLN_modulation.1", "norm_out.linear", ("2*width", "width")),
    Row("norm1", "norm1", ("width",)),
    Row("norm2", "norm2", ("width",)),
    Row("self_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), ("3*width", "width")),
    Row("self_attn.proj", "attn.to_out.0", ("width", "width")),
    Row("mlp.0", "ff.net.0.proj", ("4*width", "width")),
    Row("mlp.2", "ff.net.2", ("width", "4*width")),
)
HUNYUAN_ENDS = (
    Group("", "", OUT),
    Group("txt_in", "context_embedder", (Row("input_embedder", "proj_in", ("width", "context")),)),
    Group("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder", EMBEDDER, {"in": 256}),
    Group(
        "txt_in.c_embedder",
        "context_embedder.time_text_embed.text_embedder",
        (Row("in_layer", "linear_1", ("width", "context")), Row("out_layer", "linear_2", ("width", "width"))),
    ),
    Group(
        "txt_in.individual_token_refiner.blocks.{0-1}",
        "context_embedder.token_refiner.refiner_blocks.{0-1}",
        REFINER_BLOCK,
    ),
)
BYT5 = Group(
    "byt5_in",
    "context_embedder_2",
    (
        Row("layernorm", "norm", (1472,)),
        Row("fc1", "linear_1", (2048, 1472)),
        Row("fc2", "linear_2", (2048, 2048)),
        Row("fc3", "linear_3", ("width", 2048)),
    ),
)

TENCENT = Naming(  # diffusion-pipe, musubi-tuner, OneTrainer
    "tencent",
    of="original",
    endings=(
        ("_mod.lin", "_mod.linear"),
        ("modulation.lin", "modulation.linear"),
        ("_attn.qkv", "_attn_qkv"),
        ("_attn.proj", "_attn_proj"),
        ("_attn.norm.query_norm", "_attn_q_norm"),
        ("_attn.norm.key_norm", "_attn_k_norm"),
        ("norm.query_norm", "q_norm"),
        ("norm.key_norm", "k_norm"),
        ("mlp.0", "mlp.fc1"),
        ("mlp.2", "mlp.fc2"),
        ("time_in.in_layer", "time_in.mlp.0"),
        ("time_in.out_layer", "time_in.mlp.2"),
        ("guidance_in.in_layer", "guidance_in.mlp.0"),
        ("guidance_in.out_layer", "guidance_in.mlp.2"),
        ("t_embedder.in_layer", "t_embedder.mlp.0"),
        ("t_embedder.out_layer", "t_embedder.mlp.2"),
        ("c_embedder.in_layer", "c_embedder.linear_1"),
        ("c_embedder.out_layer", "c_embedder.linear_2"),
    ),
)
TENCENT_SPLIT = (  # Tencent's later models do not fuse queries, keys and values
    TENCENT,
    Naming(
        "tencent-double",
        of="diffusers",
        beginning=("transformer_blocks.", "double_blocks."),
        endings=(
            (".attn.to_q", ".img_attn_q"),
            (".attn.to_k", ".img_attn_k"),
            (".attn.to_v", ".img_attn_v"),
            (".attn.add_q_proj", ".txt_attn_q"),
            (".attn.add_k_proj", ".txt_attn_k"),
            (".attn.add_v_proj", ".txt_attn_v"),
        ),
    ),
)
