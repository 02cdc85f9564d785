"""OFT of sd-scripts: a block-diagonal rotation of the output, always constrained (COFT).

`W' = ((1 - s) I + s R)^T W` at strength s, blockwise, with `R = (I + Q)(I - Q)^-1` and `Q = B - B^T` scaled down to the
norm `alpha * out` where it is larger.
Sources: OFT, arXiv 2306.07280, equation 5; sd-scripts, the forward pass in `networks/oft.py` and
`networks/oft_flux.py`, which keeps one tensor for each row block of a fused weight: that is one layer for each block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Sizes, Transform, misfit
from .rotation import cayley, rotate_rows, skew, towards


@dataclass(frozen=True, eq=False)
class KohyaOFT(Transform):
    """A rotation of blocks of outputs, of bounded size."""

    blocks: Tensor  # (n, b, b), n * b = out
    alpha: float  # the constraint: the bound is this times out; no scale

    @property
    def shape(self) -> Sizes:
        """`(out, any)`."""
        return (int(self.blocks.shape[0] * self.blocks.shape[1]), None)

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the rotated weight."""
        if weight.shape[0] != self.shape[0]:
            raise misfit(self, self.shape, weight)
        turn = skew(self.blocks.to(weight))
        size = turn.norm()
        turn = turn * ((size.clamp(max=self.alpha * weight.shape[0]) + 1e-8) / (size + 1e-8))
        return rotate_rows(towards(cayley(turn), strength), weight)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the blocks."""
        return (self.blocks,)
