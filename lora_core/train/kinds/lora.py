"""Training of LoRA and LoCon: `W + scale * up @ down` (arXiv 2106.09685, equation 3; arXiv 2309.14859, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import LoRA
from ..functions import AdaptedConv2d, AdaptedLinear
from ..operations import Geometry
from .base import Site, Trained, copied


@dataclass(frozen=True, eq=False)
class TrainedLoRA(Trained):
    """Two factors; the effect is `scale * (up @ down - start_up @ start_down)`.

    A start that is not zero (PiSSA, OLoRA) is subtracted in the forward pass instead of being taken out of the frozen
    weight, which is never changed. The difference of two products of rank r is one of rank 2r: `layer()` is an exact,
    plain LoRA of twice the rank.
    """

    down: nn.Parameter  # (rank, in * kernel) float32
    up: nn.Parameter  # (out, rank) float32
    scale: float  # alpha / rank, or alpha / sqrt(rank)
    shape: tuple[int, ...]  # of the weight: (out, in, *kernel)
    start: tuple[Tensor, Tensor] | None = None  # down and up to subtract

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Both factors."""
        return {"down": self.down, "up": self.up}

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The start, where it is not zero."""
        return {} if self.start is None else {"start_down": self.start[0], "start_up": self.start[1]}

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The factors of the whole effect: (rank, in * kernel) and (out, rank), the rank doubled with a start."""
        if self.start is None:
            return self.down, self.up
        return torch.cat([self.down, self.start[0]]), torch.cat([self.up, -self.start[1]], dim=1)

    def layer(self) -> LoRA:
        """Return a copy on the CPU that training does not change any more."""
        down, up = self.factors
        rank, ones = down.shape[0], [1] * len(self.shape[2:])
        return LoRA(copied(down, rank, *self.shape[1:]), copied(up, *up.shape, *ones), self.scale * rank)

    def output(self, site: Site, x: Tensor) -> Tensor:
        """Return what the adapted module gives for x."""
        down, up = self.factors
        scale = 0.0 if site.dropout.drops(site.target) else self.scale  # 0: no branch in what autograd sees
        mask, operation = self.mask(site, x), site.operation
        if isinstance(operation, Geometry):
            down, up = down.view(-1, *self.shape[1:]), up[:, :, None, None]
            result: Tensor = AdaptedConv2d.apply(x, down, up, scale, site.fetch, operation, mask)  # type: ignore[no-untyped-call]
            return result
        result = AdaptedLinear.apply(x, down, up, scale, site.fetch, mask)  # type: ignore[no-untyped-call]
        return result

    def mask(self, site: Site, x: Tensor) -> Tensor | None:
        """Return what dropout multiplies `down x` by, if anything; the start is dropped with what it is taken from."""
        rank, operation = self.down.shape[0], site.operation
        shape: tuple[int, ...] = (*x.shape[:-1], rank)
        axis = x.dim() - 1
        if isinstance(operation, Geometry):
            shape, axis = (x.shape[0], rank, *operation.size(x, self.shape[2:])), 1
        mask = site.dropout.mask(site.target, shape, axis, x)
        return mask if mask is None or self.start is None else torch.cat([mask, mask], dim=axis)

    def norm(self) -> Tensor:
        """Return the change's norm from the factors: `|up down|^2 = sum(up^T up * down down^T)`."""
        down, up = (factor.detach() for factor in self.factors)
        return ((up.t() @ up) * (down @ down.t())).sum().clamp(min=0).sqrt() * self.scale

    def shrink(self, ratio: Tensor) -> None:
        """Share the ratio between the factors."""
        for factor in (self.down, self.up):
            factor.data.mul_(ratio.sqrt())
