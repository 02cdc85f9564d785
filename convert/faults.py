"""What keeps a file's tensors from making whole layers: a part missing or said twice, sizes that do not go together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..lora_core.adapter import Target
from .keymap import Place

Shape = Sequence[int | None] | None  # None, or None or -1 inside, where unknown
PARTS = (  # the parts that make a layer; an alpha may stand beside each
    frozenset({"down", "up"}),
    frozenset({"down", "up", "mid"}),
    frozenset({"diff"}),
    frozenset({"diff_b"}),
    frozenset({"w_norm"}),
    frozenset({"b_norm"}),
)
LOWEST = {"down": 2, "up": 2, "mid": 3, "diff": 1, "diff_b": 1, "w_norm": 1, "b_norm": 1, "alpha": 0}  # dimensions


def faults(places: Mapping[str, Place], shapes: Mapping[str, Shape], partly_known: Iterable[Target]) -> dict[str, str]:
    """Return the keys that make no whole layer, each with what is wrong.

    `partly_known` are targets with further keys that no table knows: such a layer is not missing a part.
    """
    layers: dict[Target, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, place in places.items():
        layers[place.target][place.role].append(key)
    skipped, found = set(partly_known), dict[str, str]()
    for target, roles in layers.items():
        keys = [key for same in roles.values() for key in same]
        fault = _repeated(places, roles) or ("" if target in skipped else _missing(roles))
        fault = fault or _misshapen({role: shapes[same[0]] for role, same in roles.items()})
        if fault:
            found.update(dict.fromkeys(keys, fault))
    return found


def _repeated(places: Mapping[str, Place], roles: Mapping[str, Sequence[str]]) -> str:
    if any(len(keys) > 1 for keys in roles.values()):
        return "the same layer is there twice"
    names = {places[key].spelling.name for role, keys in roles.items() if role != "alpha" for key in keys}
    return "its parts belong to adapters of different names" if len(names) > 1 else ""


def _missing(roles: Mapping[str, Sequence[str]]) -> str:
    given = frozenset(roles) - {"alpha"}
    if given in PARTS:
        return ""
    wanted = next((parts - given for parts in PARTS if given < parts), {"down", "up"})
    return f"its {' and '.join(sorted(wanted))} is missing"


def _misshapen(shapes: Mapping[str, Shape]) -> str:
    """Check sizes as far as they are known."""
    known = {
        role: [None if size == -1 else size for size in shape] for role, shape in shapes.items() if shape is not None
    }
    for role, shape in known.items():
        if len(shape) < LOWEST[role] or 0 in shape:
            return f"its {role} has the shape {shape}"
    if "alpha" in known and math.prod(size or 1 for size in known["alpha"]) != 1:
        return f"its alpha has the shape {known['alpha']}"
    down, up, mid = known.get("down"), known.get("up"), known.get("mid")
    if not down or not up:
        return ""
    ranks = {size for size in (down[0], up[1], *(mid[:2] if mid else ())) if size is not None}
    pointwise = [*up[2:], *(down[2:] if mid else ())]
    if len(ranks) > 1 or any(size not in (1, None) for size in pointwise):
        middle = f", mid {mid}" if mid else ""
        return f"its down {down} and up {up}{middle} do not go together"
    return ""
