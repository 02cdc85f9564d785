"""The best approximation of a lower rank of a dense matrix, by random sampling instead of a full SVD.

A block Krylov space of a random start holds the leading singular vectors after a few products with the matrix, whatever
its spectrum (Musco and Musco 2015, arXiv 1504.05477; the sampling is that of Halko, Martinsson and Tropp 2011,
arXiv 0909.4061). The space grows until it is known to be good enough. Whatever the space, the sum of the k largest
squared singular values of a matrix exceeds that of its part inside the space by at most the energy outside it (Ky Fan),
so that the answer comes with a bound; and the caller measures the residual itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .lowrank import Factors, kept_rank, truncated_matrix

BLOCK = 32  # columns that the space grows by
TOLERANCE = 3e-4  # share of the energy that may be missing, as far as the last steps tell
SMALL = 160  # rows or columns up to which the full SVD is quicker
FULL = 0.5  # share of the rows beyond which a space is not worth its price


@dataclass(frozen=True, eq=False)
class Sketch:
    """A product of low rank that stands for a matrix."""

    factors: Factors  # the singular values shared evenly by both
    energy: float  # sum of the squares of the singular values kept
    missing: float  # bound: at most so much more energy has the best product of this rank


def sketch(matrix: Tensor, rank: int | None = None, energy: float | None = None, seed: int = 0) -> Sketch:
    """Return nearly the best approximation of a matrix `(out, in)` of a rank, or with a share of its energy.

    Args:
        matrix: float32 or float64, on any device; it is not changed.
        rank: of the result, at most.
        energy: share of the squared singular values to keep, with as low a rank as that takes.
        seed: of the random start, which is drawn on the CPU so that every device gives the same.
    """
    if matrix.shape[0] > matrix.shape[1]:
        found = sketch(matrix.T, rank, energy, seed)
        return Sketch(Factors(found.factors.columns.T, found.factors.rows.T), found.energy, found.missing)
    side = len(matrix)
    if side <= SMALL or (rank or 0) >= side // 3 or energy == 1:
        return _full(matrix, rank, energy)
    return _krylov(matrix, rank, energy, seed) or _full(matrix, rank, energy)


def square_norm(tensor: Tensor) -> float:
    """Return the sum of squares, taken in float64 piece by piece."""
    return float(sum(piece.double().square().sum() for piece in torch.split(tensor.reshape(-1), 1 << 20)))


def residual(matrix: Tensor, product: Factors) -> float:
    """Subtract a product from the matrix, in place, and return the norm of what is left: the error, measured."""
    matrix.addmm_(product.rows.to(matrix), product.columns.to(matrix), alpha=-1)
    return float(square_norm(matrix) ** 0.5)


def _full(matrix: Tensor, rank: int | None, energy: float | None) -> Sketch:
    """Return the best product itself; of a large matrix from the eigenvectors of `matrix @ matrix.T` in float64."""
    if len(matrix) <= SMALL:
        best = truncated_matrix(matrix, rank, energy)
        return Sketch(best, float(best.rows.double().square().sum(0) @ best.columns.double().square().sum(1)), 0.0)
    gram = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)
    for piece in torch.split(matrix, 1024, 1):
        wide = piece.double()
        gram.addmm_(wide, wide.T)
    energies, vectors = torch.linalg.eigh(gram)
    energies, vectors = energies.flip(0).clamp(min=0), vectors.flip(1)
    kept = kept_rank(energies.sqrt(), rank, energy)
    rows = vectors[:, :kept].to(matrix)
    return Sketch(_shared(rows, rows.T @ matrix, energies[:kept]), float(energies[:kept].sum()), 0.0)


def _shared(rows: Tensor, columns: Tensor, energies: Tensor) -> Factors:
    """Return orthonormal rows and the columns that go with them, the singular values shared evenly by both."""
    root = energies.clamp(min=0).sqrt().sqrt().to(rows)
    return Factors(rows * root, columns / torch.where(root > 0, root, torch.ones_like(root))[:, None])


@dataclass(eq=False)
class _Space:
    """A growing orthonormal basis, and what the matrix is inside of it."""

    matrix: Tensor
    basis: Tensor  # (out, size) orthonormal
    image: Tensor  # (size, in): basis.T @ matrix
    gram: Tensor  # (size, size) float64: image @ image.T

    def grow(self) -> None:
        """Add a block of columns: the matrix times its own transpose, applied to the last block."""
        fresh = self.matrix @ self.image[-BLOCK:].T
        for _ in range(2):  # once leaves a trace of the old directions where the fresh ones are small
            fresh = torch.linalg.qr(fresh - self.basis @ (self.basis.T @ fresh)).Q
        image = fresh.T @ self.matrix
        self.basis = torch.cat([self.basis, fresh], 1)
        self.image = torch.cat([self.image, image])
        side = (self.image @ image.T).double().cpu()
        upper, corner = side[:-BLOCK], side[-BLOCK:]
        self.gram = torch.cat([torch.cat([self.gram, upper], 1), torch.cat([upper.T, corner], 1)])

    def energies(self) -> Tensor:
        """Return the squared singular values inside the space, descending, float64."""
        values: Tensor = torch.linalg.eigvalsh(self.gram)
        return values.flip(0).clamp(min=0)

    def best(self, rank: int) -> Factors:
        """Return the best product of a rank inside the space."""
        energies, vectors = torch.linalg.eigh(self.gram)
        chosen = vectors.flip(1)[:, :rank].to(self.matrix)
        return _shared(self.basis @ chosen, chosen.T @ self.image, energies.flip(0)[:rank])


def _krylov(matrix: Tensor, rank: int | None, energy: float | None, seed: int) -> Sketch | None:
    """Return the sketch, or None where the space would become too large to be worth it."""
    total, space = square_norm(matrix), _start(matrix, seed)
    held: list[float] = []  # energy of the result, step by step
    ranks: list[int] = []
    while True:
        energies = space.energies()
        ranks.append(_wanted(energies, total, rank, energy))
        held.append(float(energies[: ranks[-1]].sum()))
        outside = max(0.0, total - float(energies.sum()))
        enough = len(energies) >= (rank or 1) and (energy is None or float(energies.sum()) >= energy * total)
        settled = ranks[-2:] == [ranks[-1]] * 2 and _to_come(held) <= TOLERANCE * held[-1]
        if outside <= TOLERANCE * held[-1] and enough or (rank is None or len(energies) > rank) and enough and settled:
            return Sketch(space.best(ranks[-1]), held[-1], min(outside, max(0.0, total - held[-1])))
        if len(energies) + BLOCK > FULL * len(matrix):
            return None
        space.grow()


def _start(matrix: Tensor, seed: int) -> _Space:
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(matrix.shape[1], BLOCK, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ random).Q
    image = basis.T @ matrix
    return _Space(matrix, basis, image, (image @ image.T).double().cpu())


def _wanted(energies: Tensor, total: float, rank: int | None, energy: float | None) -> int:
    """Return the rank to keep, given the energies inside the space and that of the whole matrix."""
    if energy is None:
        return min(rank or len(energies), len(energies))
    enough = energies.cumsum(0) >= energy * total
    least = int(enough.nonzero()[0]) + 1 if bool(enough.any()) else len(energies)
    return min(rank or least, least)


def _to_come(held: list[float]) -> float:
    """Estimate how much the last steps' gains, which shrink geometrically, will add up to."""
    if len(held) < 3:
        return float("inf")
    before, last = held[-2] - held[-3], held[-1] - held[-2]
    if last <= 0:
        return 0.0
    ratio = min(last / before, 0.95) if before > 0 else 0.95
    return last * ratio / (1 - ratio)
