"""Merge adapters into one: by the plain sum, exactly or as the best lower rank, or by another method of the table.

The sum of low-rank products is the product of their stacked factors: `s1 U1 D1 + s2 U2 D2 = [s1 U1, s2 U2] [D1; D2]`.
Every strength enters once and no cross term arises, unlike in a sum of the factors themselves. What a method wants at
a target is a sum too (see `methods`), so that all of them are stored in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadConfig, UnsupportedLayer, WrongArchitecture
from ..layers import Additive, Full, Layer, LoHa, LoKr, LoRA, Norm
from .combine import change_of, total
from .health import finite, is_zero, refuse_bad_values
from .lowrank import ROUNDING, cancel, columns, exact_rows, factors, resolution, stack, truncated
from .methods import IDS, Method, Settings, Weights, Wish, check_adapters, method, moved, wishes
from .parts import Part, Weighted, by_target, common_shape, low_rank
from .provenance import united
from .scale import check_strength, scaled
from .sketch import sketch

__all__ = [
    "METHODS",
    "Order",
    "Part",
    "Weighted",
    "by_target",
    "common_shape",
    "low_rank",
    "merge",
    "rescaled",
    "store_dtype",
    "widest",
]

METHODS = IDS
LITTLE = 1e-3  # share of its terms that a sum falls below before it is worth the time to ask whether they cancel


@dataclass(frozen=True, eq=False)
class Order:
    """A merge that is asked for.

    `rank` and `energy` are those of `merge`; `base` gives the base model's weight at a target, which bakes the layers
    whose effect depends on it. Raises BadConfig for what does not fit together, when it is made.
    """

    adapters: Sequence[Weighted]
    method: str = "exact"
    rank: int | None = None
    energy: float | None = None
    settings: Settings = Settings()
    base: Weights | None = None
    device: str = "cpu"
    base_name: str = ""  # of the base's file, for the recipe

    def __post_init__(self) -> None:
        if not self.adapters:
            raise BadConfig("merge needs at least one adapter")
        check_adapters(self.row, self.adapters)
        _check_rank(self.method, self.rank, self.energy)
        for part in self.adapters:
            check_strength(part.strength, part.text_encoder)
        self.row_settings()

    @property
    def row(self) -> Method:
        """The method's choices."""
        return method(self.method)

    def row_settings(self) -> dict[str, Any]:
        """Return the settings that the method uses."""
        return self.settings.checked(self.row)

    def wishes(self) -> Iterator[Wish]:
        """Yield what is wanted, target by target: what a result is measured against (`report.wished_error`)."""
        return wishes(self.adapters, self.row, self.row_settings(), self.base, self.device)

    def result(self, dtype: torch.dtype | None = None) -> Adapter:
        """Return the merged adapter, see `merge`; what a sum stores in float32, in a narrower dtype where one is named.

        Layers that this would make infinite, and blocks of a fused weight, are left to the writer.
        """
        architecture = common_architecture(self.adapters)
        acting = [part for part in self.adapters if part.strength != 0 or part.text_encoder]
        for part in acting:
            refuse_bad_values(part.adapter, part.name)
        layers: dict[Target, Layer] = {}
        nothing = True
        for wish in self.wishes():
            stored = moved(self._stored(wish), "cpu")
            layers[wish.target] = stored if dtype is None or wish.target.block is not None else _narrowed(stored, dtype)
            nothing = nothing and _cancel(wish.parts)
        if not layers:
            raise BadConfig("every part has strength 0 or no layers: nothing is left to merge")
        names = ", ".join(part.name for part in acting)
        if self.row.whole is not total and all(map(is_zero, layers.values())):
            raise BadConfig(f"{names}: nothing would be left of them by {self.method}; change a strength or a setting")
        if nothing:
            raise BadConfig(
                f"{names}: cancel each other out at these strengths, nothing would be left; change a strength"
            )
        sources = [part.adapter for part in self.adapters]
        return united(sources, layers, self.operation(), architecture, common_extras(acting))

    def operation(self) -> dict[str, Any]:
        """Return the call as JSON-ready data: the arguments of `merge` that brought it about, strengths of 0 included.

        An adapter's place has a meaning: for what is subtracted, and for the lots of the random methods.
        """
        parts = [_described(part) for part in self.adapters]
        return {
            "method": self.method,
            "rank": self.rank,
            "energy": self.energy,
            **self.row_settings(),
            **({"base": self.base_name} if self.base is not None else {}),
            "parts": parts,
        }

    def _stored(self, wish: Wish) -> Layer:
        asked = self.rank is not None or self.energy is not None
        return stored_layer(wish.target, wish.parts, *((self.rank, self.energy) if asked else (wish.rank, None)))


