"""ERNIE-Image's body, in whatever size. Names: Diffusers' and ComfyUI's models, which agree."""

from __future__ import annotations

from ..model import Group, Row

BLOCK = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("self_attention.to_q", ("width", "width")),
        ("self_attention.to_k", ("width", "width")),
        ("self_attention.to_v", ("width", "width")),
        ("self_attention.to_out.0", ("width", "width")),
        ("self_attention.norm_q", (128,)),
        ("self_attention.norm_k", (128,)),
        ("mlp.gate_proj", ("mlp", "width")),
        ("mlp.up_proj", ("mlp", "width")),
        ("mlp.linear_fc2", ("width", "mlp")),
        ("adaLN_sa_ln", ("width",)),
        ("adaLN_mlp_ln", ("width",)),
    )
)
ERNIE_ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("x_embedder.proj", ("width", 128, 1, 1)),
        ("text_proj", ("width", "context")),
        ("time_embedding.linear_1", ("width", "width")),
        ("time_embedding.linear_2", ("width", "width")),
        ("adaLN_modulation.1", ("6*width", "width")),
        ("final_norm.linear", ("2*width", "width")),
        ("final_linear", (128, "width")),
    )
)
ERNIE_24 = (Group("", "", ERNIE_ENDS), Group("layers.{0-23}", "layers.{0-23}", BLOCK))
ERNIE_36 = (Group("", "", ERNIE_ENDS), Group("layers.{0-35}", "layers.{0-35}", BLOCK))
