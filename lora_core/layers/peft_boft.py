"""BOFT of PEFT: butterfly rotations of the input and a factor for each output.

`W' = s * (W R^T)` over input and kernel as one side, with `R = R_m ... R_1`, `R_i = P_i D_i P_i^T`, D_i block-diagonal
of `(I - S)(I + S)^-1`, `S = (B - B^T) / 2`; P_i sorts the even half blocks in front of the odd ones, within stretches
that double from factor to factor. PEFT has no strength; here `W' = W + strength * (W_trained - W)`.
Sources: BOFT, arXiv 2311.06243, section 4; PEFT, the forward pass of its BOFT layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Sizes, Transform, misfit
from .rotation import align, cayley, rotate_columns, skew


@dataclass(frozen=True, eq=False)
class PeftBOFT(Transform):
    """Butterfly rotations of the inputs, and a factor for each output."""

    blocks: Tensor  # boft_R: (m, n, b, b), n * b = in * kernel
    rescale: Tensor  # boft_s: (out, 1), of a convolution (1, out)

    @property
    def shape(self) -> Sizes:
        """`(out, in * kernel)`."""
        return (self.rescale.numel(), int(self.blocks.shape[1] * self.blocks.shape[2]))

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the rotated and rescaled weight."""
        matrix = weight.flatten(1)
        if tuple(matrix.shape) != self.shape:
            raise misfit(self, self.shape, weight)
        for index, blocks in enumerate(cayley(-skew(self.blocks.to(weight)) / 2)):
            order = _order(matrix.shape[1], blocks.shape[-1], index).to(weight.device)
            matrix = rotate_columns(blocks, matrix[:, order.argsort()])[:, order]
        trained = align(self.rescale.to(weight), weight) * matrix.reshape(weight.shape)
        return torch.lerp(weight, trained, strength) if strength != 1 else trained

    def tensors(self) -> tuple[Tensor, ...]:
        """Return boft_R and boft_s."""
        return (self.blocks, self.rescale)


def _order(width: int, block: int, index: int) -> Tensor:
    """Return the columns in the order of factor `index`: even half blocks, then odd ones, in each stretch."""
    stretch, half = block * 2**index, block // 2
    if index == 0 or not half:
        return torch.arange(width)
    parts = torch.arange(width).reshape(math.ceil(width / stretch), stretch // half, half)
    return torch.cat([parts[:, 0::2], parts[:, 1::2]], 1).flatten()
