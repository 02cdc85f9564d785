"""Prodigy, built in: Adam whose rate follows from an estimate of the distance to the solution (arXiv 2306.06101).

Algorithm 4 with decoupled weight decay. The learning rate is a factor on the estimate `d` and is usually 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Prodigy(torch.optim.Optimizer):
    """One estimate for all groups; a group's rate is a factor of its own on it."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
    ):
        settings = {"lr": lr, "betas": betas, "beta3": beta3, "eps": eps, "weight_decay": weight_decay}
        settings |= {"use_bias_correction": use_bias_correction, "safeguard_warmup": safeguard_warmup}
        settings |= {"d0": d0, "d_coef": d_coef, "growth_rate": growth_rate}
        super().__init__(params, {**settings, "d": d0, "numerator": 0.0, "count": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients at hand; waits once for the device."""
        shared = self.param_groups[0]
        d, rate = shared["d"], _rate(shared, max(group["lr"] for group in self.param_groups))
        decay3 = shared["beta3"] if shared["beta3"] is not None else math.sqrt(shared["betas"][1])
        progress, distance = [], []
        for group in self.param_groups:
            for parameter in (one for one in group["params"] if one.grad is not None and group["lr"]):
                slots = self._slots(parameter)
                ratio = d / group["d0"] * d * rate
                progress.append(torch.dot(parameter.grad.flatten(), (slots["start"] - parameter).flatten()) * ratio)
                _accumulate(slots, parameter.grad, group["betas"], d)
                weight = d / group["d0"] * d if group["safeguard_warmup"] else ratio
                slots["sum"].mul_(decay3).add_(parameter.grad, alpha=weight)
                distance.append(slots["sum"].abs().sum())
        if distance:
            gained, whole = torch.stack([torch.stack(progress).sum(), torch.stack(distance).sum()]).tolist()
            self._estimate(decay3, gained, whole)
        for group in self.param_groups:
            self._move(group, d)

    def _slots(self, parameter: Tensor) -> dict[str, Tensor]:
        slots: dict[str, Tensor] = self.state[parameter]
        if not slots:
            slots["start"] = parameter.detach().clone()
            for name in ("mean", "square", "sum"):
                slots[name] = torch.zeros_like(parameter)
        return slots

    def _estimate(self, decay: float, gained: float, distance: float) -> None:
        """Raise the estimate `d` where the steps so far say so."""
        shared = self.param_groups[0]
        numerator, d = shared["numerator"] * decay + gained, shared["d"]
        if distance > 0:
            found = shared["d_coef"] * numerator / distance
            d = max(d, found if d == shared["d0"] else min(found, d * shared["growth_rate"]))
        for group in self.param_groups:
            group["numerator"], group["d"] = numerator, d

    def _move(self, group: dict[str, Any], before: float) -> None:
        """Take Adam's step; its length is by the estimate before this step, its epsilon by the one after."""
        length = before * _rate(group, group["lr"])
        for parameter in (one for one in group["params"] if one.grad is not None and self.state[one]):
            slots = self.state[parameter]
            parameter.mul_(1 - group["weight_decay"] * length)
            parameter.addcdiv_(slots["mean"], slots["square"].sqrt().add_(group["d"] * group["eps"]), value=-length)
        group["count"] += 1


def _rate(group: dict[str, Any], lr: float) -> float:
    """Return the rate, with Adam's correction for its moments' start at zero where asked."""
    if not group["use_bias_correction"]:
        return lr
    first, second = group["betas"]
    count = group["count"] + 1
    return float(lr * math.sqrt(1 - second**count) / (1 - first**count))


def _accumulate(slots: dict[str, Tensor], grad: Tensor, betas: tuple[float, float], d: float) -> None:
    slots["mean"].mul_(betas[0]).add_(grad, alpha=d * (1 - betas[0]))
    slots["square"].mul_(betas[1]).addcmul_(grad, grad, value=d * d * (1 - betas[1]))