def merge(
    parts: Sequence[Weighted],
    method: str = "exact",
    rank: int | None = None,
    energy: float | None = None,
    *,
    density: float | None = None,
    seed: int | None = None,
    normalise: bool | None = None,
    epsilon: float | None = None,
    gamma: float | None = None,
    base: Weights | None = None,
    device: str = "cpu",
) -> Adapter:
    """Return one adapter for several, by a method of `methods.METHODS`.

    "exact" stacks the factors: the rank is the sum of the ranks, alpha equals the rank, nothing is lost. `down` keeps
    its bits and dtype (the widest where they differ; Tucker cores are absorbed); `up`, which carries the strengths,
    stays float32 unless the narrow dtype holds every value (see `store_dtype`). A layer that only one adapter
    has keeps its tensors, its alpha carries the strength.
    "svd" gives the best layer of at most `rank`, or of the smallest rank with `energy` (0 to 1) of the squared singular
    values; with both, `rank` is the upper bound. Its tensors are float32, to be cast by the writer; layers that need
    no truncation are stacked as in "exact". Dense changes of matrices become LoRA too (large ones through `sketch`).
    The other methods take `rank` and `energy` as well. Without, those that act on whole layers, and knots, lose
    nothing; of those that act on the entries of the weight change the best layer is kept whose rank is the sum of the
    ranks (all of it, where a dense change takes part). How far that is from the method's own dense result, `Order` and
    `report.wished_error` tell.
    Where layers cancel each other out, their best lower rank is a zero of rank 1, not the noise of their rounding.
    LoHa and LoKr, whose sum with another layer is none of their kind, become LoRA with a rank or energy alone.
    Where a dense change takes part, an exact sum is dense in float32. Strength 0 leaves a part out.
    A layer whose effect depends on the base weight (DoRA, the rotations) is baked with `base`, a function from targets
    to the base's weights; without it, it can only be passed on as it is.
    `density`, `seed`, `normalise`, `epsilon` and `gamma` are those of `methods.Settings`, each refused by a method that
    has no use for it. `device` says where to compute; the result lies on the CPU.
    Raises BadConfig (also for a sum that is zero everywhere), WrongArchitecture, BadValues (NaN, infinite, shapes that
    differ) and UnsupportedLayer.
    """
    settings = Settings(density, seed, normalise, epsilon, gamma)
    return Order(parts, method, rank, energy, settings, base, device).result()


def store_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a narrower dtype when that loses nothing, else as it is.

    >>> store_dtype(torch.tensor([0.5]), torch.float16).dtype, store_dtype(torch.tensor([0.1]), torch.float16).dtype
    (torch.float16, torch.float32)
    """
    first = tensor.flatten()[:64]  # most tensors that lose something lose it here
    if not torch.equal(first.to(dtype).to(tensor.dtype), first):
        return tensor
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def rescaled(tensor: Tensor, factor: float) -> Tensor:
    """Return a stored tensor multiplied: itself by 1, else in float32 unless its own dtype holds every value."""
    return tensor if factor == 1 else store_dtype(tensor.float() * factor, tensor.dtype)


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the narrowest dtype that holds all the tensors' values; float32 where torch has no rule (8-bit floats)."""
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    if len(dtypes) == 1:
        return dtypes[0]
    if any(dtype.itemsize == 1 for dtype in dtypes):
        return torch.float32
    return reduce(torch.promote_types, dtypes)


def stored_layer(target: Target, parts: Sequence[Part], rank: int | None, energy: float | None) -> Layer:
    """Return one layer for the sum of the parts: exactly, or as the best LoRA of a rank or energy."""
    layers = [part.layer for part in parts if isinstance(part.layer, LoRA)]
    lower = rank is not None or energy is not None
    if len(layers) == len(parts) and lower:
        shape = common_shape(target, [layer.shape for layer in layers])
        limit = min(rank or shape[0], shape[0], math.prod(shape[1:]))
        if energy is not None or sum(layer.rank for layer in layers) > limit:
            return _truncated(layers, [part.strength for part in parts], shape, rank, energy)
    if len(layers) < len(parts) and lower and all(map(_is_matrix, parts)):
        dense = _total(target, parts)
        best = sketch(dense.flatten(1), rank, energy).factors
        return low_rank(best.rows, best.columns, tuple(dense.shape))
    if len(parts) == 1:
        return scaled(target, parts[0].layer, parts[0].strength)
    if len(layers) == len(parts):
        return _stacked(target, layers, [part.strength for part in parts])
    refuse_products(target, parts)
    dense = _total(target, parts)
    return Norm(dense) if all(isinstance(part.layer, Norm) for part in parts) else Full(dense)


def refuse_products(target: Target, parts: Sequence[Part]) -> None:
    """Raise UnsupportedLayer where a LoHa or LoKr layer meets another one of a rank: no kind of layer is their sum."""
    products = [part for part in parts if isinstance(part.layer, LoHa | LoKr)]
    others = [part for part in parts if isinstance(part.layer, LoRA)]
    if products and len(products) + len(others) == len(parts) > 1:
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: a {type(products[0].layer).__name__} layer cannot be stacked with "
            "another one; give a rank (with svd in place of exact), and the best LoRA of it is made, its error stated"
        )


