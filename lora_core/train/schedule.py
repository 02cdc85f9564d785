"""The learning rate as a closed form of the step, so that nothing has to be saved or replayed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .config import TrainConfig


def rate_at(config: TrainConfig, step: int) -> float:
    """Return the factor on a configuration's peak rate for a step (0-based)."""
    shape = config.cycles, config.power, config.min_rate
    return rate_factor(config.scheduler, step, config.steps, config.warmup, *shape)


def rate_factor(
    scheduler: str,
    step: int,
    steps: int,
    warmup: int = 0,
    cycles: int = 1,
    power: float = 1.0,
    min_rate: float = 0.0,
) -> float:
    """Return the factor on the peak rate for step `step` (0-based) of `steps`.

    Linear warm-up `step / warmup`, then the schedule's form of `p = (step - warmup) / (steps - warmup)`, lifted so that
    it ends at `min_rate` in place of 0.

    >>> rate_factor("cosine", 50, 100)
    0.5
    """
    if step < warmup:
        return step / warmup
    if scheduler == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return min_rate + (1 - min_rate) * FORMS[scheduler](progress, cycles, power)


def _linear(progress: float, cycles: int, power: float) -> float:
    return 1.0 - progress


def _cosine(progress: float, cycles: int, power: float) -> float:
    """SGDR, arXiv 1608.03983, equation 5 with one period."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _restarts(progress: float, cycles: int, power: float) -> float:
    """The same with `cycles` equal periods."""
    return 0.0 if progress >= 1 else _cosine(progress * cycles % 1.0, cycles, power)


def _polynomial(progress: float, cycles: int, power: float) -> float:
    remaining: float = (1.0 - progress) ** power
    return remaining


def _rex(progress: float, cycles: int, power: float) -> float:
    """REX, arXiv 2107.04197, equation 2: slow at first, steep at the end."""
    return (1.0 - progress) / (1.0 - progress / 2)


FORMS: Mapping[str, Callable[[float, int, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "rex": _rex,
}
