"""What takes part in a merge: adapters with strengths, and the layers that meet at one target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadValues
from ..layers import Additive, Layer, LoRA
from .lowrank import Factors, factors
from .scale import strength_at


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
    index: int = 0  # place of its adapter in the order in which they were given


def by_target(parts: Sequence[Weighted]) -> dict[Target, list[Part]]:
    """Return what acts on each target, in the order of the adapters; strengths of 0 are left out."""
    found: dict[Target, list[Part]] = {}
    for index, part in enumerate(parts):
        for target, layer in part.adapter.layers.items():
            if part.at(target) != 0:
                found.setdefault(target, []).append(Part(layer, part.at(target), index))
    return found


def common_shape(target: Target, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that all share; a matrix counts as a convolution whose kernel is flattened. Raises BadValues."""
    longest = max(shapes, key=len)
    for shape in shapes:
        flat = len(shape) <= 2 and (shape[:1], math.prod(shape)) == (longest[:1], math.prod(longest))
        if shape != longest and not flat:
            raise BadValues(f"{target.module}: shapes {shape} and {longest} differ; merge adapters of one base model")
    return longest


def low_rank(up: Tensor, down: Tensor, shape: tuple[int, ...]) -> LoRA:
    """Return the LoRA of `up` (out, rank) and `down` (rank, in * kernel) for a weight of that shape, at scale 1."""
    rank = len(down)
    ones = (1,) * (len(shape) - 2)
    return LoRA(down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *ones), alpha=float(rank))


def shape_of(layer: Additive) -> tuple[int, ...]:
    """Return the shape of a change."""
    return layer.shape if isinstance(layer, LoRA) else tuple(layer.delta().shape)


def factored(layer: Additive, strength: float = 1.0) -> Factors:
    """Return a layer's matrix as float64 factors; a dense one stands beside a unit matrix, a vector is a column."""
    if isinstance(layer, LoRA):
        return factors(layer, strength)
    change = layer.delta().double() * strength
    matrix = change.flatten(1) if change.dim() > 1 else change[:, None]
    unit = torch.eye(min(matrix.shape), dtype=torch.float64, device=matrix.device)
    return Factors(unit, matrix) if len(matrix) <= matrix.shape[1] else Factors(matrix, unit)
