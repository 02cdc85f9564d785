"""Training of DoRA: `m * V / |V|` with `V = W + scale * up @ down`, one length for each output.

Source: arXiv 2402.09353, equation 5; the length |V| is a constant for the gradient (section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import DoRA
from ..functions import Beside
from ..operations import POINTWISE, Geometry
from .base import Site, Trained, copied
from .lora import TrainedLoRA


@dataclass(frozen=True, eq=False)
class TrainedDoRA(Trained):
    """A LoRA for the direction, and a magnitude."""

    inner: TrainedLoRA
    magnitude: nn.Parameter  # (out,) float32

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The LoRA's factors and the magnitude."""
        return {**self.inner.parameters, "magnitude": self.magnitude}

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The LoRA's."""
        return self.inner.constants

    def layer(self) -> DoRA:
        """Return a copy on the CPU that training does not change any more."""
        ones = [1] * (len(self.inner.shape) - 1)
        return DoRA(self.inner.layer(), copied(self.magnitude, -1, *ones))

    def output(self, site: Site, x: Tensor) -> Tensor:
        """Return what the adapted module gives for x; where dropped, what the frozen one gives."""
        if site.dropout.drops(site.target):
            return self.inner.output(site, x)
        (down, up), operation, mask = self.inner.factors, site.operation, self.inner.mask(site, x)

        def side(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
            small, wide = down.to(x.dtype), (up * self.inner.scale).to(x.dtype)
            if not isinstance(operation, Geometry):
                low = operation.output(x, small)
                return operation.output(low if mask is None else low * mask, wide)
            low = operation.output(x, small.view(-1, *self.inner.shape[1:]))
            return POINTWISE.output(low if mask is None else low * mask, wide[:, :, None, None])

        gain = self.magnitude / self.lengths(site.fetch(x)[0])
        result: Tensor = Beside.apply(x, gain, site.fetch, operation, side, down, up)  # type: ignore[no-untyped-call]
        return result

    def lengths(self, weight: Tensor) -> Tensor:
        """Return each output's `|V|`, (out,), without forming the change.

        `|w + u A|^2 = |w|^2 + 2 u A w + u A A^T u` for a row w of the weight and a row u of the scaled `up`.
        """
        with torch.no_grad():
            rows = weight.flatten(1).to(self.magnitude.dtype)
            down, up = self.inner.factors
            up = up * self.inner.scale
            squares = rows.square().sum(1) + (up * (2 * (rows @ down.t()) + up @ (down @ down.t()))).sum(1)
            return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt()

    def norm(self) -> Tensor:
        """Return the norm of the LoRA's change."""
        return self.inner.norm()

    def shrink(self, ratio: Tensor) -> None:
        """Shrink the LoRA's change."""
        self.inner.shrink(ratio)
