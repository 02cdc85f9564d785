"""Dropout of an adapter's parts, drawn by (seed, step, position in the step, module): a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapter import Target
from . import rng

Place = tuple[int, int]  # step, and position of the micro-batch's first row in it


@dataclass(eq=False)
class Dropout:
    """Rates, and the place in the run that draws belong to; without a place nothing is dropped.

    A forward pass that gradient checkpointing repeats is at the same place and drops the same.
    """

    seed: int = 0
    elements: float = 0.0  # share of the values that enter `up`
    ranks: float = 0.0  # share of whole ranks, drawn for each sample
    modules: float = 0.0  # share of whole layers
    place: Place | None = None

    @contextmanager
    def at(self, step: int, row: int) -> Iterator[None]:
        """Drop parts in the forward and backward pass inside the block."""
        before, self.place = self.place, (step, row)
        try:
            yield
        finally:
            self.place = before

    def drops(self, target: Target) -> bool:
        """Say whether the layer is left out in this pass."""
        if self.place is None or not self.modules:
            return False
        return bool(torch.rand(1, generator=self._generator("module dropout", target)) < self.modules)

    def mask(self, target: Target, shape: Sequence[int], axis: int, like: Tensor) -> Tensor | None:
        """Return what multiplies a tensor of this shape whose `axis` counts ranks; None leaves it as it is.

        What is kept is enlarged, so that the mean stays (arXiv 1207.0580).
        """
        if self.place is None or not (self.elements or self.ranks):
            return None
        mask = torch.ones(1)
        if self.elements:
            mask = mask * self._kept(target, "dropout", shape, self.elements)
        if self.ranks:
            sides = [size if side in (0, axis) else 1 for side, size in enumerate(shape)]
            mask = mask * self._kept(target, "rank dropout", sides, self.ranks)
        return mask.to(like.device, like.dtype)

    def _kept(self, target: Target, purpose: str, shape: Sequence[int], rate: float) -> Tensor:
        drawn = torch.rand(tuple(shape), generator=self._generator(purpose, target))
        return (drawn >= rate) / (1 - rate)

    def _generator(self, purpose: str, target: Target) -> torch.Generator:
        return rng.generator(self.seed, purpose, *(self.place or ()), target.component, *place(target))


def place(target: Target) -> tuple[int | str, ...]:
    """Return what tells a target from the others of its component, for draws and names."""
    return (target.module,) if target.block is None else (target.module, target.block)
