"""How far a result is from what it should be, measured on weight changes and not assumed.

Errors are Frobenius norms in float64 over all layers, taken from the tensors as they are stored. Low-rank layers are
compared through their factors (see `lowrank`); a dense matrix is formed only where a dense layer takes part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import UnsupportedLayer
from ..layers import Additive, Layer, LoRA
from .lowrank import distance, factors, norm, relative, resolution, stack
from .merge import Part, Weighted, by_target, common_shape


@dataclass(frozen=True)
class Share:
    """What one target adds to the error."""

    error: float  # norm of the difference
    size: float  # norm of what was wanted


@dataclass(frozen=True)
class Report:
    """The error as a whole, and target by target."""

    shares: Mapping[Target, Share]

    @property
    def relative_error(self) -> float:
        """Norm of the difference over all layers, divided by the norm of what was wanted."""
        return _ratio(self.shares.values())

    @property
    def worst(self) -> float:
        """The largest relative error of one target; infinite where something appeared that was not wanted at all."""
        return max(self.per_target.values(), default=0.0)

    @property
    def per_target(self) -> dict[Target, float]:
        """Relative error of each target."""
        return {target: relative(share.error, share.size) for target, share in self.shares.items()}

    def grouped(self, name: Callable[[Target], str]) -> dict[str, float]:
        """Return the relative error of each group of targets that `name` calls alike: a block, a component."""
        groups: dict[str, list[Share]] = {}
        for target, share in self.shares.items():
            groups.setdefault(name(target), []).append(share)
        return {group: _ratio(shares) for group, shares in groups.items()}


def relative_error(approx: Adapter, exact: Sequence[Weighted]) -> Report:
    """Measure how far an adapter is from the weighted sum of others.

    A target that one side lacks counts with its whole norm. Raises UnsupportedLayer for layers whose change depends on
    the base weight, unless they are the same on both sides, and BadValues where shapes differ.
    """
    wanted = by_target(exact)
    targets = dict.fromkeys((*wanted, *approx.layers))
    return Report({target: _share(target, approx.layers.get(target), wanted.get(target, [])) for target in targets})


def difference(adapter: Adapter, reference: Adapter) -> Report:
    """Measure how far an adapter is from another one; 0.0 exactly when all layers agree bit for bit."""
    return relative_error(adapter, [Weighted(reference)])


def _share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    everything = [part.layer for part in parts] + ([] if layer is None else [layer])
    if all(isinstance(item, LoRA) for item in everything):
        common_shape(target, [item.shape for item in everything if isinstance(item, LoRA)])
        return _lowrank_share(layer, parts)
    if layer is not None and len(parts) == 1 and parts[0].strength == 1 and _same(layer, parts[0].layer):
        size = parts[0].layer.delta().double().norm().item() if isinstance(layer, Additive) else 0.0
        return Share(0.0, size)
    return _dense_share(target, layer, parts)


def _lowrank_share(layer: Layer | None, parts: Sequence[Part]) -> Share:
    terms = [factors(part.layer, part.strength) for part in parts if isinstance(part.layer, LoRA)]
    found = factors(layer) if isinstance(layer, LoRA) else None
    if not terms:
        return Share(norm(found) if found else 0.0, 0.0)
    wanted = stack(terms)
    size = norm(wanted)
    error = size if found is None else distance(found, wanted)
    if size > resolution(wanted):
        return Share(error, size)
    return Share(error if error > resolution(wanted) else 0.0, 0.0)  # zero is wanted, and rounding alone is no error


def _dense_share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    wanted = [_dense(target, part.layer) * part.strength for part in parts]
    found = [] if layer is None else [_dense(target, layer)]
    shape = common_shape(target, [tuple(item.shape) for item in wanted + found])
    zero = torch.zeros(shape, dtype=torch.float64)
    sought = sum((item.reshape(shape) for item in wanted), zero)
    given = sum((item.reshape(shape) for item in found), zero)
    return Share(error=float((given - sought).norm()), size=float(sought.norm()))


def _dense(target: Target, layer: Layer) -> Tensor:
    if isinstance(layer, LoRA):
        return factors(layer).product().reshape(layer.shape)
    if isinstance(layer, Additive):
        return layer.delta().double()
    raise UnsupportedLayer(
        f"{target.module}: the change of a {type(layer).__name__} layer depends on the base weight and cannot be "
        "measured without it"
    )


def _same(left: Layer, right: Layer) -> bool:
    """Tell whether two layers agree bit for bit, dtypes included."""
    if type(left) is not type(right):
        return False
    pairs = ((getattr(left, item.name), getattr(right, item.name)) for item in fields(left))
    return all(_equal(one, other) for one, other in pairs)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def _ratio(shares: Iterable[Share]) -> float:
    found = list(shares)
    error = math.sqrt(sum(share.error**2 for share in found))
    return relative(error, math.sqrt(sum(share.size**2 for share in found)))
