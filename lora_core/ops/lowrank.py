"""Matrix products kept as factors: every quantity of `rows @ columns` from the two factors, never from the product.

A QR of each factor leaves a small core with the product's singular values and norm:
`rows @ columns = Q_rows (R_rows R_columns^T) Q_columns^T` (Golub and Van Loan, Matrix Computations, section 5.4).
Norms are taken of the core and not as differences of Gram matrices, which would lose half the digits of a small one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import LoRA

ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True, eq=False)
class Factors:
    """A matrix `(out, in * kernel)` of low rank, as the product of two."""

    rows: Tensor  # (out, rank)
    columns: Tensor  # (rank, in * kernel)

    @property
    def rank(self) -> int:
        """Number of columns of `rows`, an upper bound of the true rank."""
        return int(self.rows.shape[1])

    def product(self) -> Tensor:
        """Return the dense matrix."""
        return self.rows @ self.columns

    def to(self, dtype: torch.dtype) -> Factors:
        """Return both factors in another dtype."""
        return Factors(self.rows.to(dtype), self.columns.to(dtype))


def exact_rows(layer: LoRA, strength: float = 1.0) -> Tensor:
    """Return `rows` rounded to float32; the product of two float32 numbers is worked out as such, to the same bits."""
    factor = layer.scale * strength
    if layer.up.dtype == torch.float64 or not _is_float32(factor):
        return rows(layer, strength).float()
    return layer.up.flatten(1).float() * factor


def _is_float32(number: float) -> bool:
    return float(torch.tensor(number, dtype=torch.float32)) == number


def rows(layer: LoRA, strength: float = 1.0) -> Tensor:
    """Return the up factor with scale and strength in it, float64 `(out, rank)`."""
    return double(layer.up.flatten(1)).mul_(layer.scale * strength)


def double(tensor: Tensor) -> Tensor:
    """Return a copy in float64; from 16 bits through float32, several times as quick."""
    return (tensor.float() if tensor.dtype.itemsize == 2 else tensor).to(torch.float64, copy=True)


def columns(layer: LoRA) -> Tensor:
    """Return the down factor, a Tucker core absorbed, float64 `(rank, in * kernel)`."""
    down = double(layer.down).flatten(1)
    if layer.mid is None:
        return down
    return torch.einsum("rs...,si->ri...", layer.mid.double(), down).flatten(1)


def factors(layer: LoRA, strength: float = 1.0) -> Factors:
    """Return `strength * delta` of a layer as float64 factors."""
    return Factors(rows(layer, strength), columns(layer))


def stack(parts: Sequence[Factors]) -> Factors:
    """Return the sum of several products, exactly, as one product of the ranks' sum."""
    return Factors(torch.cat([part.rows for part in parts], 1), torch.cat([part.columns for part in parts]))


def resolution(product: Factors) -> float:
    """Return the norm below which a product is its terms' rounding to float32 alone: `eps sum_i |row_i| |column_i|`."""
    return ROUNDING * float(product.rows.norm(dim=0) @ product.columns.norm(dim=1))


def cancel(parts: Sequence[Factors]) -> bool:
    """Tell whether several products, not all of them zero, add up to nothing but rounding."""
    total = stack(parts)
    return len(parts) > 1 and norm(total) <= resolution(total) > 0


def norm(product: Factors) -> float:
    """Return the Frobenius norm of the product, by a QR of the smaller factor: `|A B| = |A R^T|` where `B^T = Q R`."""
    left, right = product.rows, product.columns.T
    if len(left) < len(right):
        left, right = right, left
    small = torch.linalg.qr(right, mode="r").R
    return float(torch.linalg.matrix_norm(left @ small.T))


def distance(left: Factors, right: Factors) -> float:
    """Return the Frobenius norm of `left - right`; exactly 0.0 when both have the same factors bit for bit."""
    if left.rank != right.rank:
        return norm(stack([left, Factors(-right.rows, right.columns)]))
    terms = (
        Factors(left.rows - right.rows, left.columns),
        Factors(right.rows, left.columns - right.columns),
    )
    unequal = [term for term in terms if bool(term.rows.any()) and bool(term.columns.any())]
    return norm(stack(unequal)) if unequal else 0.0


def truncated(product: Factors, rank: int | None = None, energy: float | None = None) -> Factors:
    """Return the best approximation of a lower rank, its singular values shared evenly by both factors.

    `energy` keeps the smallest rank whose squared singular values make up that share of all; `rank` is an upper bound.
    By Eckart and Young the error is the norm of the singular values left out.
    """
    row_basis, row_core = torch.linalg.qr(product.rows)
    column_basis, column_core = torch.linalg.qr(product.columns.T)
    left, values, right = torch.linalg.svd(row_core @ column_core.T, full_matrices=False)
    kept = kept_rank(values, rank, energy)
    root = values[:kept].sqrt()
    return Factors(row_basis @ (left[:, :kept] * root), (root[:, None] * right[:kept]) @ column_basis.T)


def truncated_matrix(matrix: Tensor, rank: int | None = None, energy: float | None = None) -> Factors:
    """Return the best approximation of a dense matrix, as `truncated` does for a product."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = kept_rank(values, rank, energy)
    root = values[:kept].sqrt()
    return Factors(left[:, :kept] * root, root[:, None] * right[:kept])


def kept_rank(values: Tensor, rank: int | None = None, energy: float | None = None) -> int:
    """Return how many of the singular values (descending) to keep, at least one.

    >>> kept_rank(torch.tensor([3.0, 2.0, 1.0]), energy=0.9)
    2
    """
    kept = len(values)
    if energy is not None:
        shares = values.double().square().cumsum(0)
        enough = shares >= energy * shares[-1] * (1 - 1e-12)  # a share of 1 is not missed by rounding
        kept = int(enough.nonzero()[0]) + 1 if bool(enough.any()) else kept
    return max(1, min(kept, rank or kept, len(values)))


def relative(error: float, size: float) -> float:
    """Return `error / size`; 0 when there is no error, infinite when there is one and nothing to compare with."""
    if error == 0:
        return 0.0
    return error / size if size else math.inf
