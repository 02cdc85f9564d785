"""BOFT of LyCORIS: a product of rotations, the i-th of which mixes outputs that are `2^i * b / 2` apart.

At strength s each factor is `(1 - s) I + s R_i`; `rescale`, where trained, multiplies the rows in full.
Sources: BOFT, arXiv 2311.06243, section 4 (butterfly factorisation); LyCORIS, the forward pass of the `boft` module.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Sizes, Transform, misfit
from .diag_oft import bounded
from .rotation import align, cayley, skew, towards


@dataclass(frozen=True, eq=False)
class BOFT(Transform):
    """Butterfly rotations of the outputs."""

    blocks: Tensor  # (m, n, b, b), n * b = out
    constraint: float = 0.0  # stored as `alpha`; the bound is this times out; 0: no bound
    rescale: Tensor | None = None  # (out, 1) or (out, 1, 1, 1)

    @property
    def shape(self) -> Sizes:
        """`(out, any)`."""
        return (int(self.blocks.shape[1] * self.blocks.shape[2]), None)

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the weight after all stages, rescaled where there is `rescale`."""
        rows = self.blocks.shape[1] * self.blocks.shape[2]
        if weight.shape[0] != rows:
            raise misfit(self, self.shape, weight)
        stages = towards(cayley(bounded(skew(self.blocks.to(weight)), self.constraint * rows)), strength)
        matrix = weight.flatten(1)
        for index, rotation in enumerate(stages):
            matrix = _stage(rotation, matrix, 2**index * (rotation.shape[-1] // 2))
        rotated = matrix.reshape(weight.shape)
        return rotated if self.rescale is None else align(self.rescale.to(weight), weight) * rotated

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the blocks and, where there is one, rescale."""
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)


def _stage(rotation: Tensor, matrix: Tensor, stride: int) -> Tensor:
    """Rotate rows in blocks `(n, b, b)`, after rows that are `stride` apart were brought together in pairs."""
    rows = matrix.shape[0]
    paired = matrix.reshape(-1, 2, stride, matrix.shape[1]).transpose(1, 2)
    rotated = torch.bmm(rotation, paired.reshape(rotation.shape[0], rotation.shape[1], -1))
    return rotated.reshape(-1, stride, 2, matrix.shape[1]).transpose(1, 2).reshape(rows, -1)
