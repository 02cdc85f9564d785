"""The merge methods: a table of choices, and what each method wants at a target.

A method is a row: the space that it works in, which entries stay there, how the changes become one (the form of
mergekit's generalised task arithmetic, `GeneralizedTaskArithmeticMerge`, widened by methods that act on whole layers).
What a row wants at a target is a list of parts whose sum is the result, be it stored exactly or at a lower rank.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..adapter import Target
from ..errors import BadConfig, WrongArchitecture
from ..layers import Full, Layer, LoRA, Norm, Transform, rank_of
from . import combine, sparsify
from .combine import Consensus, Whole, change_of
from .lowrank import Factors
from .parts import Part, Weighted, by_target, common_shape, factored, low_rank, shape_of
from .sparsify import Sparsify, Thinning

Weights = Callable[[Target], Tensor]  # the base model's weight at a target
ANY = 1 << 30
IDLE = 1e-6  # share of the largest singular value below which a joint direction is rounding


@dataclass(frozen=True)
class Method:
    """One row: what the method is, and when to take it."""

    id: str
    when: str  # one line for people
    whole: Whole | None = None  # acts on whole layers, exact on their factors; else the next three hold
    keep: Sparsify | None = None  # which entries stay
    consensus: Consensus | None = None  # how those of several adapters become one
    aligned: bool = False  # the entries are those of the joint singular vectors, else of the weight change
    mean: bool = False  # whether the mean is taken, unless told otherwise
    density: float = 0.5  # unless told otherwise
    fewest: int = 1  # adapters
    most: int = ANY
    shares: bool = False  # strengths are shares of a mean, of which none may be negative

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that the method uses."""
        if self.whole is not None:
            return ()
        more: Mapping[Sparsify, tuple[str, ...]] = {
            sparsify.random: ("seed",),
            sparsify.graded: ("seed", "epsilon"),
            sparsify.middle: ("gamma",),
        }
        return ("density", *more.get(self.keep or sparsify.largest, ()), "normalise")


METHODS = (
    Method(
        "exact",
        "the plain sum, nothing lost; the ranks add up, so the file grows. The first choice",
        whole=combine.total,
    ),
    Method(
        "svd",
        "the plain sum at a rank, energy or size that you set: a small file, as near to the sum as that allows",
        whole=combine.total,
    ),
    Method(
        "ties",
        "LoRAs that pull against each other: drops small changes, lets the rest vote on the sign, averages the winners",
        keep=sparsify.largest,
        consensus=combine.elected,
        mean=True,
    ),
    Method(
        "dare-linear",
        "many LoRAs at full strength: drops changes at random and enlarges the rest, so that they meet less often",
        keep=sparsify.random,
        consensus=combine.summed,
    ),
    Method(
        "dare-ties",
        "as dare-linear, with the vote on the sign of ties",
        keep=sparsify.random,
        consensus=combine.elected,
        mean=True,
    ),
    Method(
        "magnitude-prune",
        "the sum of each LoRA's largest changes: less noise, the small details go",
        keep=sparsify.largest,
        consensus=combine.summed,
    ),
    Method(
        "della",
        "as dare-ties, but large changes are likelier to stay than small ones",
        keep=sparsify.graded,
        consensus=combine.elected,
        mean=True,
    ),
    Method(
        "breadcrumbs",
        "the sum without each LoRA's very largest and its small changes: for LoRAs that burn in or were trained long",
        keep=sparsify.middle,
        consensus=combine.summed,
        density=0.9,
    ),
    Method(
        "slerp",
        "a point on the way from one LoRA to another that keeps the strength of both; strengths are shares",
        whole=combine.spherical,
        fewest=2,
        most=2,
        shares=True,
    ),
    Method(
        "karcher",
        "the middle of any number of LoRAs in the same sense as slerp; strengths are shares",
        whole=combine.spherical,
        shares=True,
    ),
    Method(
        "knots",
        "LoRAs of one subject or style from different trainings: brings their directions together, then as ties",
        keep=sparsify.largest,
        consensus=combine.elected,
        aligned=True,
        mean=True,
    ),
    Method(
        "orthogonal",
        "the first LoRA without what it has in common with the others, to be used beside them without a clash",
        whole=combine.orthogonal,
        fewest=2,
    ),
    Method(
        "subtract",
        "the first LoRA less the others: takes a trait out, or a LoRA out of a merge that holds it",
        whole=combine.subtracted,
        fewest=2,
    ),
)
IDS = tuple(row.id for row in METHODS)


