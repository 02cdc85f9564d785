"""Training of LoHa: `W + scale * (w1_a @ w1_b) * (w2_a @ w2_b)` (FedPara, arXiv 2108.06098, equation 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.linalg import vector_norm

from ...layers import LoHa
from ..functions import Within
from .base import Site, Trained, copied


@dataclass(frozen=True, eq=False)
class TrainedLoHa(Trained):
    """Four factors; convolutions are matrices whose columns are places of the kernel."""

    w1_a: nn.Parameter  # (out, rank) float32
    w1_b: nn.Parameter  # (rank, in * kernel)
    w2_a: nn.Parameter  # (out, rank)
    w2_b: nn.Parameter  # (rank, in * kernel)
    scale: float
    shape: tuple[int, ...]  # of the weight

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The four factors."""
        return {"w1_a": self.w1_a, "w1_b": self.w1_b, "w2_a": self.w2_a, "w2_b": self.w2_b}

    def layer(self) -> LoHa:
        """Return a copy on the CPU that training does not change any more."""
        w1_a, w1_b, w2_a, w2_b = (copied(factor) for factor in self.parameters.values())
        return LoHa(w1_a, w1_b, w2_a, w2_b, self.scale * self.w1_b.shape[0], shape=self.shape)

    def output(self, site: Site, x: Tensor) -> Tensor:
        """Return what the adapted module gives for x."""
        rank, factor = self.w1_b.shape[0], 0.0 if site.dropout.drops(site.target) else self.scale
        mask = site.dropout.mask(site.target, (1, rank), 1, self.w1_a)

        def change(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
            first = w1_a if mask is None else w1_a * mask
            return ((first @ w1_b) * (w2_a @ w2_b) * factor).view(self.shape)

        result: Tensor = Within.apply(x, site.fetch, site.operation, change, *self.parameters.values())  # type: ignore[no-untyped-call]
        return result

    def norm(self) -> Tensor:
        """Return the norm of the change."""
        product: Tensor = (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
        found: Tensor = vector_norm(product.detach()) * self.scale
        return found

    def shrink(self, ratio: Tensor) -> None:
        """Share the ratio between the factors."""
        for factor in self.parameters.values():
            factor.data.mul_(ratio ** (1 / 4))
