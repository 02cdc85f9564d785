"""The same effect with another alpha, for programs that leave alpha out or expect a certain one."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..adapter import Adapter, Target
from ..dtypes import dtype_named
from ..errors import BadConfig, BadValues
from ..layers import DoRA, GLoRA, Layer, LoHa, LoKr, LoRA
from .health import finite, refuse_bad_values
from .provenance import derived
from .scale import LARGEST, SMALLEST

Scaled = GLoRA | LoHa | LoKr | LoRA  # layers with the factor alpha / rank


def rescale(adapter: Adapter, alpha: float | None = None, dtype: str = "keep") -> Adapter:
    """Return the adapter with another alpha and the same effect: what changes in `alpha / rank` moves into a factor.

    Exact where the old scale divided by the new one is a power of two and no value leaves its dtype's range; else one
    factor of each layer is rounded once. Layers whose alpha has no effect stay.

    Args:
        adapter: what to write anew.
        alpha: of every layer; None: each layer's rank, so that the scale is 1 and may as well be left out.
        dtype: of the factors that change: "fp32", "fp16", "bf16", or "keep", their own.

    Raises:
        BadConfig: an alpha that no file can hold, an unknown dtype, or no layer whose alpha has an effect.
        BadValues: a layer holds NaN or infinite values, or would.
    """
    if alpha is not None and not (math.isfinite(alpha) and SMALLEST <= alpha <= LARGEST):
        raise BadConfig(f"alpha {alpha:g}: give a number from {SMALLEST:g} to {LARGEST:g}, or 'rank' for a scale of 1")
    narrow = dtype_named(dtype)
    refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    if not any(_inner(layer) for layer in adapter.layers.values()):
        raise BadConfig("nothing to rescale: no layer has an alpha with an effect")
    layers = {target: _rescaled(target, layer, alpha, narrow) for target, layer in adapter.layers.items()}
    return derived(adapter, layers, {"method": "rescale", "alpha": alpha, "dtype": dtype})


def _inner(layer: Layer) -> Scaled | None:
    """Return the layer, or what a DoRA is built on, if its alpha has an effect."""
    inner = layer.layer if isinstance(layer, DoRA) else layer
    return inner if isinstance(inner, Scaled) and inner.rank else None


def _rescaled(target: Target, layer: Layer, alpha: float | None, dtype: torch.dtype | None) -> Layer:
    inner = _inner(layer)
    if inner is None:
        return layer
    rank = inner.rank or 1
    wanted = float(rank) if alpha is None else alpha
    made = _moved(inner, inner.scale / (wanted / rank), dtype)
    if not all(map(finite, made.tensors())):
        raise BadValues(f"{target.component}.{target.module}: too large for its dtype at this alpha; choose fp32")
    made = replace(made, alpha=wanted)
    return replace(layer, layer=made) if isinstance(layer, DoRA) and not isinstance(made, GLoRA) else made


def _moved(layer: Scaled, factor: float, dtype: torch.dtype | None) -> Scaled:
    """Return the layer with one factor of each product multiplied, and what else scaled it left out."""

    def times(name: str) -> torch.Tensor:
        tensor: torch.Tensor = getattr(layer, name)
        return (tensor.double() * factor).to(dtype or tensor.dtype)

    if isinstance(layer, GLoRA):
        return replace(layer, a1=times("a1"), b1=times("b1"))
    if isinstance(layer, LoRA):
        return replace(layer, up=times("up"), scalar=None)
    if isinstance(layer, LoHa):
        return replace(layer, w1_a=times("w1_a"), scalar=None)
    if layer.w1 is not None:
        return replace(layer, w1=times("w1"), scalar=None)
    return replace(layer, w1_a=times("w1_a"), scalar=None)
