"""Leave out what does nothing, or next to nothing: layers, and single ranks of LoRA layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..adapter import Adapter, Target
from ..errors import BadConfig
from ..layers import Additive, Layer, LoRA
from .health import is_zero, refuse_bad_values
from .lowrank import factors, norm
from .provenance import derived


@dataclass(frozen=True)
class Dropped:
    """What a pruned adapter lacks."""

    layers: tuple[Target, ...]
    ranks: int  # of the layers that stayed, in all


def prune(adapter: Adapter, below: float = 0.0) -> Adapter:
    """Return the adapter without what is zero or small; what stays keeps its bits and its effect.

    A layer goes if its change's Frobenius norm is zero, or is less than `below` times that of all layers together. One
    rank of a LoRA, a column of `up` with its row of `down`, goes by the same measure, and alpha falls with the number
    of ranks. Layers whose effect depends on the base weight go only if they make none whatever the weight.

    Raises:
        BadConfig: `below` is outside 0 to 1, or nothing would be left.
        BadValues: a layer holds NaN or infinite values.
    """
    if not 0 <= below < 1:
        raise BadConfig(f"below {below:g}: give a share of the whole from 0 to 1, such as 0.001")
    refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    sizes = {target: _size(layer) for target, layer in adapter.layers.items()}
    limit = below * math.sqrt(sum(size**2 for size in sizes.values() if size is not None))
    layers = {
        target: _without_small_ranks(layer, limit)
        for target, layer in adapter.layers.items()
        if not _is_small(sizes[target], limit)
    }
    if not layers and below:
        raise BadConfig(f"below {below:g}: every layer is smaller, nothing would be left; give less, such as 0.001")
    if not layers:
        raise BadConfig("every layer is zero: nothing would be left; this LoRA does nothing, take another checkpoint")
    return derived(adapter, layers, {"method": "prune", "below": below})


def dropped(before: Adapter, after: Adapter) -> Dropped:
    """Tell what `prune` left out."""
    gone = tuple(target for target in before.layers if target not in after.layers)
    return Dropped(gone, _ranks(before.layers, after) - _ranks(after.layers, after))


def _ranks(layers: Mapping[Target, Layer], among: Adapter) -> int:
    return sum(layer.rank for target, layer in layers.items() if target in among.layers and isinstance(layer, LoRA))


def _size(layer: Layer) -> float | None:
    """Return the norm of a layer's change; 0 for one without effect, None where it depends on the weight."""
    if is_zero(layer):
        return 0.0
    if isinstance(layer, LoRA):
        return norm(factors(layer))
    return float(layer.delta().double().norm()) if isinstance(layer, Additive) else None


def _is_small(size: float | None, limit: float) -> bool:
    return size is not None and (size == 0 or size < limit)


def _without_small_ranks(layer: Layer, limit: float) -> Layer:
    if not isinstance(layer, LoRA) or layer.mid is not None:
        return layer
    product = factors(layer)
    sizes = product.rows.norm(dim=0) * product.columns.norm(dim=1)
    kept = ((sizes > 0) & (sizes >= limit)).nonzero().flatten()
    if len(kept) in (0, layer.rank):  # small ranks may make a layer that is not
        return layer
    return replace(layer, down=layer.down[kept], up=layer.up[:, kept], alpha=layer.alpha * len(kept) / layer.rank)
