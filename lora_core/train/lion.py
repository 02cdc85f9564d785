"""Lion, built in: the sign of an interpolated momentum (arXiv 2302.06675, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Decoupled weight decay; `betas` weigh the step and the momentum. Rates are three to ten times below AdamW's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand."""
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in (one for one in group["params"] if one.grad is not None):
                slots = self.state[parameter]
                if not slots:
                    slots["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = slots["momentum"]
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum.lerp(parameter.grad, 1 - first).sign_(), alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)
