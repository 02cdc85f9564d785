"""An adapter out of the difference of two models: each weight's change as the best product of a low rank.

Weights come in pairs, one pair in memory at a time. The error is measured: what a layer leaves of the change is formed
in place and its norm taken, with the factors as they are stored.

What counts as equal: weights that agree bit for bit, and weights none of whose values differ by more than one rounding
step of the narrower dtype that they are stored in (`2**-10` of the value for fp16, `2**-7` for bf16): such a difference
is what saving a model in another dtype leaves, and no layer is made for it. Its norm counts as error all the same.

Sources: `sketch` for LoRA; Van Loan and Pitsianis 1993 for the nearest Kronecker product, which is the best product of
rank 1 of the weight with its values in another order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..dtypes import device_named, dtype_named
from ..errors import BadConfig, BadValues, WrongArchitecture
from ..layers import Full, Layer, LoKr
from ..layers.base import identical
from .lowrank import Factors
from .merge import low_rank
from .provenance import united
from .report import Report, Share
from .sketch import residual, sketch, square_norm

KINDS = ("lora", "lokr")
RANK = 32  # where neither a rank nor an energy is asked for
PIECE = 1 << 20  # values looked at together


@dataclass(frozen=True, eq=False)
class Pair:
    """One parameter of both models, in the dtypes that they are stored in."""

    target: Target
    base: Tensor
    tuned: Tensor
    owned: bool = False  # whether `tuned` may be written over
    lookup: bool = False  # a table of embeddings, for which hosts read no layer


@dataclass(frozen=True)
class Settings:
    """How layers are made of changes."""

    kind: str = "lora"  # "lora", or "lokr": a Kronecker product
    rank: int | None = None  # of each layer at most; of a LoKr's second factor, None: whole
    energy: float | None = None  # share of a change's squared singular values to keep
    conv_rank: int | None = None  # of convolutions larger than 1x1, instead of `rank`
    vectors: bool = False  # norms and biases (as full differences) and embeddings too
    dtype: str = "keep"  # of the factors: "keep" is fp32
    device: str = "cpu"

    def checked(self) -> Settings:
        """Return these settings, with a rank where nothing says how much to keep. Raises BadConfig."""
        if self.kind not in KINDS:
            raise BadConfig(f"kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        for name, rank in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if rank is not None and rank < 1:
                raise BadConfig(f"{name} {rank}: give a whole number from 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise BadConfig(f"energy {self.energy}: give a share between 0 and 1, such as 0.95")
        if self.kind == "lokr" and self.energy is not None:
            raise BadConfig("a Kronecker product has no energy to choose: give a rank, or nothing for a whole factor")
        dtype_named(self.dtype)
        device_named(self.device)
        if self.kind == "lokr" or self.rank or self.energy:
            return self
        return Settings(**{**asdict(self), "rank": RANK})


@dataclass(frozen=True, eq=False)
class Extraction:
    """What was made of two models' difference."""

    adapter: Adapter
    report: Report  # error and size of every change, those left out included
    equal: int  # parameters that agree
    rounding: int  # parameters that differ by rounding alone
    vectors: int  # changed norms, biases and embeddings that were left out
    left_out: float  # share of the whole change's norm in what was left out, vectors and rounding


@dataclass
class _Found:
    layers: dict[Target, Layer] = field(default_factory=dict)
    shares: dict[Target, Share] = field(default_factory=dict)
    equal: int = 0
    rounding: int = 0
    vectors: int = 0
    left_out: float = 0.0  # sum of squares


def extract(
    pairs: Iterable[Pair],
    settings: Settings,
    architecture: str | None = None,
    origins: tuple[Mapping[str, object] | None, ...] = (),
) -> Extraction:
    """Return the adapter that makes the base models' weights into the tuned ones', as nearly as its rank allows.

    Args:
        pairs: every parameter that both models have; asked for one after the other.
        settings: how much to keep.
        architecture: the models' family.
        origins: where the two models are from, base first; see `provenance`.

    Raises:
        BadConfig: a setting that makes no sense, or models without a difference.
        BadValues: NaN or infinite weights.
        WrongArchitecture: two weights of different shape.
    """
    settings, found = settings.checked(), _Found()
    for pair in pairs:
        target, delta = pair.target, _change(found, pair, settings)
        del pair  # one tensor is enough from here on
        if delta is not None:
            size = math.sqrt(square_norm(delta))
            found.layers[target], error = layer_of(delta, settings)
            found.shares[target] = Share(error, size)
            del delta
    if not found.shares and not found.equal:
        raise BadConfig("the two models have no weight in common that an adapter could change; compare like with like")
    if not found.layers:
        raise BadConfig(_nothing(found))
    operation = {"method": "extract", **{key: value for key, value in asdict(settings).items() if key != "device"}}
    sources = [Adapter(architecture, {}, origin=origin) for origin in origins]
    adapter = united(sources, found.layers, operation, architecture, {})
    report = Report(found.shares)
    whole = math.fsum(share.size**2 for share in found.shares.values())
    left_out = math.sqrt(found.left_out / whole) if whole else 0.0
    return Extraction(adapter, report, found.equal, found.rounding, found.vectors, left_out)


def _nothing(found: _Found) -> str:
    if found.vectors:
        return f"only {found.vectors} norms, biases and embeddings differ; ask for vectors to take them too"
    if found.rounding:
        return f"the models are equal up to rounding ({found.rounding} weights differ by it): nothing to extract"
    return f"the models are equal in all {found.equal} weights: nothing to extract"


