"""LoHa: the elementwise product of two low-rank changes.

`delta = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b)`; in the Tucker form each product is
`sum_ij t[i, j] a[i, out] b[j, in]` for every place of the kernel.
Source: FedPara, arXiv 2108.06098, equation 2 and proposition 3; LyCORIS, arXiv 2309.14859, section 3.
The scale enters once, as in the forward pass of LyCORIS and of PEFT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Additive, wide


@dataclass(frozen=True, eq=False)
class LoHa(Additive):
    """A Hadamard product of low-rank changes.

    Without a Tucker core the factors know a kernel only as a part of the input side: `shape`, where it is known, gives
    the weight's true shape, and is `(out, in * kernel)` otherwise.
    """

    w1_a: Tensor  # (out, rank) or (out, rank, 1, 1); Tucker: (rank, out)
    w1_b: Tensor  # (rank, in * kernel) or (rank, in, *kernel); Tucker: (rank, in)
    w2_a: Tensor  # as w1_a
    w2_b: Tensor  # as w1_b
    alpha: float  # always resolved when read; = rank when the file has none
    t1: Tensor | None = None  # Tucker core (rank, rank, *kernel)
    t2: Tensor | None = None
    shape: tuple[int, ...] = ()  # of the weight; left out: what the factors tell
    scalar: Tensor | None = None  # 0-d factor that early LyCORIS files carry (use_scalar); later ones fold it in

    def __post_init__(self) -> None:
        """Fill in the shape that the factors tell."""
        if not self.shape:
            object.__setattr__(self, "shape", self._natural_shape())

    @property
    def rank(self) -> int:
        """Inner dimension of the two products."""
        return int(self.w1_b.shape[0])

    @property
    def scale(self) -> float:
        """The factor `alpha / rank`, times `scalar` where there is one."""
        return self.alpha / self.rank * (1.0 if self.scalar is None else float(self.scalar))

    def delta(self) -> Tensor:
        """Return the change, float32, in `shape`."""
        product = _product(self.w1_a, self.w1_b, self.t1) * _product(self.w2_a, self.w2_b, self.t2)
        return (product * self.scale).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the four factors and, where there are any, the cores and scalar."""
        others = (self.t1, self.t2, self.scalar)
        factors = (self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        return (*factors, *(tensor for tensor in others if tensor is not None))

    def scaled(self, strength: float) -> LoHa:
        """Return the layer at another strength: alpha carries it, at strength 0 `w1_a` becomes zero (see LoRA)."""
        if strength == 0:
            return replace(self, w1_a=torch.zeros_like(self.w1_a))
        return replace(self, alpha=self.alpha * strength)

    def _natural_shape(self) -> tuple[int, ...]:
        if self.t1 is None:
            return (int(self.w1_a.shape[0]), math.prod(self.w1_b.shape[1:]))
        return (int(self.w1_a.shape[1]), int(self.w1_b.shape[1]), *map(int, self.t1.shape[2:]))


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    if core is None:
        return wide(a).flatten(1) @ wide(b).flatten(1)
    return torch.einsum("rs...,ro,si->oi...", wide(core), wide(a), wide(b))
