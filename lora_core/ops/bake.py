"""Layers of other algorithms as plain LoRA: the best one of a rank, for hosts and dialects that know nothing else."""

from __future__ import annotations

from dataclasses import replace

from ..adapter import Adapter
from ..layers import Additive, Layer, LoRA
from .merge import Weighted, merge


def to_lora(adapter: Adapter, rank: int) -> Adapter:
    """Return an adapter whose changes of matrices are all LoRA; those that are already keep their tensors.

    Args:
        adapter: what to approximate.
        rank: of the approximated layers, at most.

    Raises:
        BadConfig: the rank is no positive number.
        UnsupportedLayer: a layer whose effect depends on the base weight (DoRA, OFT, IA3 ...) has no change of its own.
    """
    others = {target: layer for target, layer in adapter.layers.items() if not _stays(layer)}
    if not others:
        return adapter
    found = merge([Weighted(replace(adapter, layers=others))], "svd", rank)
    return replace(adapter, layers={**adapter.layers, **found.layers})


def _stays(layer: Layer) -> bool:
    return isinstance(layer, LoRA) or (isinstance(layer, Additive) and layer.delta().dim() == 1)
