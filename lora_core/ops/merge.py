"""Merge adapters into one whose effect at strength 1 is the sum of theirs: exactly, or as the best lower rank.

The sum of low-rank products is the product of their stacked factors: `s1 U1 D1 + s2 U2 D2 = [s1 U1, s2 U2] [D1; D2]`.
Every strength enters once and no cross term arises, unlike in a sum of the factors themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadConfig, BadValues, UnsupportedLayer, WrongArchitecture
from ..layers import Additive, Full, Layer, LoHa, LoKr, LoRA, Norm
from .health import refuse_bad_values
from .lowrank import ROUNDING, cancel, columns, factors, resolution, rows, stack, truncated, truncated_matrix
from .provenance import united
from .scale import check_strength, scaled, strength_at

METHODS = ("exact", "svd")
LITTLE = 1e-3  # share of its terms that a sum falls below before it is worth the time to ask whether they cancel


@dataclass(frozen=True, eq=False)
class Weighted:
    """An adapter and how strongly it takes part."""

    adapter: Adapter
    strength: float = 1.0
    text_encoder: float | None = None  # strength of all components but the denoiser; None = the same
    source: str = ""  # file name, for messages and metadata

    def at(self, target: Target) -> float:
        """Return the strength that holds at a target."""
        return strength_at(target, self.strength, self.text_encoder)

    @property
    def name(self) -> str:
        """What to call it: its file, else the name in its metadata."""
        return self.source or self.adapter.metadata.get("ss_output_name", "") or "adapter"


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter's layer at a target, and its strength, which is not 0."""

    layer: Layer
    strength: float


def merge(
    parts: Sequence[Weighted], method: str = "exact", rank: int | None = None, energy: float | None = None
) -> Adapter:
    """Return one adapter for the weighted sum of several.

    "exact" stacks the factors: the rank is the sum of the ranks, alpha equals the rank, nothing is lost. `down` keeps
    its bits and dtype (the widest where they differ; Tucker cores are absorbed); `up`, which carries the strengths,
    stays float32 unless the narrow dtype holds every value (see `store_dtype`). A layer that only one adapter
    has keeps its tensors, its alpha carries the strength.
    "svd" gives the best layer of at most `rank`, or of the smallest rank with `energy` (0 to 1) of the squared singular
    values; with both, `rank` is the upper bound. Its tensors are float32, to be cast by the writer; layers that need
    no truncation are stacked as in "exact".
    Where layers cancel each other out, their best lower rank is a zero of rank 1, not the noise of their rounding.
    LoHa and LoKr, whose sum with another layer is none of their kind, become the best LoRA of a rank with "svd" alone.
    Where a dense change takes part, the sum is dense in float32 with either method. Strength 0 leaves a part out.
    A layer whose effect depends on the base weight (DoRA, the rotations) can only be passed on as it is.
    Raises BadConfig (also for a sum that is zero everywhere), WrongArchitecture, BadValues (NaN, infinite, shapes that
    differ) and UnsupportedLayer.
    """
    _check(parts, method, rank, energy)
    architecture = _common_architecture(parts)
    taking_part = [part for part in parts if part.strength != 0 or part.text_encoder]
    for part in taking_part:
        refuse_bad_values(part.adapter, part.name)
    found = by_target(taking_part)
    layers = {target: _merged(target, acting, rank, energy) for target, acting in found.items()}
    if not layers:
        raise BadConfig("every part has strength 0 or no layers: nothing is left to merge")
    if all(_cancel(acting) for acting in found.values()):
        names = ", ".join(part.name for part in taking_part)
        raise BadConfig(f"{names}: cancel each other out at these strengths, nothing would be left; change a strength")
    operation = {"method": method, "rank": rank, "energy": energy, "parts": [_described(part) for part in taking_part]}
    sources = [part.adapter for part in taking_part]
    return united(sources, layers, operation, architecture, _extras(taking_part))


def by_target(parts: Sequence[Weighted]) -> dict[Target, list[Part]]:
    """Return what acts on each target, in the order of the adapters; strengths of 0 are left out."""
    found: dict[Target, list[Part]] = {}
    for part in parts:
        for target, layer in part.adapter.layers.items():
            if part.at(target) != 0:
                found.setdefault(target, []).append(Part(layer, part.at(target)))
    return found


def store_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a narrower dtype when that loses nothing, else as it is.

    >>> store_dtype(torch.tensor([0.5]), torch.float16).dtype, store_dtype(torch.tensor([0.1]), torch.float16).dtype
    (torch.float16, torch.float32)
    """
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def rescaled(tensor: Tensor, factor: float) -> Tensor:
    """Return a stored tensor multiplied: itself by 1, else in float32 unless its own dtype holds every value."""
    return tensor if factor == 1 else store_dtype(tensor.float() * factor, tensor.dtype)


def common_shape(target: Target, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that all share; a matrix counts as a convolution whose kernel is flattened. Raises BadValues."""
    longest = max(shapes, key=len)
    for shape in shapes:
        flat = len(shape) <= 2 and (shape[:1], math.prod(shape)) == (longest[:1], math.prod(longest))
        if shape != longest and not flat:
            raise BadValues(f"{target.module}: shapes {shape} and {longest} differ; merge adapters of one base model")
    return longest


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the narrowest dtype that holds all the tensors' values; float32 where torch has no rule (8-bit floats)."""
    dtypes = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    if len(dtypes) == 1:
        return dtypes[0]
    if any(dtype.itemsize == 1 for dtype in dtypes):
        return torch.float32
    return reduce(torch.promote_types, dtypes)


