"""The singular values of a layer first, and its best approximation once a rank is chosen.

Of a product the QR of each factor leaves a small core with the same singular values (see `lowrank`). The best
approximation of rank k of `M = rows @ columns` is `M V V^T`, V the first k right singular vectors (Eckart and Young):
`V = Q w` through the Householder reflectors of the QR `columns^T = Q R`, and `M V = rows @ (R^T w)`, so that no
orthogonal basis is formed in full and of `rows` only the triangle is needed. Float32; nothing of the size `(out, in)`
arises. Gram matrices would be quicker still, but lose half the digits of the small singular values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Additive, LoRA
from .lowrank import Factors

RESOLVED = 1e-6  # share of the largest singular value below which float32 factors hold nothing but rounding


class Decomposed(ABC):
    """A matrix with its singular values known."""

    values: Tensor  # (n,), descending

    @abstractmethod
    def best(self, rank: int) -> Factors:
        """Return the best approximation of a rank, its singular values shared evenly by both factors."""


@dataclass(frozen=True, eq=False)
class Product(Decomposed):
    """A product of two factors; see the module's text."""

    rows: Tensor  # (out, rank)
    reflectors: Tensor  # (in * kernel, m), m the smaller of in * kernel and rank
    scales: Tensor  # (m,), of the reflectors
    triangle: Tensor  # (m, rank), R
    right: Tensor  # (n, m): right singular vectors of the core
    values: Tensor

    def best(self, rank: int) -> Factors:
        """Return the best approximation of a rank."""
        chosen = self.right[:rank].T
        basis = torch.zeros(len(self.reflectors), rank, dtype=chosen.dtype, device=chosen.device)
        basis[: len(chosen)] = chosen
        basis = torch.ormqr(self.reflectors, self.scales, basis)
        return _balanced(self.rows @ (self.triangle.T @ chosen), basis.T, self.values[:rank])


@dataclass(frozen=True, eq=False)
class Dense(Decomposed):
    """A dense matrix."""

    left: Tensor  # (out, n)
    values: Tensor
    right: Tensor  # (n, in * kernel)

    def best(self, rank: int) -> Factors:
        """Return the best approximation of a rank."""
        return _balanced(self.left[:, :rank] * self.values[:rank], self.right[:rank], self.values[:rank])


def decomposed(layer: Additive, device: torch.device) -> Decomposed:
    """Take the change of a matrix apart, input and kernel as one side: a LoRA by its factors, others densely."""
    if not isinstance(layer, LoRA):
        return Dense(*torch.linalg.svd(layer.delta().float().flatten(1).to(device), full_matrices=False))
    rows, columns = layer.rows().float().to(device), layer.columns().float().to(device)
    reflectors, scales = torch.geqrf(columns.T)
    size = min(columns.shape)
    triangle = reflectors[:size].triu()
    core = torch.linalg.qr(rows, mode="r").R @ triangle.T
    _, values, right = torch.linalg.svd(core, full_matrices=False)
    return Product(rows, reflectors[:, :size], scales, triangle, right, values)


def singular_values(layer: Additive, device: torch.device) -> Tensor:
    """Return the singular values alone, descending, which takes half the time."""
    if isinstance(layer, LoRA):
        sides = (layer.rows().float().to(device), layer.columns().float().to(device).T)
        row_core, column_core = (torch.linalg.qr(side, mode="r").R for side in sides)
        matrix = row_core @ column_core.T
    else:
        matrix = layer.delta().float().flatten(1).to(device)
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def resolved(values: Tensor) -> Tensor:
    """Return the singular values that are more than rounding, the largest at least; float64 on the CPU."""
    found = values.double().cpu()
    return found[: max(1, int((found > RESOLVED * found[0]).sum()))]


def _balanced(rows: Tensor, columns: Tensor, values: Tensor) -> Factors:
    """Return `rows @ columns` with factors of equal size, where row i has norm `values[i]` and column i norm 1."""
    root = values.sqrt()
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    return Factors(rows * inverse, root[:, None] * columns)