@dataclass(frozen=True)
class Settings:
    """What a method can be told; None stands for the method's own choice, a setting that it does not use is refused.

    Attributes:
        density: share of the entries that stay, above 0 to 1.
        seed: of what is drawn by lot; 0 unless told otherwise.
        normalise: whether entries are averaged over the adapters that have a say in them, or added up.
        epsilon: della: how far apart the chances of small and large entries are.
        gamma: breadcrumbs: share of the largest entries that go.
    """

    density: float | None = None
    seed: int | None = None
    normalise: bool | None = None
    epsilon: float | None = None
    gamma: float | None = None

    def checked(self, row: Method) -> dict[str, Any]:
        """Return the settings that a method uses, filled in; raises BadConfig for an unused one or one out of range."""
        told = {item.name: value for item in fields(self) if (value := getattr(self, item.name)) is not None}
        unused = [name for name in told if name not in row.settings]
        if unused:
            users = [other.id for other in METHODS if unused[0] in other.settings]
            raise BadConfig(f"{row.id} has no use for {unused[0]}: leave it out, or choose {', '.join(users)}")
        filled = {"density": row.density, "seed": 0, "normalise": row.mean, "epsilon": None, "gamma": None, **told}
        if not 0 < filled["density"] <= 1:  # NaN as well
            raise BadConfig(f"density {filled['density']:g}: give the share that stays, above 0 to 1, such as 0.5")
        found = {name: filled[name] for name in row.settings}
        thinning = _thinning(found)
        if "epsilon" in found:
            found["epsilon"] = sparsify.spread(thinning)
        if "gamma" in found:
            found["gamma"] = sparsify.top(thinning)
        return found


@dataclass(frozen=True, eq=False)
class Wish:
    """What a method wants at a target: the sum of the parts, at strength 1."""

    target: Target
    parts: Sequence[Part]
    rank: int | None = None  # at which a dense result is stored unless told otherwise; None = as it is


def method(id: str) -> Method:
    """Return a row by its id; raises BadConfig for an unknown one."""
    found = next((row for row in METHODS if row.id == id), None)
    if found is None:
        raise BadConfig(f"unknown merge method {id!r}: choose one of {', '.join(IDS)}")
    return found


def check_adapters(row: Method, adapters: Sequence[Weighted]) -> None:
    """Raise BadConfig for a number of adapters, or strengths, that a method cannot work with."""
    if not row.fewest <= len(adapters) <= row.most:
        wanted = "two adapters" if row.most == 2 else "two adapters or more"
        raise BadConfig(f"{row.id} needs {wanted}, got {len(adapters)}: choose another method, such as exact")
    strengths = [number for part in adapters for number in (part.strength, part.text_encoder) if number is not None]
    negative = [number for number in strengths if number < 0]
    if row.shares and negative:
        raise BadConfig(f"strength {negative[0]:g}: {row.id} takes strengths as shares, which are not below 0")


