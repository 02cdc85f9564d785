"""The body of Cosmos-Predict2, which Anima shares."""

from __future__ import annotations

from ..model import Group, Row

COSMOS_ENDS = (
    Row("x_embedder.proj.1", "patch_embed.proj", ("width", 68)),
    Row("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1", ("width", "width")),
    Row("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2", ("3*width", "width")),
    Row("t_embedding_norm", "time_embed.norm", ("width",)),
    Row("final_layer.adaln_modulation.1", "norm_out.linear_1", ("adaln", "width")),
    Row("final_layer.adaln_modulation.2", "norm_out.linear_2", ("2*width", "adaln")),
    Row("final_layer.linear", "proj_out", (64, "width")),
)
COSMOS_BLOCK = (
    Row("adaln_modulation_self_attn.1", "norm1.linear_1", ("adaln", "width")),
    Row("adaln_modulation_self_attn.2", "norm1.linear_2", ("3*width", "adaln")),
    Row("self_attn.q_proj", "attn1.to_q", ("width", "width")),
    Row("self_attn.k_proj", "attn1.to_k", ("width", "width")),
    Row("self_attn.v_proj", "attn1.to_v", ("width", "width")),
    Row("self_attn.output_proj", "attn1.to_out.0", ("width", "width")),
    Row("self_attn.q_norm", "attn1.norm_q", (128,)),
    Row("self_attn.k_norm", "attn1.norm_k", (128,)),
    Row("adaln_modulation_cross_attn.1", "norm2.linear_1", ("adaln", "width")),
    Row("adaln_modulation_cross_attn.2", "norm2.linear_2", ("3*width", "adaln")),
    Row("cross_attn.q_proj", "attn2.to_q", ("width", "width")),
    Row("cross_attn.k_proj", "attn2.to_k", ("width", "text")),
    Row("cross_attn.v_proj", "attn2.to_v", ("width", "text")),
    Row("cross_attn.output_proj", "attn2.to_out.0", ("width", "width")),
    Row("cross_attn.q_norm", "attn2.norm_q", (128,)),
    Row("cross_attn.k_norm", "attn2.norm_k", (128,)),
    Row("adaln_modulation_mlp.1", "norm3.linear_1", ("adaln", "width")),
    Row("adaln_modulation_mlp.2", "norm3.linear_2", ("3*width", "adaln")),
    Row("mlp.layer1", "ff.net.0.proj", ("4*width", "width")),
    Row("mlp.layer2", "ff.net.2", ("width", "4*width")),
)
COSMOS_2B = (
    Group("", "", COSMOS_ENDS),
    Group("blocks.{0-27}", "transformer_blocks.{0-27}", COSMOS_BLOCK),
)
COSMOS_2B_SIZES = {"width": 2048, "adaln": 256, "text": 1024}
