"""A parameter's new value itself, in place of a change: `set_weight`, custom diffusion, PEFT's `modules_to_save`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Sizes, Transform, misfit


@dataclass(frozen=True, eq=False)
class Replace(Transform):
    """A weight, or a bias where the target says so, that takes the old one's place: `W' = W + s * (value - W)`."""

    value: Tensor  # (out, in, *kernel) or (out,)

    @property
    def shape(self) -> Sizes:
        """The value's shape."""
        return tuple(self.value.shape)

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the value, or the point at `strength` on the line to it."""
        if self.value.numel() != weight.numel():
            raise misfit(self, self.shape, weight)
        value = self.value.to(weight).reshape(weight.shape)
        return value if strength == 1 else torch.lerp(weight, value, strength)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the one tensor."""
        return (self.value,)