def wishes(
    adapters: Sequence[Weighted],
    row: Method,
    settings: Mapping[str, Any],
    base: Weights | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[Wish]:
    """Yield what a method wants, target by target; the same each time.

    Args:
        adapters: in the order in which they were given.
        row: the method.
        settings: as `Settings.checked` returns them.
        base: gives the base model's weight at a target; layers whose effect depends on it are baked with it. Without
            it they are refused, or passed on where nothing else meets them.
        device: where to compute.

    Raises:
        UnsupportedLayer: a layer that the method cannot take.
        BadValues: shapes that differ.
    """
    for target, found in by_target(adapters).items():
        parts = [_ready(target, part, base, row.shares, device) for part in found]
        if row.whole is not None:
            parts = row.whole(target, parts, adapters)
            if parts:
                yield Wish(target, parts)
        elif settings["density"] == 1 and (len(parts) == 1 or _is_sum(row, settings)):
            yield Wish(target, parts)
        else:
            yield _entries(target, parts, row, settings)


def _is_sum(row: Method, settings: Mapping[str, Any]) -> bool:
    return row.consensus is combine.summed and not settings["normalise"]


def _entries(target: Target, parts: Sequence[Part], row: Method, settings: Mapping[str, Any]) -> Wish:
    """Let the method act on entries: of the weight change, or of its joint singular vectors."""
    changes = [change_of(target, part) for part in parts]
    shape = common_shape(target, [shape_of(change) for change in changes])
    if row.aligned and len(shape) > 1:
        return Wish(target, [Part(_aligned(target, parts, row, settings, shape), 1.0)])
    terms = [
        _thinned(target, part, change.delta().float().reshape(shape) * part.strength, row, settings)
        for part, change in zip(parts, changes, strict=True)
    ]
    result = (row.consensus or combine.summed)(terms, settings["normalise"])
    kind = Norm if all(isinstance(change, Norm) for change in changes) else Full
    ranks = [rank_of(part.layer) for part in parts]
    known = [rank for rank in ranks if rank]
    limit = min(shape[0], math.prod(shape[1:])) if len(shape) > 1 else 1
    return Wish(target, [Part(kind(result), 1.0)], min(sum(known), limit) if len(known) == len(ranks) else None)


def _aligned(
    target: Target, parts: Sequence[Part], row: Method, settings: Mapping[str, Any], shape: tuple[int, ...]
) -> LoRA:
    """Let the method act on the right singular vectors that belong to each adapter in a decomposition of all.

    `[A_1 ... A_n] = U S [V_1 ... V_n]^T`, and the result is `U S` times the merged `V_i^T`: what the adapters do is
    compared along common output directions. Its rank is at most the sum of the ranks. Source: KnOTS, arXiv 2410.19735,
    section 4. Worked out on the factors; strengths multiply the `V_i`, so that the directions do not depend on them.
    """
    terms = [factored(change_of(target, part)) for part in parts]
    bases = [torch.linalg.qr(term.columns.T) for term in terms]
    outputs, core = torch.linalg.qr(torch.cat([term.rows for term in terms], 1))
    joint = torch.block_diag(*(base.R.T for base in bases))  # type: ignore[no-untyped-call]
    left, values, right = torch.linalg.svd(core @ joint, full_matrices=False)
    kept = max(1, int((values > IDLE * values[0]).sum()))
    pieces = right[:kept].split([base.Q.shape[1] for base in bases], 1)
    vectors = [
        _thinned(target, part, (piece @ base.Q.T).float() * part.strength, row, settings)
        for part, piece, base in zip(parts, pieces, bases, strict=True)
    ]
    merged = (row.consensus or combine.summed)(vectors, settings["normalise"])
    root = values[:kept].sqrt()
    product = Factors(outputs @ left[:, :kept] * root, root[:, None] * merged.double())
    return low_rank(product.rows.float(), product.columns.float(), shape)


def _thinned(target: Target, part: Part, change: Tensor, row: Method, settings: Mapping[str, Any]) -> Tensor:
    if settings["density"] == 1 or row.keep is None:
        return change
    return row.keep(change, _thinning(settings), _lots(settings.get("seed", 0), target, part.index))


def _thinning(settings: Mapping[str, Any]) -> Thinning:
    return Thinning(settings["density"], settings.get("epsilon"), settings.get("gamma")) if settings else Thinning()


def _lots(seed: int, target: Target, index: int) -> torch.Generator:
    """Return a generator of a layer's own, so that its lots depend neither on other layers nor on their order."""
    name = f"{seed}/{index}/{target.component}/{target.module}/{target.block}/{target.parameter}"
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def _ready(target: Target, part: Part, base: Weights | None, shares: bool, device: str | torch.device) -> Part:
    """Return a part on the device, its layer baked where its effect depends on the base weight and this is known."""
    layer = moved(part.layer, device)
    if base is None or not isinstance(layer, Transform):
        return replace(part, layer=layer)
    weight = base(target).to(device).float()
    strength = 1.0 if shares else part.strength
    try:
        change = (layer.apply(weight, strength) - weight) / strength
    except WrongArchitecture as problem:
        raise WrongArchitecture(
            f"{target.component}.{target.module}: the base's weight of shape {tuple(weight.shape)} does not fit a "
            f"{type(layer).__name__} layer; name the checkpoint that the adapter was made for"
        ) from problem
    return replace(part, layer=Full(change))


def moved(layer: Layer, device: str | torch.device) -> Layer:
    """Return a layer with its tensors on a device; the very same object where they are there."""
    if all(tensor.device == torch.device(device) for tensor in layer.tensors()):
        return layer
    values = {item.name: getattr(layer, item.name) for item in fields(layer)}
    tensors = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    inner = {"layer": moved(values["layer"], device)} if "layer" in values else {}
    return replace(layer, **tensors, **inner)  # type: ignore[arg-type]
