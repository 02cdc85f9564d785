"""How far a result is from what it should be, measured on weight changes and not assumed.

Errors are Frobenius norms in float64 over all layers, taken from the tensors as they are stored. Low-rank layers are
compared through their factors (see `lowrank`); a dense matrix is formed only where a dense layer takes part. Where a
layer's effect depends on the base weight (DoRA, rotations, factors), all act on one random weight (see `probe`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadValues, UnsupportedLayer, WrongArchitecture
from ..layers import Additive, Layer, LoRA
from ..layers.base import identical
from .lowrank import distance, double, factors, norm, relative, resolution, rows, stack
from .methods import Wish
from .parts import Part, Weighted, by_target, common_shape

TINY = 1e-15  # the square of what is larger is a float32 with all its digits


@dataclass(frozen=True)
class Share:
    """What one target adds to the error."""

    known_error: float | Callable[[], float]  # norm of the difference, or what works it out
    known_size: float | Callable[[], float]  # norm of what was wanted, likewise
    known_ratio: float | None = None  # of the two, where it is known without them

    @cached_property
    def error(self) -> float:
        """Norm of the difference."""
        return self.known_error() if callable(self.known_error) else self.known_error

    @cached_property
    def size(self) -> float:
        """Norm of what was wanted."""
        return self.known_size() if callable(self.known_size) else self.known_size

    @property
    def ratio(self) -> float:
        """The relative error."""
        return relative(self.error, self.size) if self.known_ratio is None else self.known_ratio


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
        return {target: share.ratio for target, share in self.shares.items()}

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


def wished_error(approx: Adapter, wishes: Iterable[Wish]) -> Report:
    """Measure how far an adapter is from what a merge asked for, a target at a time: see `merge.Order.wishes`.

    Of what a method makes of the entries of a weight change this is the distance to its dense result. A target that
    one side lacks counts with its whole norm.
    """
    shares = {wish.target: _share(wish.target, approx.layers.get(wish.target), wish.parts) for wish in wishes}
    more = {target: _share(target, layer, []) for target, layer in approx.layers.items() if target not in shares}
    return Report({**shares, **more})


def difference(adapter: Adapter, reference: Adapter) -> Report:
    """Measure how far an adapter is from another one; 0.0 exactly when all layers agree bit for bit."""
    return relative_error(adapter, [Weighted(reference)])


def _share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    everything = [part.layer for part in parts] + ([] if layer is None else [layer])
    if layer is not None and len(parts) == 1 and parts[0].strength == 1 and _same(layer, parts[0].layer):
        return Share(0.0, lambda: _size(layer), 0.0)
    if all(isinstance(item, LoRA) for item in everything):
        common_shape(target, [item.shape for item in everything if isinstance(item, LoRA)])
        return _lowrank_share(layer, parts)
    if not all(isinstance(item, Additive) for item in everything):
        return _probed_share(target, layer, parts)
    return _dense_share(target, layer, parts)


def _size(layer: Layer) -> float:
    """Return the norm of what a layer does, to a random weight where that depends on the weight."""
    if isinstance(layer, LoRA):
        return norm(factors(layer))
    if isinstance(layer, Additive):
        return float(_dense(layer).norm())
    weight = probe([layer])
    return float((layer.apply(weight) - weight).norm())


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
    kept = _scale_share(layer, parts) or _stacked_share(layer, parts)
    if kept is not None:
        return kept
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


def _scale_share(layer: Layer | None, parts: Sequence[Part]) -> Share | None:
    """Compare layers of the same tensors at different scales, where the ratio of the scales tells all; else None."""
    other = parts[0].layer if len(parts) == 1 else None
    if not isinstance(layer, LoRA) or not isinstance(other, LoRA):
        return None
    wanted, found = other.scale * parts[0].strength, layer.scale
    if not wanted or not found or not _same(replace(layer, alpha=0.0), replace(other, alpha=0.0)):
        return None
    ratio = abs(found - wanted) / abs(wanted)

    def size() -> float:
        return norm(factors(layer)) * abs(wanted / found)

    return Share(lambda: ratio * size(), size, ratio)


def _stacked_share(layer: Layer | None, parts: Sequence[Part]) -> Share | None:
    """Compare a stack of factors with its terms where every `down` kept its bits: what `up` was rounded by; else None.

    `|D C|^2 = sum (D^T D) * (C C^T)`. Taken of the rounding D itself, in float32, this is no difference of large
    numbers; where it comes out small beside its terms, it is left to the general way.
    """
    terms = [part.layer for part in parts if isinstance(part.layer, LoRA) and part.layer.mid is None]
    if not isinstance(layer, LoRA) or layer.mid is not None or not terms or len(terms) < len(parts):
        return None
    ranks = [term.rank for term in terms]
    if sum(ranks) != layer.rank or not all(map(_kept, torch.split(layer.down, ranks), (term.down for term in terms))):
        return None
    wanted = torch.cat([rows(term, part.strength) for term, part in zip(terms, parts, strict=True)], 1)
    off = double(layer.up.flatten(1)).mul_(layer.scale).sub_(wanted)
    columns = layer.down.flatten(1).float()
    gram = columns @ columns.T
    error, size = _gram_norm(off, gram), _gram_norm(wanted, gram)
    return None if error is None or not size else Share(error, size, 0.0 if error == 0 else None)


def _kept(found: Tensor, given: Tensor) -> bool:
    """Tell whether a tensor has the values of another one, in its dtype or one that holds more."""
    if found.dtype != given.dtype and (
        1 in (found.dtype.itemsize, given.dtype.itemsize)
        or torch.promote_types(found.dtype, given.dtype) != found.dtype
    ):
        return False
    return identical(found.flatten(1), given.flatten(1).to(found.dtype))


def _gram_norm(rows: Tensor, gram: Tensor) -> float | None:
    """Return the norm of `rows @ columns` from `columns @ columns^T`; None where rounding would show in it."""
    scaled, largest = rows.float(), 1.0
    if not TINY < max(map(abs, map(float, torch.aminmax(scaled)))) < 1 / TINY:  # 0 and NaN as well
        largest = float(rows.abs().amax())
        if largest == 0:
            return 0.0
        scaled = (rows / largest).float()
    other = scaled.T @ scaled
    square = float((other.double() * gram.double()).sum())
    bound = float(other.diagonal().double().sum()) * float(gram.diagonal().double().sum())
    return largest * math.sqrt(square) if square > 1e-3 * bound else None


def _dense_share(target: Target, layer: Layer | None, parts: Sequence[Part]) -> Share:
    wanted = [_dense(part.layer) * part.strength for part in parts]
    found = [] if layer is None else [_dense(layer)]
    shape = common_shape(target, [tuple(item.shape) for item in wanted + found])
    zero = torch.zeros(shape, dtype=torch.float64)
    sought = sum((item.reshape(shape) for item in wanted), zero)
    given = sum((item.reshape(shape) for item in found), zero)
    return Share(float((given - sought).norm()), float(sought.norm()))


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
    ratios = {share.known_ratio for share in found}
    if len(ratios) == 1 and None not in ratios:  # alike everywhere, so that no norm needs to be worked out
        return float(ratios.pop() or 0.0)
    error = math.sqrt(sum(share.error**2 for share in found))
    return relative(error, math.sqrt(sum(share.size**2 for share in found)))
