"""FLUX.3. Names and shapes: Diffusers' Flux3Transformer2DModel; the original names come out of its conversion."""

from __future__ import annotations

from ..model import Architecture, Component, Group, Row
from .blocks import DIT_PREFIXES
from .flux_blocks import EMBEDDER

FLUX3_BLOCK = (
    Row("q_proj", "attn.to_q", ("width", "width")),
    Row("k_proj", "attn.to_k", ("width", "width")),
    Row("v_proj", "attn.to_v", ("width", "width")),
    Row("norm.query_norm", "attn.norm_q", (128,)),
    Row("norm.key_norm", "attn.norm_k", (128,)),
    Row("attn_out", "attn.to_out.0", ("width", "width")),
    Row("mlp_in", "ff.linear_in", ("6*width", "width")),
    Row("mlp_out", "ff.linear_out", ("width", "3*width")),
)
ENDS = (
    Row("emb_in.image", "x_embedders.image", ("width", "latent")),
    Row("emb_in.image_cond", "x_embedders.image_cond", ("width", "latent")),
    Row("txt_in", "context_embedder", ("width", 20480)),
    Row("final_layer.image.linear", "proj_out", ("latent", "width")),
    Row("final_layer.image.adaLN_modulation.1", "norm_out.linear", ("2*width", "width"), swapped=True),
)
MODULATIONS = tuple(
    Row(f"{stream}_stream_modulations.{mode}.lin", f"{stream}_stream_modulations.{mode}.linear", ("3*width", "width"))
    for stream in ("early", "single")
    for mode in ("image", "image_cond", "txt")
)
BLOCKS = (  # original name, Diffusers name
    ("content_mode_blocks.image.{0-4}", "mode_blocks.image.{0-4}"),
    ("content_mode_blocks.image_cond.{0-4}", "mode_blocks.image_cond.{0-4}"),
    ("txt_mode_blocks.{0-4}", "txt_mode_blocks.{0-4}"),
    ("single_blocks.{0-27}", "single_transformer_blocks.{0-27}"),
)

FLUX3 = Architecture(
    id="flux3",
    name="FLUX.3",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("", "", (*ENDS, *MODULATIONS)),
                Group("time_in", "timestep_embedder", EMBEDDER, {"in": 256}),
                *(Group(original, diffusers, FLUX3_BLOCK) for original, diffusers in BLOCKS),
            ),
            sizes={"width": 3072, "latent": 128},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    kohya_naming="original",
    aitoolkit=("comfy", "original"),
)
