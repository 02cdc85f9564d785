"""A running average of a model's weights: smoother than the last ones."""

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average, warmed up so that the first steps do not linger."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._count = 0
        self._weights: list[Tensor] = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes in the model's present weights."""
        self._count += 1
        decay = min(self._decay, self._count / (self._count + 10))
        torch._foreach_lerp_(self._weights, [p.detach() for p in model.parameters()], 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the model's weights with the average."""
        for parameter, weight in zip(model.parameters(), self._weights, strict=True):
            parameter.copy_(weight)
