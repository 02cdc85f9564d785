"""What keeps a file's tensors from making whole layers: a part missing or said twice, sizes that do not go together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..lora_core.adapter import Target
from .algorithms import INNER, LOWEST, Shape, algorithm_of, missing
from .keymap import Place


def faults(places: Mapping[str, Place], shapes: Mapping[str, Shape], partly_known: Iterable[Target]) -> dict[str, str]:
    """Return the keys that make no whole layer, each with what is wrong.

    `partly_known` are targets with further keys that no table knows: such a layer is not missing a part.
    """
    layers: dict[Target, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, place in places.items():
        layers[place.target][place.role].append(key)
    split = {(target.component, target.module) for target in layers if target.block is not None}
    skipped, found = set(partly_known), dict[str, str]()
    for target, roles in layers.items():
        keys = [key for same in roles.values() for key in same]
        shared = set(roles) == {"alpha"} and (target.component, target.module) in split  # one for all row blocks
        fault = _repeated(places, roles) or ("" if shared or target in skipped else _missing(roles))
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
    if algorithm_of(roles):
        return ""
    lacking = missing(roles)
    return f"its {' and '.join(sorted(lacking))} is missing" if lacking else "its parts belong to different algorithms"


def _misshapen(shapes: Mapping[str, Shape]) -> str:
    """Check sizes as far as they are known."""
    known = {
        role: [None if size == -1 else size for size in shape] for role, shape in shapes.items() if shape is not None
    }
    for role, shape in known.items():
        if len(shape) < LOWEST.get(role, 0) or 0 in shape:
            return f"its {role} has the shape {shape}"
    if "alpha" in known and math.prod(size or 1 for size in known["alpha"]) != 1:
        return f"its alpha has the shape {known['alpha']}"
    return _apart(known) or _tucker(known)


def _apart(known: Mapping[str, list[int | None]]) -> str:
    """Name two factors whose inner dimensions differ; Tucker forms keep theirs elsewhere and are left to `_tucker`."""
    for a, axis, b, other in INNER:
        core = known.get(a.replace("_w", "_t").removesuffix("_a")) if "_w" in a else None
        if a not in known or b not in known or core:
            continue
        sizes = {known[a][axis], known[b][other]} - {None}
        pointwise = known[b][2:] if (a, b) == ("down", "up") else []
        if len(sizes) > 1 or any(size not in (1, None) for size in pointwise):
            return f"its {a} {known[a]} and {b} {known[b]} do not go together"
    return ""


def _tucker(known: Mapping[str, list[int | None]]) -> str:
    down, up, mid = known.get("down"), known.get("up"), known.get("mid")
    if not down or not up or not mid:
        return ""
    ranks = {size for size in (down[0], up[1], *mid[:2]) if size is not None}
    if len(ranks) > 1 or any(size not in (1, None) for size in (*up[2:], *down[2:])):
        return f"its down {down}, up {up} and mid {mid} do not go together"
    return ""
