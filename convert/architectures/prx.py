"""PRX 1.3B with 16 latent channels. Names and shapes: Diffusers' PRXTransformer2DModel, the one layout in use."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES

BLOCK = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("attention.img_qkv_proj", ("3*width", "width")),
        ("attention.txt_kv_proj", ("2*width", "width")),
        ("attention.to_out.0", ("width", "width")),
        ("attention.norm_q", ("head",)),
        ("attention.norm_k", ("head",)),
        ("attention.norm_added_k", ("head",)),
        ("gate_proj", ("mlp", "width")),
        ("up_proj", ("mlp", "width")),
        ("down_proj", ("width", "mlp")),
        ("modulation.lin", ("6*width", "width")),
    )
)
ENDS = tuple(
    Row(name, name, shape)
    for name, shape in (
        ("img_in", ("width", 64)),
        ("time_in.in_layer", ("width", 256)),
        ("time_in.out_layer", ("width", "width")),
        ("txt_in", ("width", 2304)),
        ("final_layer.linear", (64, "width")),
        ("final_layer.adaLN_modulation.1", ("2*width", "width")),
    )
)

PRX = Architecture(
    id="prx",
    name="PRX",
    components=(
        Component(
            "denoiser",
            groups=(Group("", "", ENDS), Group("blocks.{0-15}", "blocks.{0-15}", BLOCK)),
            sizes={"width": 1792, "head": 64, "mlp": 6272},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
)
