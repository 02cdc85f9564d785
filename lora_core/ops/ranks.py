"""How large a rank to keep: rules for one layer's singular values, and the sharing out of a file's size over layers.

The names `sv_ratio`, `sv_fro` and `sv_cumulative` and what their numbers mean are those of `resize_lora.py` in
kohya-ss/sd-scripts. The rank here is the smallest that keeps the promise; that script takes one more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BadConfig
from .lowrank import kept_rank

SIZE = "size"  # the one rule that looks at all layers together
MEGABYTE = 1_000_000  # bytes
FLAT = 0.05  # how far from its chord a spectrum's curve must come for a knee; both sides are 1 long


@dataclass(frozen=True)
class Rule:
    """A rule: the rank that it keeps of singular values (descending, float64), and the numbers that it takes."""

    rank: Callable[[Tensor, float], int]
    fits: Callable[[float], bool]
    wants: str


def sv_ratio(values: Tensor, ratio: float) -> int:
    """Keep the singular values that are at least the largest divided by `ratio`.

    >>> sv_ratio(torch.tensor([8.0, 4.0, 2.0, 1.0]), 4)
    3
    """
    return int((values >= values[0] / ratio).sum())


def sv_fro(values: Tensor, share: float) -> int:
    """Keep the smallest rank whose Frobenius norm is at least that share of the whole: `energy` of its square.

    >>> sv_fro(torch.tensor([4.0, 3.0]), 0.8)
    1
    """
    return kept_rank(values, energy=share**2)


def sv_cumulative(values: Tensor, share: float) -> int:
    """Keep the smallest rank whose singular values add up to that share of all.

    >>> sv_cumulative(torch.tensor([5.0, 3.0, 2.0]), 0.8)
    2
    """
    sums = values.double().cumsum(0)
    return 1 + int((sums < share * sums[-1] * (1 - 1e-12)).sum())


def knee(values: Tensor, _value: float = 0) -> int:
    """Keep the singular values in front of the knee of their logarithms' curve; all of them where it has none.

    Rank and logarithm are scaled to 0 to 1. The knee is the point farthest from the chord between the first and the
    last one: below it, where a flat tail begins, it is left out; above it, where a flat head ends, it is kept. Within
    0.05 of the chord there is no knee.
    Source: Satopaa et al., Finding a "Kneedle" in a Haystack, ICDCS workshops 2011, without its smoothing.

    >>> knee(torch.tensor([10.0, 9.0, 8.0, 0.1, 0.1, 0.1, 0.09])), knee(torch.tensor([1.0, 1.0, 1.0, 0.01]))
    (3, 3)
    """
    if len(values) < 3 or not values[-1] > 0 or values[0] == values[-1]:
        return len(values)
    logs = values.double().log()
    heights = (logs - logs[-1]) / (logs[0] - logs[-1])
    above = heights - torch.linspace(1, 0, len(values), dtype=torch.float64)
    point = int(above.abs().argmax())
    if abs(float(above[point])) <= FLAT:
        return len(values)
    return point if above[point] < 0 else point + 1


def _share(value: float) -> bool:
    return 0 < value <= 1


_A_SHARE = "a share between 0 and 1, such as 0.9"

RULES: Mapping[str, Rule] = {
    "rank": Rule(lambda values, rank: int(rank), lambda rank: rank >= 1 and rank == int(rank), "a whole number from 1"),
    "energy": Rule(lambda values, share: kept_rank(values, energy=share), _share, _A_SHARE),
    "sv_ratio": Rule(sv_ratio, lambda ratio: ratio >= 1, "a number from 1, such as 10"),
    "sv_fro": Rule(sv_fro, _share, _A_SHARE),
    "sv_cumulative": Rule(sv_cumulative, _share, _A_SHARE),
    "knee": Rule(knee, lambda _: True, "no number"),
}


def check_rule(name: str, value: float) -> None:
    """Raise BadConfig for a rule that is not known, or a number that it does not take."""
    if name not in (*RULES, SIZE):
        raise BadConfig(f"unknown rule {name!r}: choose one of {', '.join((*RULES, SIZE))}")
    fits = RULES[name].fits if name in RULES else lambda size: size > 0
    if not math.isfinite(value) or not fits(value):
        wants = RULES[name].wants if name in RULES else "megabytes, such as 40"
        raise BadConfig(f"{name} {value:g}: give {wants}")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One layer's part in the sharing out."""

    values: Tensor  # singular values, descending
    cost: int  # bytes that each rank takes


def spread(spectra: Sequence[Spectrum], budget: float) -> list[int] | None:
    """Share bytes out as ranks, at least one for each layer, so that the error of all layers together is least.

    The squared error is a sum over layers, and a rank more at a layer lowers it by a squared singular value; these fall
    from rank to rank. So the best ranks are had by always taking the one with the largest gain for a byte: that is
    optimal where all ranks cost alike, and otherwise but for the last few bytes, which a layer of cheaper ranks may
    still take (the continuous knapsack). None where the budget does not hold rank 1 everywhere.
    """
    ranks = [1] * len(spectra)
    left = budget - sum(one.cost for one in spectra)
    if left < 0:
        return None
    gains = [(one.values.double().square() / one.cost).tolist() for one in spectra]
    offers = [(-gain[1], index) for index, gain in enumerate(gains) if len(gain) > 1]
    heapq.heapify(offers)
    while offers:
        gain, index = heapq.heappop(offers)
        if gain == 0 or spectra[index].cost > left:  # of no use, or too dear now and later
            continue
        left -= spectra[index].cost
        ranks[index] += 1
        if ranks[index] < len(gains[index]):
            heapq.heappush(offers, (-gains[index][ranks[index]], index))
    return ranks
