"""LoRA and LoCon: `delta = alpha / rank * up @ down`, for linear and convolution weights, with or without Tucker core.

Sources: LoRA, arXiv 2106.09685, equation 3; LoCon and its Tucker form, arXiv 2309.14859, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import Additive


@dataclass(frozen=True, eq=False)
class LoRA(Additive):
    """A low-rank weight change.

    >>> LoRA(torch.ones(1, 2), torch.ones(3, 1), alpha=0.5).delta().shape
    torch.Size([3, 2])
    """

    down: Tensor  # (rank, in) or (rank, in, *kernel)
    up: Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: float  # always resolved when read; = rank when the file has none
    mid: Tensor | None = None  # Tucker core (rank, rank, *kernel); down is then (rank, in, 1, 1)

    @property
    def rank(self) -> int:
        """Inner dimension shared by the two factors."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """The factor `alpha / rank` on the product."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this layer changes: `(out, in)` or `(out, in, *kernel)`."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (int(self.up.shape[0]), int(self.down.shape[1]), *map(int, kernel))

    def rows(self) -> Tensor:
        """Return the scaled up factor as a float32 matrix `(out, rank)`."""
        return self.up.flatten(1).float() * self.scale

    def columns(self) -> Tensor:
        """Return the down factor, Tucker core absorbed, as a float32 matrix `(rank, in * kernel)`."""
        down = self.down.float()
        if self.mid is None:
            return down.flatten(1)
        return torch.einsum("rs...,si->ri...", self.mid.float(), down.flatten(1)).flatten(1)

    def delta(self) -> Tensor:
        """Return `alpha / rank * up @ down`, float32, `(out, in)` or `(out, in, *kernel)`."""
        return (self.rows() @ self.columns()).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return down, up and, where there is one, mid."""
        return (self.down, self.up) if self.mid is None else (self.down, self.up, self.mid)

    def scaled(self, strength: float) -> LoRA:
        """Return the layer at another strength: alpha carries it, the tensors stay bit for bit.

        At strength 0 `up` becomes zero instead, since sd-scripts reads an alpha of 0 as "alpha = rank".
        """
        if strength == 0:
            return replace(self, up=torch.zeros_like(self.up))
        return replace(self, alpha=self.alpha * strength)
