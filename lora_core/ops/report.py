"""How far a result is from what it should be, measured on weight changes and not assumed.

Errors are Frobenius norms in float64 over all layers, taken from the tensors as they are stored. Low-rank layers are
compared through their factors (see `lowrank`); a dense matrix is formed only where a dense layer takes part. Where a
layer's effect depends on the base weight (DoRA, rotations, factors), all act on one random weight (see `probe`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadValues, UnsupportedLayer, WrongArchitecture
from ..layers import Additive, Layer, LoRA
from ..layers.base import identical
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

    A target that one side lacks counts with its whole norm. Raises BadValues where shapes differ, and UnsupportedLayer
    for a sum of layers some of which depend on the base weight.
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
    if not all(isinstance(item, Additive) for item in everything):
        return _probed_share(target, layer, parts)
    if layer is not None and len(parts) == 1 and parts[0].strength == 1 and _same(layer, parts[0].layer):
        return Share(0.0, float(_dense(layer).norm()))
    return _dense_share(target, layer, parts)


def _probed_share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    """Compare what layers make of one weight, where an effect depends on the weight."""
    if len(parts) > 1:
        names = " and ".join(sorted({type(part.layer).__name__ for part in parts}))
        raise UnsupportedLayer(f"{target.module}: {names} layers have no sum to compare with; compare them one by one")
    acting = [part.layer for part in parts] + ([] if layer is None else [layer])
    weight = probe(acting)
    try:
        sought = parts[0].layer.apply(weight, parts[0].strength) if parts else weight
        given = weight if layer is None else layer.apply(weight)
    except WrongArchitecture as problem:
        raise BadValues(f"{target.module}: shapes differ: {problem.message}") from problem
    return Share(float((given - sought).norm()), float((sought - weight).norm()))


def probe(layers: Sequence[Layer]) -> Tensor:
    """Return a weight for layers to act on: random, always the same, float64, in the shape that they tell together.

    Its rows have a norm near 1. A side that no layer tells is 16 long.
    """
    shapes = sorted((layer.shape for layer in layers), key=lambda sides: (None in sides, -len(sides)))
    fitting = [[shape[side] for shape in shapes if len(shape) > side] for side in range(len(shapes[0]))]
    sides = [next((size for size in sizes if size is not None), 16) for sizes in fitting]
    noise = torch.randn(sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise / math.sqrt(max(1, math.prod(sides[1:])))


def _lowrank_share(layer: Layer | None, parts: Sequence[Part]) -> Share:
    terms = [factors(part.layer, part.strength) for part in parts if isinstance(part.layer, LoRA)]
    found = factors(layer) if isinstance(layer, LoRA) else None
    if not terms:
        return Share(norm(found) if found else 0.0, 0.0)
    wanted = stack(terms)
    size = norm(wanted)
    error = size if found is None else distance(found, wanted)
    if not size <= resolution(wanted):  # NaN as well
        return Share(error, size)
    return Share(error if error > resolution(wanted) else 0.0, 0.0)  # zero is wanted, and rounding alone is no error


def _dense_share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    wanted = [_dense(part.layer) * part.strength for part in parts]
    found = [] if layer is None else [_dense(layer)]
    shape = common_shape(target, [tuple(item.shape) for item in wanted + found])
    zero = torch.zeros(shape, dtype=torch.float64)
    sought = sum((item.reshape(shape) for item in wanted), zero)
    given = sum((item.reshape(shape) for item in found), zero)
    return Share(error=float((given - sought).norm()), size=float(sought.norm()))


def _dense(layer: Layer) -> Tensor:
    if isinstance(layer, LoRA):
        return factors(layer).product().reshape(layer.shape)
    if isinstance(layer, Additive):
        return layer.delta().double()
    raise TypeError(f"{type(layer).__name__} has no change of its own")


def _same(left: Layer, right: Layer) -> bool:
    """Tell whether two layers agree bit for bit, dtypes included."""
    if type(left) is not type(right):
        return False
    pairs = ((getattr(left, item.name), getattr(right, item.name)) for item in fields(left))
    return all(identical(one, other) for one, other in pairs)


def _ratio(shares: Iterable[Share]) -> float:
    found = list(shares)
    error = math.sqrt(sum(share.error**2 for share in found))
    return relative(error, math.sqrt(sum(share.size**2 for share in found)))
