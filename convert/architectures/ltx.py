"""Rows that the LTX families share: an attention, a feed-forward, an AdaLN embedder, a caption projection."""

from __future__ import annotations

from ..model import Row

LTX_ATTENTION = (  # `inner` wide inside, queries from `width`, keys and values from `context`
    Row("to_q", "to_q", ("inner", "width")),
    Row("to_k", "to_k", ("inner", "context")),
    Row("to_v", "to_v", ("inner", "context")),
    Row("to_out.0", "to_out.0", ("width", "inner")),
    Row("q_norm", "norm_q", ("inner",)),
    Row("k_norm", "norm_k", ("inner",)),
)
LTX_FEED_FORWARD = (
    Row("net.0.proj", "net.0.proj", ("4*width", "width")),
    Row("net.2", "net.2", ("width", "4*width")),
)
LTX_ADALN = (
    Row("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_1", ("width", 256)),
    Row("emb.timestep_embedder.linear_2", "emb.timestep_embedder.linear_2", ("width", "width")),
    Row("linear", "linear", ("modulation", "width")),
)
LTX_CAPTION = (
    Row("linear_1", "linear_1", ("width", "caption")),
    Row("linear_2", "linear_2", ("width", "width")),
)
