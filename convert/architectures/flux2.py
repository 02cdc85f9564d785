"""FLUX.2's blocks, shared by dev and both klein models, which differ in their sizes.

Names: Black Forest Labs' model and Diffusers' Flux2Transformer2DModel, which keeps `linear1` as one weight.
"""

from __future__ import annotations

from ..model import Group, Naming, Row
from .flux_blocks import DOUBLE_ATTENTION, EMBEDDER, IN, OUT, SINGLE_NORMS

FLUX2_DOUBLE = (
    *DOUBLE_ATTENTION,
    Row("img_mlp.0", "ff.linear_in", ("6*width", "width")),
    Row("img_mlp.2", "ff.linear_out", ("width", "3*width")),
    Row("txt_mlp.0", "ff_context.linear_in", ("6*width", "width")),
    Row("txt_mlp.2", "ff_context.linear_out", ("width", "3*width")),
)
FLUX2_SINGLE = (
    *SINGLE_NORMS,
    Row("linear1", "attn.to_qkv_mlp_proj", ("9*width", "width")),
    Row("linear2", "attn.to_out", ("width", "4*width")),
)
FLUX2_ENDS = (
    Group("", "", (*IN, *OUT)),
    Group("time_in", "time_guidance_embed.timestep_embedder", EMBEDDER, {"in": 256}),
    Group(
        "",
        "",
        (
            Row("double_stream_modulation_img.lin", "double_stream_modulation_img.linear", ("6*width", "width")),
            Row("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear", ("6*width", "width")),
            Row("single_stream_modulation.lin", "single_stream_modulation.linear", ("3*width", "width")),
        ),
    ),
)

FLUX2_NAMINGS = (  # some exports cut the first letters off: diffusion_model.sformer_blocks.
    Naming("sformer", of="diffusers", beginning=("transformer_blocks.", "sformer_blocks.")),
)
