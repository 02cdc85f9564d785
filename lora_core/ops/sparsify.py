"""Which entries of a weight change stay: the first choice of a merge method.

Each function takes one adapter's change at one target (float32, any shape), how to thin it out, and a generator for
those that draw lots; entries that go become zero. `density` 1 keeps everything bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadConfig


@dataclass(frozen=True)
class Thinning:
    """How to thin out; None stands for what suits the density."""

    density: float = 0.5  # share of entries that stay, above 0 to 1
    epsilon: float | None = None  # how far apart the chances of the smallest and the largest entry of a row are
    gamma: float | None = None  # share of the largest entries that go


Sparsify = Callable[[Tensor, Thinning, torch.Generator], Tensor]


def largest(change: Tensor, thinning: Thinning, lots: torch.Generator) -> Tensor:
    """Keep the entries of the largest size, and all that are as large as the smallest of these.

    Source: the trim step of TIES, arXiv 2306.01708, section 3; PEFT, `magnitude_based_pruning`, which of entries of
    the same size keeps some at random. The count is per layer, as in PEFT and mergekit.
    """
    return change * (change.abs() >= _size_at(change, int(thinning.density * change.numel())))


def random(change: Tensor, thinning: Thinning, lots: torch.Generator) -> Tensor:
    """Keep each entry with the chance `density`, divided by it, so that the expected value stays.

    Source: DARE, arXiv 2311.03099, equation 1.
    """
    kept = _uniform(change, lots) < thinning.density
    return change * kept / thinning.density


def graded(change: Tensor, thinning: Thinning, lots: torch.Generator) -> Tensor:
    """Keep each entry with a chance that grows with its size's rank in its row, divided by that chance.

    The chances go in even steps from `density - epsilon / 2` for a row's smallest entry to `density + epsilon / 2` for
    its largest. Source: DELLA, arXiv 2406.11617, section 3.1 (MagPrune, with drop rates `1 - chance`); mergekit counts
    epsilon on either side. A vector is one row.
    """
    matrix = change.flatten(1) if change.dim() > 1 else change[None]
    width = spread(thinning)
    ranks = matrix.abs().argsort(dim=1, stable=True).argsort(dim=1).to(matrix.dtype)
    steps = ranks / max(1, matrix.shape[1] - 1) - 0.5
    chance = thinning.density + width * steps
    kept = _uniform(matrix, lots) < chance
    return torch.where(kept, matrix / chance, 0.0).reshape(change.shape)


def middle(change: Tensor, thinning: Thinning, lots: torch.Generator) -> Tensor:
    """Drop the share `gamma` of the largest entries as outliers, and keep of the rest the largest, `density` of all.

    Source: Model Breadcrumbs, arXiv 2312.06795, section 3 (beta there is what goes at the small end); mergekit,
    `magnitude_outliers`, has the same two numbers.
    """
    outliers = int(top(thinning) * change.numel())
    if not outliers:
        return largest(change, thinning, lots)
    sizes = change.abs()
    kept = outliers + int(thinning.density * change.numel())
    return change * ((sizes < _size_at(change, outliers)) & (sizes >= _size_at(change, kept)))


def spread(thinning: Thinning) -> float:
    """Return DELLA's epsilon: 0.2 unless given, less where the density leaves less room. Raises BadConfig."""
    room = min(2 * thinning.density, 2 * (1 - thinning.density))
    if thinning.epsilon is None:
        return min(0.2, room / 2)
    if not 0 <= thinning.epsilon <= room:
        raise BadConfig(
            f"epsilon {thinning.epsilon:g}: the chances would leave 0 to 1 at density {thinning.density:g}; "
            f"give a number from 0 to {room:g}"
        )
    return thinning.epsilon


def top(thinning: Thinning) -> float:
    """Return the share of outliers: 0.01 unless given, less where the density leaves less. Raises BadConfig."""
    room = 1 - thinning.density
    if thinning.gamma is None:
        return min(0.01, room)
    if not 0 <= thinning.gamma <= room:
        raise BadConfig(
            f"gamma {thinning.gamma:g}: with density {thinning.density:g} more than all entries would be spoken for; "
            f"give a share from 0 to {room:g}"
        )
    return thinning.gamma


def _size_at(change: Tensor, count: int) -> Tensor:
    """Return the size of the `count`-th largest entry; infinite for none."""
    sizes = change.abs().flatten()
    if count < 1:
        return torch.full((), torch.inf, dtype=change.dtype, device=change.device)
    return sizes.kthvalue(len(sizes) - count + 1).values


def _uniform(like: Tensor, lots: torch.Generator) -> Tensor:
    """Draw numbers from 0 to 1 on the CPU, so that any device drops the same entries."""
    return torch.rand(like.shape, generator=lots, dtype=torch.float32).to(like.device)
