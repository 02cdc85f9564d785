"""Training of LoKr: `W + scale * kron(w1, w2)` (KronA, arXiv 2212.10650; LyCORIS, arXiv 2309.14859, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from ...layers import LoKr
from ..functions import Beside, Within
from ..operations import Geometry, Operation
from .base import Site, Trained, copied

FORMED = 2**18  # measured: above it the whole matrix is slower


@dataclass(frozen=True, eq=False)
class TrainedLoKr(Trained):
    """A small whole factor, and a large one that is whole or of low rank.

    For a large weight the Kronecker product is not formed: x in b groups of d goes through w2, then w1 mixes the
    groups, which costs a small part of a product with the whole matrix. For a small one the whole matrix is quicker.
    """

    w1: nn.Parameter  # (a, b) float32
    second: tuple[nn.Parameter, ...]  # (c, d * kernel), or (c, rank) and (rank, d * kernel)
    scale: float  # 1 for two whole factors
    alpha: float
    shape: tuple[int, ...]  # of the weight: (a * c, b * d, *kernel)
    limit: int = FORMED  # values of the largest weight whose product is formed

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The first factor and the second's one or two."""
        names = ("w2",) if len(self.second) == 1 else ("w2_a", "w2_b")
        return {"w1": self.w1, **dict(zip(names, self.second, strict=True))}

    @property
    def inner(self) -> tuple[int, ...]:
        """Shape of the second factor: (c, d, *kernel)."""
        a, b = self.w1.shape
        return (self.shape[0] // a, self.shape[1] // b, *self.shape[2:])

    def layer(self) -> LoKr:
        """Return a copy on the CPU that training does not change any more."""
        w1, second = copied(self.w1), [copied(factor) for factor in self.second]
        if len(second) == 1:
            return LoKr(self.alpha, w1=w1, w2=second[0].reshape(self.inner), shape=self.shape)
        return LoKr(self.alpha, w1=w1, w2_a=second[0], w2_b=second[1], shape=self.shape)

    def output(self, site: Site, x: Tensor) -> Tensor:
        """Return what the adapted module gives for x."""
        factor = 0.0 if site.dropout.drops(site.target) else self.scale
        rank = self.second[0].shape[1]
        mask = site.dropout.mask(site.target, (1, rank), 1, self.w1) if len(self.second) == 2 else None

        def scaled(w1: Tensor, first: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
            w2 = (first if mask is None else first * mask) @ more[0] if more else first
            return w1 * factor, w2.view(self.inner)

        def change(*trained: Tensor) -> Tensor:
            w1, w2 = scaled(*trained)
            return torch.kron(w1.view(*w1.shape, *[1] * (w2.dim() - 2)), w2)

        def side(x: Tensor, *trained: Tensor) -> Tensor:
            w1, w2 = scaled(*trained)
            return _kron(site.operation, x, w1.to(x.dtype), w2.to(x.dtype))

        trained = self.parameters.values()
        if math.prod(self.shape) <= self.limit:
            result: Tensor = Within.apply(x, site.fetch, site.operation, change, *trained)  # type: ignore[no-untyped-call]
            return result
        result = Beside.apply(x, None, site.fetch, site.operation, side, *trained)  # type: ignore[no-untyped-call]
        return result

    def norm(self) -> Tensor:
        """Return the change's norm: the product of the factors' norms."""
        w2: Tensor = self.second[0] if len(self.second) == 1 else self.second[0] @ self.second[1]
        found: Tensor = vector_norm(self.w1.detach()) * vector_norm(w2.detach()) * self.scale
        return found

    def shrink(self, ratio: Tensor) -> None:
        """Share the ratio between the factors."""
        self.w1.data.mul_(ratio.sqrt())
        for factor in self.second:
            factor.data.mul_(ratio ** (0.5 / len(self.second)))


def _kron(operation: Operation, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """Return what `kron(w1, w2)` makes of x."""
    a, b = w1.shape
    if not isinstance(operation, Geometry):
        groups = x.reshape(*x.shape[:-1], b, -1) @ w2.t()  # (..., b, c)
        return (w1 @ groups).flatten(-2)
    batch, _, height, width = x.shape
    groups = operation.output(x.reshape(batch * b, -1, height, width), w2)  # (B * b, c, h', w')
    channels, *places = groups.shape[1:]
    return (w1 @ groups.view(batch, b, -1)).reshape(batch, a * channels, *places)
