"""LoKr: the Kronecker product of a small and a large factor, either of which may itself be of low rank.

`delta = scale * kron(w1, w2)`, with `w = w_a @ w_b` for a factor of low rank and `sum_ij t[i, j] a[i, out] b[j, in]`
for a Tucker one. Sources: KronA, arXiv 2212.10650; LyCORIS, arXiv 2309.14859, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import UnsupportedLayer
from .base import Additive, wide


@dataclass(frozen=True, eq=False)
class LoKr(Additive):
    """A Kronecker product; each factor is either whole (`w1`) or of low rank (`w1_a`, `w1_b`).

    The scale is `alpha / rank` where a factor of low rank tells the rank. Between two whole factors LyCORIS uses 1,
    whatever alpha says; PEFT uses `alpha / r`, which `r` asks for. `shape` as in LoHa.
    """

    alpha: float  # as the file has it, also where it has no effect
    w1: Tensor | None = None  # (a, b)
    w1_a: Tensor | None = None  # (a, rank)
    w1_b: Tensor | None = None  # (rank, b)
    w2: Tensor | None = None  # (out / a, in / b, *kernel)
    w2_a: Tensor | None = None  # (out / a, rank); Tucker: (rank, out / a)
    w2_b: Tensor | None = None  # (rank, in / b * kernel) or (rank, in / b, *kernel); Tucker: (rank, in / b)
    t2: Tensor | None = None  # Tucker core (rank, rank, *kernel)
    shape: tuple[int, ...] = ()  # of the weight; left out: what the factors tell
    scalar: Tensor | None = None  # 0-d factor that early LyCORIS files carry (use_scalar); later ones fold it in
    r: int | None = None  # the rank in a PEFT config, for two whole factors

    def __post_init__(self) -> None:
        """Fill in the shape that the factors tell; raises UnsupportedLayer where one is missing."""
        if not self.shape:
            left, right = self.first_shape, self.second_shape
            object.__setattr__(self, "shape", (left[0] * right[0], left[1] * right[1], *right[2:]))

    @property
    def rank(self) -> int | None:
        """Rank of a factor of low rank, else `r`, else None."""
        for factor in (self.w1_b if self.w1 is None else None, self.w2_b if self.w2 is None else None):
            if factor is not None:
                return int(factor.shape[0])
        return self.r

    @property
    def scale(self) -> float:
        """The factor on the product: `alpha / rank`, or 1 without a rank; times `scalar` where there is one."""
        base = 1.0 if self.rank is None else self.alpha / self.rank
        return base * (1.0 if self.scalar is None else float(self.scalar))

    @property
    def first_shape(self) -> tuple[int, ...]:
        """Shape of the first factor, `(a, b)`."""
        return _shape(self.w1, self.w1_a, self.w1_b, None)

    @property
    def second_shape(self) -> tuple[int, ...]:
        """Shape of the second factor, `(out / a, in / b, *kernel)`, or with the kernel flattened into the input."""
        return _shape(self.w2, self.w2_a, self.w2_b, self.t2)

    def delta(self) -> Tensor:
        """Return the change, float32, in `shape`."""
        first = _factor(self.w1, self.w1_a, self.w1_b, None)
        second = _factor(self.w2, self.w2_a, self.w2_b, self.t2)
        first = first.reshape(*first.shape, *(1,) * (second.dim() - 2))
        return (torch.kron(first, second.contiguous()) * self.scale).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors that there are."""
        named = (self.w1, self.w1_a, self.w1_b, self.w2, self.w2_a, self.w2_b, self.t2, self.scalar)
        return tuple(tensor for tensor in named if tensor is not None)

    def scaled(self, strength: float) -> LoKr:
        """Return the layer at another strength: alpha carries it where it counts, else the first factor in float32."""
        if strength == 1:
            return self
        if strength != 0 and self.rank is not None:
            return replace(self, alpha=self.alpha * strength)
        if self.w1 is not None:
            return replace(self, w1=wide(self.w1) * strength)
        return replace(self, w1_a=None if self.w1_a is None else torch.zeros_like(self.w1_a))


def _factor(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if whole is not None:
        return wide(whole)
    a, b = _pair(a, b)
    if core is not None:
        return torch.einsum("rs...,ro,si->oi...", wide(core), wide(a), wide(b))
    return (wide(a) @ wide(b).flatten(1)).reshape(a.shape[0], *b.shape[1:])


def _shape(whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> tuple[int, ...]:
    if whole is not None:
        return tuple(whole.shape)
    a, b = _pair(a, b)
    if core is not None:
        return (int(a.shape[1]), int(b.shape[1]), *map(int, core.shape[2:]))
    return (int(a.shape[0]), *map(int, b.shape[1:]))


def _pair(a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    if a is None or b is None:
        raise UnsupportedLayer("a LoKr layer lacks one of its two factors: take a complete file")
    return a, b
