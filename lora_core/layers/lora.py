"""LoRA and LoCon: `delta = alpha / rank * up @ down`, for linear and convolution weights, with or without Tucker core.

Sources: LoRA, arXiv 2106.09685, equation 3; LoCon and its Tucker form, arXiv 2309.14859, section 3. Widened weights
(`reshape`): the control LoRAs of FLUX.1 Tools, which give the input layer more channels than the base model has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .base import Additive, misfit, wide


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
    reshape: Tensor | None = None  # 1-D, integers: the base weight is padded with zeros to this shape first
    scalar: Tensor | None = None  # 0-d factor that early LyCORIS files carry (use_scalar); later ones fold it in

    @property
    def rank(self) -> int:
        """Inner dimension shared by the two factors."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """The factor `alpha / rank` on the product, times `scalar` where there is one."""
        return self.alpha / self.rank * (1.0 if self.scalar is None else float(self.scalar))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this layer changes: `(out, in)` or `(out, in, *kernel)`."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (int(self.up.shape[0]), int(self.down.shape[1]), *map(int, kernel))

    def rows(self) -> Tensor:
        """Return the scaled up factor as a float32 matrix `(out, rank)`."""
        return wide(self.up.flatten(1)) * self.scale

    def columns(self) -> Tensor:
        """Return the down factor, Tucker core absorbed, as a float32 matrix `(rank, in * kernel)`."""
        down = wide(self.down)
        if self.mid is None:
            return down.flatten(1)
        return torch.einsum("rs...,si->ri...", wide(self.mid), down.flatten(1)).flatten(1)

    def delta(self) -> Tensor:
        """Return `alpha / rank * up @ down`, float32, `(out, in)` or `(out, in, *kernel)`."""
        return (self.rows() @ self.columns()).reshape(self.shape)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return down, up and, where there are any, mid, reshape and scalar."""
        others = (self.mid, self.reshape, self.scalar)
        return (self.down, self.up, *(tensor for tensor in others if tensor is not None))

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return `weight + strength * delta()`; with `reshape`, in that shape and not in the weight's.

        Raises WrongArchitecture where the weight does not fit, or is wider than `reshape` already.
        """
        if self.reshape is None:
            return super().apply(weight, strength)
        shape = tuple(int(size) for size in self.reshape.tolist())
        missing = [size - given for size, given in zip(shape, weight.shape, strict=False)]
        if len(shape) != weight.dim() or min(missing, default=0) < 0:
            raise misfit(self, shape, weight)
        padding = [amount for size in reversed(missing) for amount in (0, size)]  # torch counts from the last side
        return super().apply(functional.pad(weight, padding), strength)

    def scaled(self, strength: float) -> LoRA:
        """Return the layer at another strength: alpha carries it, the tensors stay bit for bit.

        At strength 0 `up` becomes zero instead, since sd-scripts reads an alpha of 0 as "alpha = rank".
        """
        if strength == 0:
            return replace(self, up=torch.zeros_like(self.up))
        return replace(self, alpha=self.alpha * strength)
