"""The learning rate as a closed form of the step, so that nothing has to be saved or replayed."""

from __future__ import annotations

import math


def rate_factor(scheduler: str, step: int, steps: int, warmup: int = 0) -> float:
    """Return the factor on the peak rate for step `step` (0-based) of `steps`.

    Linear warm-up `step / warmup`, then constant 1, linear `1 - p`, or cosine `(1 + cos(pi p)) / 2`, where
    `p = (step - warmup) / (steps - warmup)` (SGDR, arXiv 1608.03983, equation 5 with one period).

    >>> rate_factor("cosine", 50, 100)
    0.5
    """
    if step < warmup:
        return step / warmup
    if scheduler == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 1.0 - progress if scheduler == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
