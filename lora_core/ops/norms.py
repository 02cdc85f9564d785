"""How strong the layers of an adapter are, in how many directions, and how alike two adapters are.

All of it comes from singular values and small products of the factors; a dense matrix arises only for a layer that is
no LoRA, one at a time. A convolution counts as the matrix `(out, in * kernel)`. Sources: the stable rank
`|A|_F^2 / |A|_2^2`, Rudelson and Vershynin, Sampling from large matrices (J. ACM 54, 2007); the effective rank, the
exponential of the entropy of `sigma_i / sum sigma`, Roy and Vetterli, The effective rank (EUSIPCO 2007).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import WrongArchitecture
from ..layers import Additive, Layer, LoRA, rank_of
from .health import refuse_bad_values
from .lowrank import Factors, factors
from .merge import common_shape
from .spectrum import resolved, singular_values


@dataclass(frozen=True, eq=False)
class Strength:
    """What one layer's change amounts to."""

    shape: tuple[int, ...]
    rank: int | None  # as it is stored
    norm: float  # Frobenius
    values: Tensor | None  # (n,), float64, descending: singular values; None of a vector, which has no rank

    @property
    def spectral(self) -> float:
        """The largest singular value; of a vector its norm."""
        return self.norm if self.values is None else float(self.values[0])

    @property
    def stable_rank(self) -> float | None:
        """`norm^2 / spectral^2`: how many directions are as strong as the strongest; None where nothing changes."""
        return (self.norm / self.spectral) ** 2 if self.values is not None and self.spectral else None

    @property
    def effective_rank(self) -> float | None:
        """How many directions there are by the entropy of the singular values; None where nothing changes."""
        if self.values is None or not self.spectral:
            return None
        shares = self.values[self.values > 0] / self.values.sum()
        return math.exp(-float((shares * shares.log()).sum()))


@dataclass(frozen=True, eq=False)
class Block:
    """What the layers of a block amount to together."""

    name: str
    layers: Sequence[Strength]

    @property
    def norm(self) -> float:
        """Frobenius norm over all layers."""
        return math.hypot(*(layer.norm for layer in self.layers))

    @property
    def spectral(self) -> float:
        """The largest singular value of any layer."""
        return max(layer.spectral for layer in self.layers)

    @property
    def stable_rank(self) -> float | None:
        """Median of the layers' stable ranks."""
        return _middle(layer.stable_rank for layer in self.layers)

    @property
    def effective_rank(self) -> float | None:
        """Median of the layers' effective ranks."""
        return _middle(layer.effective_rank for layer in self.layers)

    @property
    def curve(self) -> Tensor:
        """The singular values of a typical layer `(n,)`: root of the mean square of the layers' first, second ..."""
        found = [layer.values for layer in self.layers if layer.values is not None]
        longest = max((len(values) for values in found), default=0)
        squares = torch.zeros(longest, dtype=torch.float64)
        for values in found:
            squares[: len(values)] += values.square()
        return (squares / max(1, len(found))).sqrt()


@dataclass(frozen=True, eq=False)
class Strengths:
    """All layers of an adapter, and those that have no change of their own."""

    layers: Mapping[Target, Strength]
    without: Mapping[Target, str]  # layers whose effect depends on the base weight -> their kind

    @property
    def whole(self) -> Block:
        """All layers as one block."""
        return Block("all", list(self.layers.values()))

    def blocks(self, names: Mapping[Target, str]) -> list[Block]:
        """Return the blocks that layers lie in, by these names and in their order."""
        found: dict[str, list[Strength]] = {}
        for target, name in names.items():
            if target in self.layers:
                found.setdefault(name, []).append(self.layers[target])
        return [Block(name, layers) for name, layers in found.items()]


def strengths(adapter: Adapter, device: str = "cpu") -> Strengths:
    """Measure every layer of an adapter. Raises BadValues for NaN and infinite values."""
    refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    found: dict[Target, Strength] = {}
    others: dict[Target, str] = {}
    for target, layer in adapter.layers.items():
        if isinstance(layer, Additive):
            found[target] = _strength(layer, rank_of(layer), device)
        else:
            others[target] = type(layer).__name__
    return Strengths(found, others)


