"""Which tensors make a layer of which algorithm, and the shape of the weight that they change."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

Shape = Sequence[int | None] | None  # None, or None or -1 inside, where unknown
Known = Mapping[str, list[int | None]]
BESIDE = frozenset({"alpha", "scalar", "magnitude", "reshape"})  # what may stand beside the tensors of most algorithms


@dataclass(frozen=True)
class Algorithm:
    """The tensors of one kind of layer, by role."""

    id: str  # as `info` counts them
    needs: tuple[frozenset[str], ...]  # any of these sets makes a whole layer
    may: frozenset[str] = frozenset()


def _sets(*sets: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(words.split()) for words in sets)


ALGORITHMS: tuple[Algorithm, ...] = (
    Algorithm("lora", _sets("down up", "embedding_down embedding_up"), frozenset({"mid"})),
    Algorithm("loha", _sets("hada_w1_a hada_w1_b hada_w2_a hada_w2_b"), frozenset({"hada_t1", "hada_t2"})),
    Algorithm(
        "lokr",
        _sets(
            *("lokr_w1 lokr_w2", "lokr_w1 lokr_w2_a lokr_w2_b"),
            *("lokr_w1_a lokr_w1_b lokr_w2", "lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b"),
        ),
        frozenset({"lokr_t2"}),
    ),
    Algorithm("oft", _sets("oft_blocks"), frozenset({"rescale"})),
    Algorithm("oft_v2", _sets("oft_R"), frozenset({"scaled_oft"})),
    Algorithm("boft", _sets("boft_R boft_s")),
    Algorithm("glora", _sets("a1 a2 b1 b2")),
    Algorithm("ia3", _sets("ia3 on_input", "ia3_l")),
    Algorithm("full", _sets("diff", "diff_b", "diff_m", "up_bias")),
    Algorithm("norm", _sets("w_norm", "b_norm")),
    Algorithm("value", _sets("value", "value_b")),
)
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a")
DIMENSIONS = {  # fewest and most dimensions of a role's tensor; those not named: any number up to five
    **dict.fromkeys(("down", "up", *HADA, "lokr_w2", "lokr_w2_b", "a1", "a2", "b1", "b2"), (2, 5)),
    **dict.fromkeys(("embedding_down", "embedding_up", *LOKR, "oft_R"), (2, 2)),
    **dict.fromkeys(("mid", "hada_t1", "hada_t2", "lokr_t2"), (3, 5)),
    **{"oft_blocks": (3, 4), "boft_R": (4, 4)},
    **dict.fromkeys(("diff", "diff_b", "w_norm", "b_norm"), (1, 5)),
}
SINGLE = frozenset({"alpha", "scalar", "on_input", "scaled_oft"})  # roles whose tensor is one number
CORE = {"hada_w1_a": "hada_t1", "hada_w2_a": "hada_t2", "lokr_w2_a": "lokr_t2", "up": "mid"}  # factor -> Tucker core
TUCKER = "Tucker"
INNER = (  # (a factor, its axis, the other one, its axis): axes as long as the rank, without and with a core between
    ("up", 1, "down", 0, None),
    ("up", 1, "down", 0, TUCKER),
    ("embedding_up", 1, "embedding_down", 0, None),
    ("hada_w1_a", 1, "hada_w1_b", 0, None),
    ("hada_w1_a", 0, "hada_w1_b", 0, TUCKER),
    ("hada_w2_a", 1, "hada_w2_b", 0, None),
    ("hada_w2_a", 0, "hada_w2_b", 0, TUCKER),
    ("lokr_w1_a", 1, "lokr_w1_b", 0, None),
    ("lokr_w2_a", 1, "lokr_w2_b", 0, None),
    ("lokr_w2_a", 0, "lokr_w2_b", 0, TUCKER),
    ("a1", 1, "a2", 0, None),
    ("b1", 1, "b2", 0, None),
)
STILL: tuple[tuple[frozenset[str], ...], ...] = (  # where a tensor of each of these sets is zero, a layer does nothing
    _sets("down up mid scalar alpha embedding_down embedding_up"),
    _sets("hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 alpha"),
    _sets("lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2"),
    _sets("diff diff_b diff_m w_norm b_norm ia3 oft_R up_bias"),
    _sets("a1 a2", "b1 b2"),
)


def algorithm_of(roles: Iterable[str]) -> Algorithm | None:
    """Return the algorithm whose tensors these are, or None where they make no whole layer of any one."""
    given = frozenset(roles) - BESIDE
    for algorithm in ALGORITHMS:
        if any(needs <= given <= needs | algorithm.may for needs in algorithm.needs):
            return algorithm
    return None


def kind_of(roles: Iterable[str]) -> str:
    """Return what `info` counts a layer as: its algorithm, or "dora" where it has a magnitude."""
    given = frozenset(roles)
    if "magnitude" in given:
        return "dora"
    found = algorithm_of(given)
    if found:
        return found.id
    return next((row.id for row in ALGORITHMS if any(needs & given for needs in row.needs)), "lora")


def missing(roles: Iterable[str]) -> frozenset[str]:
    """Return the roles that the tensors of a layer lack, empty where they are a whole one."""
    given = frozenset(roles) - BESIDE
    if algorithm_of(given):
        return frozenset()
    wanted = [needs - given for row in ALGORITHMS for needs in row.needs if needs & given]
    return min(wanted, key=len) if wanted else frozenset({"down", "up"})


def still(roles: Iterable[str], zero: Collection[str]) -> bool:
    """Tell whether a layer does nothing because tensors of it hold nothing but zeros.

    Args:
        roles: what the layer has.
        zero: those of them that are zero.
    """
    given = frozenset(roles)
    if "magnitude" in given or "rescale" in given:
        return False
    if "oft_blocks" in given:
        return "oft_blocks" in zero  # an alpha of 0 there means no constraint
    scaled = "down" in given or "hada_w1_a" in given  # elsewhere an alpha may count for nothing
    idle = frozenset(zero) if scaled else frozenset(zero) - {"alpha"}
    return any(all(one & given & idle for one in sets) for sets in STILL)


def shape_of(roles: Mapping[str, Shape]) -> list[int | None] | None:
    """Return the shape of the weight that a layer's tensors make, None in places that are not known.

    A shape that ends in None may be followed by a kernel.
    """
    known = {role: [None if size == -1 else size for size in shape] for role, shape in roles.items() if shape}
    for role in ("diff", "w_norm", "diff_m", "value", "diff_b", "b_norm", "up_bias", "value_b"):
        if role in known:
            return known[role]
    for make in (_low_rank, _embedding, _hadamard, _kronecker, _orthogonal):
        shape = make(known)
        if shape is not None:
            return shape
    return None


def _low_rank(known: Known) -> list[int | None] | None:
    down, up = known.get("down"), known.get("up")
    if not down or not up or len(down) < 2:
        return None
    kernel = known.get("mid") or down
    return [up[0], down[1], *kernel[2:]]


def _embedding(known: Known) -> list[int | None] | None:
    down, up = known.get("embedding_down"), known.get("embedding_up")
    return [down[-1], up[0]] if down and up else None


def _hadamard(known: Known) -> list[int | None] | None:
    a, b, core = known.get("hada_w1_a"), known.get("hada_w1_b"), known.get("hada_t1")
    if not a or not b or len(a) < 2 or len(b) < 2:
        return None
    return [a[1], b[1], *core[2:]] if core else [a[0], *b[1:]]


def _kronecker(known: Known) -> list[int | None] | None:
    one, two = _factor(known, "lokr_w1"), _factor(known, "lokr_w2")
    if not one or not two or len(one) < 2 or len(two) < 2:
        return None
    out, inner = (_times(a, b) for a, b in zip(one[:2], two[:2], strict=True))
    return [out, inner, *two[2:]]


def _factor(known: Known, role: str) -> list[int | None] | None:
    if role in known:
        return known[role]
    a, b, core = known.get(f"{role}_a"), known.get(f"{role}_b"), known.get(f"{role.replace('w', 't')}")
    if not a or not b or len(a) < 2 or len(b) < 2:
        return None
    return [a[1], b[1], *core[2:]] if core else [a[0], *b[1:]]


def _orthogonal(known: Known) -> list[int | None] | None:
    blocks, upper, scale = known.get("oft_blocks"), known.get("oft_R"), known.get("boft_s")
    if blocks and len(blocks) in (3, 4):
        return [_times(blocks[-3], blocks[-1]), None]
    if upper and len(upper) == 2 and upper[1] is not None and upper[0] not in (None, 1):  # 1: shared by all blocks
        return [None, _times(upper[0], (1 + math.isqrt(1 + 8 * upper[1])) // 2)]
    return [scale[0], None] if scale else None


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b
