"""OFT as PEFT and OneTrainer have it: a block-diagonal rotation of the input, stored as strict upper triangles.

`W' = W R^T` blockwise over input and kernel as one side. With Q skew-symmetric and the triangle above its diagonal,
R is `(I + Q)(I - Q)^-1` cut off after some terms of its Neumann series, or, where PEFT is told to solve exactly,
`(I - Q)(I + Q)^-1`: the two turn in opposite directions, so the choice must be known.
Neither trainer has a strength; here `W' = W + s (W R^T - W)`.
Sources: OFT, arXiv 2306.07280, equation 5; OFTv2, arXiv 2506.19847, section 3.3; PEFT, the rotation of its OFT layer
(since version 0.18; OneTrainer's is the same).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Sizes, Transform, misfit
from .rotation import cayley, identity, rotate_columns, towards


@dataclass(frozen=True, eq=False)
class OFTv2(Transform):
    """A rotation of blocks of inputs.

    The fields below the tensor are PEFT's configuration, their defaults its defaults.
    """

    upper: Tensor  # (n, b * (b - 1) / 2), n * b = in * kernel; one row may serve all blocks (block_share)
    terms: int | None = 5  # num_cayley_neumann_terms; None: use_cayley_neumann is false
    coft: float | None = None  # `eps` where `coft` is true: bound of each block's Q, times the root of n
    scaled_down: bool = False  # OneTrainer's `scaled_oft`: Q is divided by 2 sqrt(b - 1)

    @property
    def block(self) -> int:
        """Size b of a block: the root of `b * (b - 1) / 2 = length`."""
        return (1 + math.isqrt(1 + 8 * int(self.upper.shape[1]))) // 2

    @property
    def shape(self) -> Sizes:
        """`(any, in * kernel)`; a single row of `upper` also fits every multiple."""
        return (None, int(self.upper.shape[0]) * self.block)

    def rotation(self, like: Tensor) -> Tensor:
        """Return R, `(n, b, b)`, in the dtype and on the device of `like`."""
        size = self.block
        rows, columns = torch.triu_indices(size, size, 1, device=like.device)
        turn = torch.zeros(self.upper.shape[0], size, size, dtype=like.dtype, device=like.device)
        turn[:, rows, columns] = self.upper.to(like)
        turn = turn - turn.transpose(1, 2)
        if self.scaled_down:
            turn = turn / (2 * math.sqrt(size - 1))
        if self.coft is not None:
            bound = self.coft / math.sqrt(turn.shape[0])
            turn = turn * (bound / turn.norm(dim=(1, 2), keepdim=True).clamp(min=bound))
        return cayley(-turn) if self.terms is None else _neumann(turn, self.terms)

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the rotated weight."""
        width = math.prod(weight.shape[1:])
        shared = self.upper.shape[0] == 1
        if width % self.block or not (shared or width == self.shape[1]):
            raise misfit(self, self.shape, weight)
        rotation = towards(self.rotation(weight), strength)
        return rotate_columns(rotation.expand(width // self.block, -1, -1), weight)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the triangles."""
        return (self.upper,)


def _neumann(turn: Tensor, terms: int) -> Tensor:
    """Return `I + 2 Q + 2 Q^2 + ... + Q^(terms - 1)`, the last term single; 3 terms give the same as 4."""
    total = identity(turn).expand_as(turn)
    if terms < 2:
        return total
    total = total + 2 * turn
    if terms < 3:
        return total
    power = turn @ turn
    total = total + 2 * power
    for _ in range(3, terms - 1):
        power = power @ turn
        total = total + 2 * power
    return total + power @ turn
