"""Flux' blocks under Diffusers' names alone, for its kin that no original layout is known of: FIBO, FramePack."""

from __future__ import annotations

from ..model import Row

LINEARS = (
    Row("linear_1", "linear_1", ("width", "in")),
    Row("linear_2", "linear_2", ("width", "width")),
)

_SQUARE = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")

TRANSFORMER_BLOCK = (
    *(Row(f"attn.{name}", f"attn.{name}", ("width", "width")) for name in _SQUARE),
    *(Row(f"attn.{name}", f"attn.{name}", (128,)) for name in _NORMS),
    *(Row(f"{name}.net.0.proj", f"{name}.net.0.proj", ("4*width", "width")) for name in ("ff", "ff_context")),
    *(Row(f"{name}.net.2", f"{name}.net.2", ("width", "4*width")) for name in ("ff", "ff_context")),
    Row("norm1.linear", "norm1.linear", ("6*width", "width")),
    Row("norm1_context.linear", "norm1_context.linear", ("6*width", "width")),
)
SINGLE_TRANSFORMER_BLOCK = (
    *(Row(f"attn.{name}", f"attn.{name}", ("width", "width")) for name in ("to_q", "to_k", "to_v")),
    *(Row(f"attn.{name}", f"attn.{name}", (128,)) for name in ("norm_q", "norm_k")),
    Row("norm.linear", "norm.linear", ("3*width", "width")),
    Row("proj_mlp", "proj_mlp", ("4*width", "width")),
    Row("proj_out", "proj_out", ("width", "5*width")),
)
ENDS = (
    Row("norm_out.linear", "norm_out.linear", ("2*width", "width")),
    Row("proj_out", "proj_out", ("latent", "width")),
)
