"""How the changes at one target become one: the second choice of a merge method.

`summed` and `elected` act on entries. The others act on whole layers and stay exact on their factors: what they return
are parts again, whose sum is what the method wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..adapter import Target
from ..errors import UnsupportedLayer
from ..layers import Additive, Full, LoRA
from .lowrank import ROUNDING, Factors, norm, resolution
from .parts import Part, Weighted, common_shape, factored, low_rank, shape_of

Consensus = Callable[[Sequence[Tensor], bool], Tensor]  # changes, strengths in them; whether to take the mean
Whole = Callable[[Target, Sequence[Part], Sequence[Weighted]], list[Part]]  # parts there; all adapters

NO_ANGLE = 1e-6  # radians; nearer directions are mixed in a straight line
OPPOSITE = 1e-4  # how near to each other's opposite directions may be, as a share of their length
DEPENDENT = 1e-6  # share of the largest singular value below which a direction is rounding


def summed(changes: Sequence[Tensor], mean: bool) -> Tensor:
    """Return the sum of the changes, or at each entry the mean of those that are not zero."""
    total = torch.stack(list(changes)).sum(0)
    return total / _count([change != 0 for change in changes]) if mean else total


def elected(changes: Sequence[Tensor], mean: bool) -> Tensor:
    """Return at each entry the mean, or the sum, of the changes that have the sign of the sum.

    Source: TIES, arXiv 2306.01708, section 3 (elect, disjoint merge); a sum of 0 elects plus. The strengths take part
    in the vote, as in mergekit. PEFT (`calculate_majority_sign_mask`) lets the changes vote before they are multiplied,
    so that a negative strength turns against its own sign there, and the results differ where strengths do. The mean
    divides by how many agree, as PEFT does, and not by their strengths: 0.5 and 0.5 give half of 1 and 1.
    """
    signs = torch.where(torch.stack(list(changes)).sum(0) >= 0, 1.0, -1.0)
    agree = [change * signs > 0 for change in changes]
    total = torch.stack([change * mask for change, mask in zip(changes, agree, strict=True)]).sum(0)
    return total / _count(agree) if mean else total


def _count(masks: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(masks)).sum(0).clamp(min=1)


def total(target: Target, parts: Sequence[Part], adapters: Sequence[Weighted]) -> list[Part]:
    """Return the parts as they are: their sum is wanted (task arithmetic, arXiv 2212.04089)."""
    return list(parts)


def subtracted(target: Target, parts: Sequence[Part], adapters: Sequence[Weighted]) -> list[Part]:
    """Return the first adapter's part less the others'."""
    return [part if part.index == 0 else replace(part, strength=-part.strength) for part in parts]


def spherical(target: Target, parts: Sequence[Part], adapters: Sequence[Weighted]) -> list[Part]:
    """Return the parts in the mixture whose norm is the mean of the norms, and whose direction the Karcher mean.

    The Karcher mean of unit vectors is the one whose squared angles to them, weighed by their shares, sum up to the
    least; of two it is the point that slerp gives (Shoemake 1985). It is a linear combination of them, so that its
    coefficients follow from inner products alone. Strengths are shares: 1 and 1 are halfway, whatever their sum. An
    adapter without a layer at the target has the norm 0 there and no direction.
    Raises UnsupportedLayer where changes point in opposite directions, between which there is no way.
    """
    whole = sum(adapter.at(target) for adapter in adapters)
    shares = torch.tensor([part.strength / whole for part in parts], dtype=torch.float64)
    if len(parts) == 1:
        return [replace(parts[0], strength=float(shares[0]))]
    terms = [factored(change_of(target, part)) for part in parts]
    common_shape(target, [shape_of(change_of(target, part)) for part in parts])
    sizes = torch.tensor([norm(term) for term in terms], dtype=torch.float64)
    acting = sizes > 0
    if not bool(acting.any()):
        return list(parts)
    inner = torch.tensor([[_inner(one, other) for other in terms] for one in terms], dtype=torch.float64)
    cosines = (inner / torch.outer(sizes, sizes))[acting][:, acting]
    direction = karcher(cosines.clamp(-1, 1), shares[acting] / shares[acting].sum())
    if direction is None:
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: the changes point in opposite directions, and between these there is "
            "no way on the sphere; use the exact method, or turn one strength's sign with the scale verb"
        )
    weights = torch.zeros_like(sizes)
    weights[acting] = direction * float(shares @ sizes) / sizes[acting]
    return [replace(part, strength=float(weight)) for part, weight in zip(parts, weights, strict=True) if weight != 0]


def karcher(cosines: Tensor, shares: Tensor) -> Tensor | None:
    """Return the Karcher mean of unit vectors as coefficients on them; None where it is not determined.

    Gradient steps of length 1 on the sphere (Krakowski, Hueper and Manton 2007): the mean's tangent vectors to all
    points sum up to zero.

    Args:
        cosines: of the angles between the vectors, `(n, n)`.
        shares: how much each counts, `(n,)`, with the sum 1.
    """
    point = shares.clone()
    for _ in range(200):
        length = float(point @ cosines @ point)
        if length < OPPOSITE**2:
            return None
        point = point / length**0.5
        away = (cosines @ point).clamp(-1, 1)  # cosines of the angles between the mean and the vectors
        angles = away.arccos()
        stretch = torch.where(angles > NO_ANGLE, angles / angles.sin().clamp(min=NO_ANGLE), 1.0)
        step = shares * stretch - (shares * stretch @ away) * point
        size = max(0.0, float(step @ cosines @ step)) ** 0.5
        if size < 1e-13:
            break
        point = math.cos(size) * point + (math.sin(size) / size) * step
    return point


def orthogonal(target: Target, parts: Sequence[Part], adapters: Sequence[Weighted]) -> list[Part]:
    """Return the first adapter's part without what lies in the others' input or output directions.

    `A' = (1 - P_out) A (1 - P_in)`, with the projections onto the column and the row space of all others: on inputs
    that B reacts to, A' does nothing, and nothing that A' adds lies where B adds something, so that `A' B^T` and
    `A'^T B` are zero, and with them every inner product. The rank stays. To remove `<A, B> / <B, B> B` alone would
    change next to nothing: in so many dimensions two LoRAs are nearly at right angles in that sense as they are.
    The others' strengths do not matter, as long as they are not 0.
    Raises UnsupportedLayer where another adapter's change reaches all directions, so that nothing would be left.
    """
    own = [part for part in parts if part.index == 0]
    others = [change_of(target, part) for part in parts if part.index != 0]
    if not own or not others:
        return own
    layer = change_of(target, own[0])
    shape = common_shape(target, [shape_of(layer), *map(shape_of, others)])
    if len(shape) == 1:
        return [replace(own[0], layer=_vector_beside(layer, others))]
    terms = [product for product in map(factored, others) if norm(product) > 0]
    if not terms:
        return own
    outputs, inputs = basis([_range(term) for term in terms]), basis([_range(_turned(term)) for term in terms])
    if len(outputs) == outputs.shape[1] or len(inputs) == inputs.shape[1]:
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: the other adapter changes it in every direction, so that nothing of "
            "the first would be left; make it a LoRA of a lower rank first"
        )
    product = factored(layer)
    left = product.rows - outputs @ (outputs.T @ product.rows)
    right = product.columns - (product.columns @ inputs) @ inputs.T
    if norm(Factors(left, right)) <= resolution(product):
        left, right = torch.zeros_like(left[:, :1]), torch.zeros_like(right[:1])
    made = low_rank(left.float(), right.float(), shape)
    return [replace(own[0], layer=made if isinstance(layer, LoRA) else Full(made.delta()))]


def change_of(target: Target, part: Part) -> Additive:
    """Return a part's layer, which must have a change of its own; raises UnsupportedLayer."""
    if isinstance(part.layer, Additive):
        return part.layer
    raise UnsupportedLayer(
        f"{target.module}: the effect of a {type(part.layer).__name__} layer depends on the base weight, so it cannot "
        "be added to another one; apply both, one after the other, or name the base checkpoint (--base) to bake it"
    )


