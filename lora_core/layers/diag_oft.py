"""Diag-OFT of LyCORIS: a block-diagonal rotation of the output, and a factor for each output where trained.

`W' = rescale * ((1 - s) I + s R)^T W` at strength s, blockwise, with `R = (I + Q)(I - Q)^-1` and `Q = B - B^T`.
With a constraint, Q is scaled down to the norm `constraint * out` where it is larger.
Sources: OFT, arXiv 2306.07280, equation 5; LyCORIS, the forward pass of the `diag-oft` module: the strength
interpolates the rotation alone, `rescale` acts in full.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Sizes, Transform, misfit
from .rotation import align, cayley, rotate_rows, skew, towards


def bounded(blocks: Tensor, bound: float) -> Tensor:
    """Return skew-symmetric blocks, all of them together scaled down to the norm `bound` where that is positive."""
    size = blocks.norm() + 1e-8
    return blocks * (bound / size) if 0 < bound < size else blocks


@dataclass(frozen=True, eq=False)
class DiagOFT(Transform):
    """A rotation of blocks of outputs."""

    blocks: Tensor  # (n, b, b), n * b = out
    constraint: float = 0.0  # stored as `alpha`; the bound is this times out; 0: no bound
    rescale: Tensor | None = None  # (out, 1) or (out, 1, 1, 1)

    @property
    def shape(self) -> Sizes:
        """`(out, any)`."""
        return (int(self.blocks.shape[0] * self.blocks.shape[1]), None)

    def rotation(self, like: Tensor) -> Tensor:
        """Return R, `(n, b, b)`, in the dtype and on the device of `like`."""
        rows = self.blocks.shape[0] * self.blocks.shape[1]
        return cayley(bounded(skew(self.blocks.to(like)), self.constraint * rows))

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the rotated weight, rescaled where there is `rescale`."""
        if weight.shape[0] != self.shape[0]:
            raise misfit(self, self.shape, weight)
        rotated = rotate_rows(towards(self.rotation(weight), strength), weight)
        return rotated if self.rescale is None else align(self.rescale.to(weight), weight) * rotated

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the blocks and, where there is one, rescale."""
        return (self.blocks,) if self.rescale is None else (self.blocks, self.rescale)