def _merged(target: Target, parts: Sequence[Part], rank: int | None, energy: float | None) -> Layer:
    layers = [part.layer for part in parts if isinstance(part.layer, LoRA)]
    if len(layers) == len(parts) and (rank is not None or energy is not None):
        shape = common_shape(target, [layer.shape for layer in layers])
        limit = min(rank or shape[0], shape[0], math.prod(shape[1:]))
        if energy is not None or sum(layer.rank for layer in layers) > limit:
            return _truncated(layers, [part.strength for part in parts], shape, rank, energy)
    products = [part for part in parts if isinstance(part.layer, LoHa | LoKr)]
    if products and (rank is not None or energy is not None) and len(products) + len(layers) == len(parts):
        total = _total(target, parts)
        best = truncated_matrix(total.flatten(1), rank, energy)
        return low_rank(best.rows, best.columns, tuple(total.shape))
    if len(parts) == 1:
        return scaled(target, parts[0].layer, parts[0].strength)
    if len(layers) == len(parts):
        return _stacked(target, layers, [part.strength for part in parts])
    if products and len(products) + len(layers) == len(parts):
        raise UnsupportedLayer(
            f"{target.module}: a {type(products[0].layer).__name__} layer cannot be stacked with another one; use the "
            "svd method, which gives the best LoRA of a rank, and says how close it comes"
        )
    total = _total(target, parts)
    return Norm(total) if all(isinstance(part.layer, Norm) for part in parts) else Full(total)


def _stacked(target: Target, layers: Sequence[LoRA], strengths: Sequence[float]) -> LoRA:
    shape = common_shape(target, [layer.shape for layer in layers])
    wide = widest([layer.down for layer in layers])
    if any(layer.mid is not None for layer in layers):
        down = store_dtype(torch.cat([columns(layer) for layer in layers]).float(), wide)
    else:
        down = torch.cat([layer.down.flatten(1).to(wide) for layer in layers])
    scaled_rows = [rows(layer, strength) for layer, strength in zip(layers, strengths, strict=True)]
    up = store_dtype(torch.cat(scaled_rows, 1).float(), widest([layer.up for layer in layers]))
    return low_rank(up, down, shape)


def _truncated(
    layers: Sequence[LoRA], strengths: Sequence[float], shape: tuple[int, ...], rank: int | None, energy: float | None
) -> LoRA:
    terms = [factors(layer, strength) for layer, strength in zip(layers, strengths, strict=True)]
    total = stack(terms)
    best = truncated(total.to(torch.float32), rank, energy)
    if resolution(best) < LITTLE * resolution(total) and cancel(terms):
        return low_rank(torch.zeros(shape[0], 1), torch.zeros(1, math.prod(shape[1:])), shape)
    return low_rank(best.rows, best.columns, shape)


def low_rank(up: Tensor, down: Tensor, shape: tuple[int, ...]) -> LoRA:
    """Return the LoRA of `up` (out, rank) and `down` (rank, in * kernel) for a weight of that shape, at scale 1."""
    rank = len(down)
    ones = (1,) * (len(shape) - 2)
    return LoRA(down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *ones), alpha=float(rank))


def _total(target: Target, parts: Sequence[Part]) -> Tensor:
    """Return the dense weighted sum of the changes, float32 summed in float64."""
    terms = []
    for part in parts:
        if not isinstance(part.layer, Additive):
            raise UnsupportedLayer(
                f"{target.module}: the effect of a {type(part.layer).__name__} layer depends on the base weight, so it "
                "cannot be added to another one; apply both, one after the other"
            )
        terms.append(part.layer.delta().double() * part.strength)
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


def _check(parts: Sequence[Weighted], method: str, rank: int | None, energy: float | None) -> None:
    if not parts:
        raise BadConfig("merge needs at least one adapter")
    if method not in METHODS:
        raise BadConfig(f"unknown merge method {method!r}: choose one of {', '.join(METHODS)}")
    if method == "exact" and (rank is not None or energy is not None):
        raise BadConfig("the exact merge keeps every rank: leave rank and energy out, or choose method svd")
    if method == "svd" and rank is None and energy is None:
        raise BadConfig("the svd merge needs a rank, or an energy between 0 and 1")
    if rank is not None and rank < 1:
        raise BadConfig(f"rank {rank}: give a whole number from 1")
    if energy is not None and not 0 < energy <= 1:
        raise BadConfig(f"energy {energy}: give a share between 0 and 1, such as 0.99")
    for part in parts:
        check_strength(part.strength, part.text_encoder)


def _common_architecture(parts: Sequence[Weighted]) -> str | None:
    """Return the one family of all parts; None when nobody knows it."""
    known: dict[str, str] = {}
    for part in parts:
        if part.adapter.architecture:
            known.setdefault(part.adapter.architecture, part.name)
    if len(known) > 1:
        (first, name), (second, other) = list(known.items())[:2]
        raise WrongArchitecture(f"{name} is made for {first}, {other} for {second}: merge adapters of one family")
    return next(iter(known), None)


def _extras(parts: Sequence[Weighted]) -> dict[str, Tensor]:
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