def _is_matrix(part: Part) -> bool:
    """Tell whether a part is a change of its own that has a rank; a vector has none."""
    if isinstance(part.layer, Full):
        return part.layer.diff.dim() > 1
    return isinstance(part.layer, Additive)


def _stacked(target: Target, layers: Sequence[LoRA], strengths: Sequence[float]) -> LoRA:
    shape = common_shape(target, [layer.shape for layer in layers])
    wide = widest([layer.down for layer in layers])
    if any(layer.mid is not None for layer in layers):
        down = store_dtype(torch.cat([columns(layer) for layer in layers]).float(), wide)
    else:
        down = torch.cat([layer.down.flatten(1).to(wide) for layer in layers])
    scaled_rows = [exact_rows(layer, strength) for layer, strength in zip(layers, strengths, strict=True)]
    up = store_dtype(torch.cat(scaled_rows, 1), widest([layer.up for layer in layers]))
    return low_rank(up, down, shape)


def _narrowed(layer: Layer, dtype: torch.dtype) -> Layer:
    if not isinstance(layer, LoRA) or layer.up.dtype != torch.float32 or layer.scale != 1:
        return layer
    up = layer.up.to(dtype)
    return replace(layer, up=up) if finite(up) else layer


def _truncated(
    layers: Sequence[LoRA], strengths: Sequence[float], shape: tuple[int, ...], rank: int | None, energy: float | None
) -> LoRA:
    terms = [factors(layer, strength) for layer, strength in zip(layers, strengths, strict=True)]
    whole = stack(terms)
    best = truncated(whole.to(torch.float32), rank, energy)
    if resolution(best) < LITTLE * resolution(whole) and cancel(terms):
        return low_rank(torch.zeros(shape[0], 1), torch.zeros(1, math.prod(shape[1:])), shape)
    return low_rank(best.rows, best.columns, shape)


def _total(target: Target, parts: Sequence[Part]) -> Tensor:
    """Return the dense weighted sum of the changes, float32 summed in float64."""
    terms = [change_of(target, part).delta().double() * part.strength for part in parts]
    shape = common_shape(target, [tuple(term.shape) for term in terms])
    return torch.stack([term.reshape(shape) for term in terms]).sum(0).float()


def _cancel(parts: Sequence[Part]) -> bool:
    """Tell whether the layers at a target, whose shapes agree, add up to nothing but rounding."""
    layers = [(part.layer, part.strength) for part in parts if isinstance(part.layer, LoRA)]
    if len(layers) == len(parts):
        return cancel([factors(layer, strength) for layer, strength in layers])
    if len(parts) == 1:  # nothing to cancel with; the only place for a layer that has no change of its own
        return False
    additive = [(part.layer, part.strength) for part in parts if isinstance(part.layer, Additive)]
    terms = [layer.delta().double().flatten() * strength for layer, strength in additive]
    bound = ROUNDING * sum(float(term.norm()) for term in terms)
    return float(torch.stack(terms).sum(0).norm()) <= bound > 0


def _check_rank(method: str, rank: int | None, energy: float | None) -> None:
    if method == "exact" and (rank is not None or energy is not None):
        raise BadConfig("the exact merge keeps every rank: leave rank and energy out, or choose method svd")
    if method == "svd" and rank is None and energy is None:
        raise BadConfig("the svd merge needs a rank, or an energy between 0 and 1")
    if rank is not None and rank < 1:
        raise BadConfig(f"rank {rank}: give a whole number from 1")
    if energy is not None and not 0 < energy <= 1:
        raise BadConfig(f"energy {energy}: give a share between 0 and 1, such as 0.99")


def common_architecture(parts: Sequence[Weighted]) -> str | None:
    """Return the one family of all parts; None when nobody knows it."""
    known: dict[str, str] = {}
    for part in parts:
        if part.adapter.architecture:
            known.setdefault(part.adapter.architecture, part.name)
    if len(known) > 1:
        (first, name), (second, other) = list(known.items())[:2]
        raise WrongArchitecture(f"{name} is made for {first}, {other} for {second}: merge adapters of one family")
    return next(iter(known), None)


def common_extras(parts: Sequence[Weighted]) -> dict[str, Tensor]:
    """Return all tensors that belong to no layer; raises UnsupportedLayer where two disagree."""
    kept: dict[str, Tensor] = {}
    for part in parts:
        for key, tensor in part.adapter.extras.items():
            if key in kept and not torch.equal(kept[key], tensor):
                raise UnsupportedLayer(f"{part.name}: {key!r} is in two adapters and differs; remove one of them first")
            kept[key] = tensor
    return kept


def _described(part: Weighted) -> dict[str, object]:
    described: dict[str, object] = {"source": part.name, "strength": part.strength}
    return described if part.text_encoder is None else {**described, "text_encoder": part.text_encoder}