def _change(found: _Found, pair: Pair, settings: Settings) -> Tensor | None:
    """Return a parameter's change, float32, or note why there is to be no layer and return None."""
    pair = _alike(pair)
    if identical(pair.base, pair.tuned):
        found.equal += 1
        return None
    rounding = _rounding_alone(pair)
    delta = difference(pair)
    size = math.sqrt(square_norm(delta))
    if not math.isfinite(size):
        raise BadValues(
            f"{pair.target.component}.{pair.target.module}: one of the models holds NaN or infinity there; "
            "take a sound checkpoint"
        )
    if size and not rounding and (settings.vectors or (delta.dim() > 1 and not pair.lookup)):
        return delta
    found.equal, found.rounding = found.equal + (not size), found.rounding + bool(size and rounding)
    found.vectors += bool(size and not rounding)
    found.left_out += size**2
    found.shares[pair.target] = Share(size, size)
    return None


def _alike(pair: Pair) -> Pair:
    """Return the pair in one shape: a 1x1 convolution and a matrix are the same. Raises WrongArchitecture."""
    one, two = tuple(pair.base.shape), tuple(pair.tuned.shape)
    if one == two:
        return pair
    shape = max(one, two, key=len)
    if pair.base.numel() != pair.tuned.numel() or one[:1] != two[:1] or len(one) == len(two):
        raise WrongArchitecture(
            f"{pair.target.component}.{pair.target.module}: is {list(one)} in the base and {list(two)} in the tuned "
            "model; extract from models of one family and size"
        )
    return replace(pair, base=pair.base.reshape(shape), tuned=pair.tuned.reshape(shape))


def _rounding_alone(pair: Pair) -> bool:
    """Tell whether no value differs by more than one rounding step of the narrower dtype."""
    kinds = [torch.finfo(tensor.dtype) for tensor in (pair.base, pair.tuned)]
    step = max(kind.eps for kind in kinds)
    least = max(kind.smallest_normal * kind.eps for kind in kinds)  # the step of values too small for the dtype
    flat = (torch.split(tensor.reshape(-1), PIECE) for tensor in (pair.base, pair.tuned))
    for base, tuned in zip(*flat, strict=True):
        one, two = base.float(), tuned.float()
        if not bool(((two - one).abs() <= step * torch.maximum(one.abs(), two.abs()) + least).all()):
            return False
    return True


def difference(pair: Pair) -> Tensor:
    """Return `tuned - base`, float32, with no more memory than the result takes; none, where `tuned` gives its own."""
    own = pair.owned and pair.tuned.dtype == torch.float32
    delta = pair.tuned if own else torch.empty(pair.tuned.shape, dtype=torch.float32)
    flat, base, tuned = delta.reshape(-1), pair.base.reshape(-1), pair.tuned.reshape(-1)
    for start in range(0, flat.numel(), PIECE):
        rows = slice(start, start + PIECE)
        torch.sub(tuned[rows].float(), base[rows].float(), out=flat[rows])
    return delta


def layer_of(delta: Tensor, settings: Settings) -> tuple[Layer, float]:
    """Return the layer for a change, and the norm of what it misses. The change is used up.

    Args:
        delta: float32, `(out, in)`, `(out, in, *kernel)`, or a vector.
        settings: how much to keep.
    """
    dtype, shape = dtype_named(settings.dtype) or torch.float32, tuple(delta.shape)
    delta = delta.to(settings.device)
    if delta.dim() < 2:
        stored = delta.to(dtype).cpu()
        return Full(stored), float((stored.double() - delta.cpu().double()).norm())
    if settings.kind == "lokr":
        return _kronecker(delta, settings, dtype)
    apart = settings.conv_rank is not None and math.prod(shape[2:]) > 1
    rank, energy = (settings.conv_rank, None) if apart else (settings.rank, settings.energy)
    matrix = delta.reshape(shape[0], -1)
    factors = sketch(matrix, rank, energy).factors.to(dtype)
    error = residual(matrix, factors)
    return low_rank(factors.rows.cpu().contiguous(), factors.columns.cpu().contiguous(), shape), error


def _kronecker(delta: Tensor, settings: Settings, dtype: torch.dtype) -> tuple[LoKr, float]:
    """Return the nearest Kronecker product; its second factor is of low rank where one is asked for."""
    shape = tuple(delta.shape)
    (a, c), (b, d) = halves(shape[0]), halves(shape[1])
    kernel = math.prod(shape[2:])
    turned = delta.reshape(a, c, b, d, kernel).permute(0, 2, 1, 3, 4).reshape(a * b, c * d * kernel)
    best = sketch(turned, 1).factors.to(dtype)
    first, second = best.rows.reshape(a, b), best.columns.reshape(c, d, *shape[2:])
    rank = settings.rank if settings.rank and settings.rank < min(c, d * kernel) else None
    if rank is None:
        layer = LoKr(1.0, w1=first.cpu(), w2=second.cpu().contiguous(), shape=shape)
        return layer, residual(turned, best)
    low = sketch(second.float().flatten(1), rank).factors.to(dtype)
    product = (low.rows.float() @ low.columns.float()).reshape(1, -1)
    error = residual(turned, Factors(best.rows.float(), product))
    w2_a, w2_b = low.rows.cpu().contiguous(), low.columns.cpu().contiguous()
    return LoKr(float(rank), w1=first.cpu(), w2_a=w2_a, w2_b=w2_b, shape=shape), error


def halves(size: int) -> tuple[int, int]:
    """Return two factors as near to each other as can be, the smaller first, as LyCORIS chooses them.

    >>> halves(320), halves(1280), halves(7)
    ((16, 20), (32, 40), (1, 7))
    """
    small = next(divisor for divisor in range(math.isqrt(size), 0, -1) if size % divisor == 0)
    return small, size // small