def basis(spans: Sequence[Tensor]) -> Tensor:
    """Return orthonormal columns that span the columns of all matrices, each of the same weight."""
    joint = torch.cat([span / span.norm() for span in spans], 1)
    found = torch.linalg.svd(joint, full_matrices=False)
    left: Tensor = found.U
    values: Tensor = found.S
    return left[:, values > DEPENDENT * values[0]]


def _range(product: Factors) -> Tensor:
    """Return a matrix with the product's left singular vectors and values, as narrow as its rank."""
    core: Tensor = torch.linalg.qr(product.columns.T, mode="r").R
    return product.rows @ core.T


def _turned(product: Factors) -> Factors:
    return Factors(product.columns.T, product.rows.T)


def _inner(one: Factors, other: Factors) -> float:
    """Return the inner product of two matrices, from their factors: `tr(C1^T R1^T R2 C2)`."""
    return float(((one.rows.T @ other.rows) * (one.columns @ other.columns.T)).sum())


def _vector_beside(layer: Additive, others: Sequence[Additive]) -> Full:
    """Return a vector less its projection onto the others."""
    own = layer.delta().double().flatten()
    spans = [span for other in others if bool((span := other.delta().double().reshape(-1, 1)).any())]
    directions = basis(spans) if spans else torch.zeros_like(own)[:, None]
    rest = own - directions @ (directions.T @ own)
    if rest.norm() <= ROUNDING * own.norm():
        rest = torch.zeros_like(rest)
    return replace(layer, diff=rest.float(), scale=1.0) if isinstance(layer, Full) else Full(rest.float())
