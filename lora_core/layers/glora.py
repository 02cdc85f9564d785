"""GLoRA: a low-rank change that is partly a function of the weight itself.

`W' = W + s * alpha / rank * (W a1 a2 + b1 b2)`; of a convolution `a1 a2` mixes the input channels.
Sources: GLoRA, arXiv 2306.07967, equation 8 (its A and B; LyCORIS trains no C, D, E); LyCORIS, the forward pass of the
`glora` module. Early LyCORIS wrote the factors under exchanged names (a1 was `(rank, in)`): exchange them when reading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Sizes, Transform, misfit


@dataclass(frozen=True, eq=False)
class GLoRA(Transform):
    """A generalised LoRA."""

    a1: Tensor  # (in, rank) or (in, rank, 1, 1)
    a2: Tensor  # (rank, in) or (rank, in, 1, 1)
    b1: Tensor  # (out, rank) or (out, rank, 1, 1)
    b2: Tensor  # (rank, in) or (rank, in, *kernel)
    alpha: float  # always resolved when read; = rank when the file has none

    @property
    def rank(self) -> int:
        """Inner dimension shared by both products."""
        return int(self.a2.shape[0])

    @property
    def scale(self) -> float:
        """The factor `alpha / rank`."""
        return self.alpha / self.rank

    @property
    def shape(self) -> Sizes:
        """`(out, in)` or `(out, in, *kernel)`."""
        return (int(self.b1.shape[0]), *map(int, self.b2.shape[1:]))

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the weight with the change added."""
        a1, a2, b1, b2 = (tensor.to(weight).flatten(1) for tensor in (self.a1, self.a2, self.b1, self.b2))
        if weight.shape[:2] != (b1.shape[0], a1.shape[0]) or weight[0].numel() != b2.shape[1]:
            raise misfit(self, self.shape, weight)
        mixed = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
        return torch.add(weight, mixed + (b1 @ b2).reshape(weight.shape), alpha=strength * self.scale)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the four factors."""
        return (self.a1, self.a2, self.b1, self.b2)

    def scaled(self, strength: float) -> GLoRA:
        """Return the layer at another strength: alpha carries it, at strength 0 `a1` and `b1` become zero."""
        if strength == 0:
            return replace(self, a1=torch.zeros_like(self.a1), b1=torch.zeros_like(self.b1))
        return replace(self, alpha=self.alpha * strength)