def _strength(layer: Additive, rank: int | None, device: str) -> Strength:
    if isinstance(layer, LoRA):
        shape: tuple[int, ...] = layer.shape
    else:
        change = layer.delta()
        shape = tuple(change.shape)
        if change.dim() < 2:
            return Strength(shape, None, float(change.double().norm()), None)
    values = singular_values(layer, torch.device(device)).double().cpu()
    return Strength(shape, rank, float(values.norm()), resolved(values))


@dataclass(frozen=True)
class Likeness:
    """How two adapters' changes lie to each other, over some layers."""

    dot: float  # <A, B>
    left: float  # |A|^2
    right: float  # |B|^2

    @property
    def cosine(self) -> float | None:
        """`<A, B> / |A| |B|`, None where one of them changes nothing."""
        size = math.sqrt(self.left) * math.sqrt(self.right)
        return max(-1.0, min(1.0, self.dot / size)) if size else None

    @property
    def ratio(self) -> float | None:
        """`|B| / |A|`, None where A changes nothing."""
        return math.sqrt(self.right / self.left) if self.left else None


def likeness(left: Adapter, right: Adapter) -> dict[Target, Likeness]:
    """Compare two adapters target by target; what one of them lacks is zero there.

    Layers whose effect depends on the base weight are left out. Raises WrongArchitecture and BadValues.
    """
    if left.architecture and right.architecture and left.architecture != right.architecture:
        raise WrongArchitecture(
            f"one is made for {left.architecture}, the other for {right.architecture}: compare LoRAs of one family"
        )
    for adapter in (left, right):
        refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    targets = dict.fromkeys((*left.layers, *right.layers))
    pairs = {target: (left.layers.get(target), right.layers.get(target)) for target in targets}
    return {target: _likeness(target, *pair) for target, pair in pairs.items() if all(map(_measurable, pair))}


def together(parts: Iterable[Likeness]) -> Likeness:
    """Return the likeness over the layers of several."""
    found = list(parts)
    return Likeness(*(sum(getattr(one, name) for one in found) for name in ("dot", "left", "right")))


def grouped(found: Mapping[Target, Likeness], names: Mapping[Target, str]) -> dict[str, Likeness]:
    """Return the likeness of each block, by these names and in their order."""
    blocks: dict[str, list[Likeness]] = {}
    for target, name in names.items():
        if target in found:
            blocks.setdefault(name, []).append(found[target])
    return {block: together(parts) for block, parts in blocks.items()}


def _measurable(layer: Layer | None) -> bool:
    return layer is None or isinstance(layer, Additive)


def _likeness(target: Target, left: Layer | None, right: Layer | None) -> Likeness:
    if all(layer is None or isinstance(layer, LoRA) for layer in (left, right)):
        common_shape(target, [layer.shape for layer in (left, right) if isinstance(layer, LoRA)])
        one, two = (factors(layer) if isinstance(layer, LoRA) else None for layer in (left, right))
        return Likeness(_dot(one, two), _dot(one, one), _dot(two, two))
    changes = [None if layer is None else _dense(layer) for layer in (left, right)]
    common_shape(target, [tuple(change.shape) for change in changes if change is not None])
    a, b = (None if change is None else change.flatten() for change in changes)
    return Likeness(_inner(a, b), _inner(a, a), _inner(b, b))


def _dot(left: Factors | None, right: Factors | None) -> float:
    """Return `<A, B> = trace(A B^T)` of two products: the sum of `(rows^T rows') * (columns columns'^T)`."""
    if left is None or right is None:
        return 0.0
    return float(((left.rows.T @ right.rows) * (left.columns @ right.columns.T)).sum())


def _inner(left: Tensor | None, right: Tensor | None) -> float:
    return 0.0 if left is None or right is None else float(left @ right)


def _dense(layer: Layer) -> Tensor:
    if not isinstance(layer, Additive):
        raise TypeError(f"{type(layer).__name__} has no change of its own")
    return layer.delta().double()


def _middle(numbers: Iterable[float | None]) -> float | None:
    found = [number for number in numbers if number is not None]
    return median(found) if found else None
