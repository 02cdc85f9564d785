"""What every layer promises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Additive(ABC):
    """A layer whose effect is `weight + strength * delta()`, whatever the weight."""

    @abstractmethod
    def delta(self) -> Tensor:
        """Return the parameter's change at strength 1, float32, in the parameter's own shape."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors, for counting, checking and moving."""

    @abstractmethod
    def scaled(self, strength: float) -> Additive:
        """Return the same layer with `delta()` multiplied by `strength`."""

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return `weight + strength * delta()`, computed in float32, in the weight's shape and dtype."""
        change = self.delta().to(weight.device).reshape(weight.shape)
        return torch.add(weight.float(), change, alpha=strength).to(weight.dtype)
