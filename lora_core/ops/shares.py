"""Each block's share of what an adapter changes: squared Frobenius norms, from small products of the factors."""

from __future__ import annotations

from collections.abc import Callable

from ..adapter import Adapter, Target
from ..layers import Additive, Layer, LoRA


def shares(adapter: Adapter, name: Callable[[Target], str]) -> dict[str, float] | None:
    """Return the share of the squared norm of all changes that lies in the layers of one name; they sum up to 1.

    None where a layer's change depends on the base weight, or where nothing changes.
    """
    found: dict[str, float] = {}
    for target, layer in adapter.layers.items():
        size = squared_norm(layer)
        if size is None:
            return None
        found[name(target)] = found.get(name(target), 0.0) + size
    whole = sum(found.values())
    return {block: size / whole for block, size in found.items()} if whole > 0 else None


def squared_norm(layer: Layer) -> float | None:
    """Return the squared Frobenius norm of a layer's change; None where it depends on the base weight.

    `|U D|^2 = sum((U^T U) * (D D^T))`: products as small as the rank, in float32.
    """
    if isinstance(layer, LoRA):
        rows, columns = layer.rows(), layer.columns()
        return float(((rows.T @ rows).double() * (columns @ columns.T).double()).sum())
    return float(layer.delta().double().square().sum()) if isinstance(layer, Additive) else None
