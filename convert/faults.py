"""What keeps a file's tensors from making whole layers: a part missing or said twice, sizes that do not go together."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..lora_core.adapter import Target
from .algorithms import CORE, DIMENSIONS, INNER, SINGLE, Known, Shape, algorithm_of, missing, shape_of
from .keymap import Place

Layers = Mapping[Target, Mapping[str, Sequence[str]]]


def faults(places: Mapping[str, Place], shapes: Mapping[str, Shape], partly_known: Iterable[Target]) -> dict[str, str]:
    """Return the keys that make no whole layer, each with what is wrong.

    `partly_known` are targets with further keys that no table knows: such a layer is not missing a part.
    """
    layers: dict[Target, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for key, place in places.items():
        layers[place.target][place.role].append(key)
    covered = _covered(layers, places)
    skipped, found = set(partly_known), dict[str, str]()
    for target, roles in layers.items():
        keys = [key for same in roles.values() for key in same]
        shared = set(roles) == {"alpha"} and replace(target, block=None) in covered  # one for all row blocks
        fault = _repeated(places, roles) or ("" if shared or target in skipped else _missing(roles))
        fault = fault or ("" if shared else _overlapping(target, covered)) or _unaided(target, roles, layers)
        fault = fault or misshapen({role: shapes[same[0]] for role, same in roles.items()})
        if fault:
            found.update(dict.fromkeys(keys, fault))
    return found


def _covered(layers: Layers, places: Mapping[str, Place]) -> dict[Target, Counter[int | None]]:
    """Count the layers on each row block of the weights that are given in parts; None stands for the whole weight."""
    found: dict[Target, Counter[int | None]] = defaultdict(Counter)
    for target, roles in layers.items():
        place = next(places[key] for same in roles.values() for key in same)
        if set(roles) != {"alpha"}:
            first = target.block or 0
            blocks = range(first, first + max(1, place.blocks)) if target.block is not None else (None,)
            found[replace(target, block=None)].update(blocks)
    return {weight: blocks for weight, blocks in found.items() if set(blocks) != {None}}


def _overlapping(target: Target, covered: Mapping[Target, Counter[int | None]]) -> str:
    blocks = covered.get(replace(target, block=None), Counter())
    return "the same rows have two layers" if None in blocks or any(number > 1 for number in blocks.values()) else ""


def _unaided(target: Target, roles: Mapping[str, Sequence[str]], layers: Layers) -> str:
    """Tell that PEFT's bias lacks the low-rank layer whose scale it takes."""
    beside = layers.get(replace(target, parameter="weight"), {})
    return "its down and up are missing" if "up_bias" in roles and not {"down", "up"} <= set(beside) else ""


def _repeated(places: Mapping[str, Place], roles: Mapping[str, Sequence[str]]) -> str:
    if any(len(keys) > 1 for keys in roles.values()):
        return "the same layer is there twice"
    names = {places[key].spelling.name for role, keys in roles.items() if role != "alpha" for key in keys}
    if len(names) > 1:
        return "its parts belong to adapters of different names"
    words = {places[key].spelling.prefix for keys in roles.values() for key in keys}
    return "its parts are spelled in two dialects" if len(words) > 1 else ""


def _missing(roles: Mapping[str, Sequence[str]]) -> str:
    if algorithm_of(roles):
        return ""
    lacking = missing(roles)
    return f"its {' and '.join(sorted(lacking))} is missing" if lacking else "its parts belong to different algorithms"


def misshapen(shapes: Mapping[str, Shape]) -> str:
    """Return what is wrong with the sizes of a layer's tensors, as far as they are known; empty where nothing is."""
    known = {
        role: [None if size == -1 else size for size in shape] for role, shape in shapes.items() if shape is not None
    }
    for role, shape in known.items():
        lowest, most = DIMENSIONS.get(role, (0, 5))
        if not lowest <= len(shape) <= most or 0 in shape:
            return f"its {role} has the shape {shape}"
    for role in SINGLE & set(known):
        if math.prod(size or 1 for size in known[role]) != 1:
            return f"its {role} has the shape {known[role]}"
    return _unequal(known) or _unsquare(known) or _unlike_the_weight(known)


def _unequal(known: Known) -> str:
    """Name two factors that should share a side and do not."""
    for a, axis, b, other, core in INNER:
        if a not in known or b not in known or (core is not None) != (CORE.get(a) in known):
            continue
        pairs = [(a, known[a][axis], b, known[b][other])]
        if core is not None:
            middle = CORE[a]
            pairs = [(a, known[a][axis], middle, known[middle][0]), (b, known[b][other], middle, known[middle][1])]
        for one, left, two, right in pairs:
            if None not in (left, right) and left != right:
                return f"its {one} {known[one]} and {two} {known[two]} do not go together"
    up, down = known.get("up", []), known.get("down", [])
    if any(size not in (1, None) for size in (*up[2:], *(down[2:] if "mid" in known else ()))):
        return f"its down {down} and up {up} do not go together"
    return ""


def _unsquare(known: Known) -> str:
    """Name rotations that are none: blocks that are not square, triangles of no whole side."""
    for role in ("oft_blocks", "boft_R"):
        sides = known.get(role, [])[-2:]
        if None not in sides and len(set(sides)) > 1:
            return f"its {role} has the shape {known[role]}"
    length = known.get("oft_R", [None])[-1]
    if length is not None and math.isqrt(1 + 8 * length) ** 2 != 1 + 8 * length:
        return f"its oft_R has the shape {known['oft_R']}"
    return ""


def _unlike_the_weight(known: Known) -> str:
    """Name a factor for each row that has another number of them."""
    shape, rescale = shape_of(known), known.get("rescale")
    if not shape or not rescale or None in (shape[0], *rescale):
        return ""
    if math.prod(size or 1 for size in rescale) == shape[0]:
        return ""
    return f"its rescale {rescale} does not go with a weight of {shape[0]} rows"
