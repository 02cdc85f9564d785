"""ACE-Step 1.5, music. Names and shapes: ACE Studio's checkpoint and Diffusers' AceStepTransformer1DModel.

Adapters touch the decoder alone; ACE-Step's own trainer names its modules without `decoder`.
"""

from __future__ import annotations

from ..model import Architecture, Component, Group, Naming, Row
from .blocks import DIT_PREFIXES

ENDS = (
    Row("proj_in.1", "proj_in_conv", ("width", 192, 2)),
    Row("proj_out.1", "proj_out_conv", ("width", 64, 2)),  # a transposed convolution: (in, out, kernel)
    Row("condition_embedder", "condition_embedder", ("width", "width")),
    Row("norm_out", "norm_out", ("width",)),
)
TIME = (
    Row("linear_1", "linear_1", ("width", 256)),
    Row("linear_2", "linear_2", ("width", "width")),
    Row("time_proj", "time_proj", ("6*width", "width")),
)
ATTENTION = (
    Row("q_proj", "to_q", ("width", "width")),
    Row("k_proj", "to_k", ("keys", "width")),
    Row("v_proj", "to_v", ("keys", "width")),
    Row("o_proj", "to_out.0", ("width", "width")),
    Row("q_norm", "norm_q", (128,)),
    Row("k_norm", "norm_k", (128,)),
)
LAYER = (
    Row("self_attn_norm", "self_attn_norm", ("width",)),
    Row("cross_attn_norm", "cross_attn_norm", ("width",)),
    Row("mlp_norm", "mlp_norm", ("width",)),
    Row("mlp.gate_proj", "mlp.gate_proj", ("mlp", "width")),
    Row("mlp.up_proj", "mlp.up_proj", ("mlp", "width")),
    Row("mlp.down_proj", "mlp.down_proj", ("width", "mlp")),
)

ACE_STEP = Architecture(
    id="ace-step",
    name="ACE-Step 1.5",
    components=(
        Component(
            "denoiser",
            groups=(
                Group("decoder", "", ENDS),
                Group("decoder.time_embed", "time_embed", TIME),
                Group("decoder.time_embed_r", "time_embed_r", TIME),
                Group("decoder.layers.{0-23}", "layers.{0-23}", LAYER),
                Group("decoder.layers.{0-23}.self_attn", "layers.{0-23}.self_attn", ATTENTION),
                Group("decoder.layers.{0-23}.cross_attn", "layers.{0-23}.cross_attn", ATTENTION),
            ),
            sizes={"width": 2048, "keys": 1024, "mlp": 6144},
            prefixes=DIT_PREFIXES,
            checkpoint=("model.diffusion_model",),
            folder="transformer",
        ),
    ),
    namings=(Naming("decoder", of="original", beginning=("decoder.", "")),),
)
