"""A moving average of the trained tensors (EMA), with a warm-up of its decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Average:
    """The average, and how many steps it has seen."""

    limit: float  # of the decay
    tensors: list[Tensor]
    count: int = 0

    @classmethod
    def of(cls, limit: float, parameters: Sequence[Tensor]) -> Average:
        """Return an average that has seen nothing yet."""
        return cls(limit, [parameter.detach().clone() for parameter in parameters])

    @property
    def decay(self) -> float:
        """The weight of the past in the step in hand: 0 in the first, then `(1 + n) / (10 + n)` up to the limit.

        n counts the steps before; the same rule as `diffusers.training_utils.EMAModel` without its warm-up powers.
        """
        before = self.count - 1
        return 0.0 if before <= 0 else min(self.limit, (1 + before) / (10 + before))

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Take the parameters' values into the average."""
        self.count += 1
        torch._foreach_lerp_(self.tensors, list(parameters), 1 - self.decay)
