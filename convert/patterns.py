"""A quick look at keys: which families can know how many of them at most, from names with their numbers left out.

Families' full key tables are built only where this look says that they may be the one.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache

from .architectures import ARCHITECTURES
from .formats import NAMINGS
from .model import RANGE, Architecture, Component, renamed
from .suffixes import MODULATION, readings

NUMBER = re.compile(r"\d+")


def promising(keys: Iterable[str]) -> list[tuple[str, int]]:
    """Return (family id, how many of the keys it may know at most), the most promising families first."""
    shapes: Counter[tuple[str, ...]] = Counter()
    positional = 0
    for key in keys:
        shapes[tuple(dict.fromkeys(_stems(key)))] += 1
        positional += key.count(":") == 2
    counts: Counter[str] = Counter()
    for stems, number in shapes.items():
        counts.update(dict.fromkeys({id for stem in stems for id in _families(stem)}, number))
    if positional:
        countable = [family.id for family in ARCHITECTURES if any(part.positional for part in family.components)]
        counts.update(dict.fromkeys(countable, positional))
    order = {family.id: index for index, family in enumerate(ARCHITECTURES)}
    return sorted(counts.items(), key=lambda item: (-item[1], order[item[0]]))


def known_parameters(key: str) -> bool:
    """Return whether a key names a known module's own weight or bias, as in a checkpoint."""
    stem, _, parameter = NUMBER.sub("#", key).rpartition(".")
    return parameter in ("weight", "bias") and bool(_families(stem))


def _stems(key: str) -> Iterator[str]:
    """Yield what may stand before the suffix of a key, its numbers left out."""
    for stem, suffix in readings(key):
        modulation = ".modulation" if suffix.role == MODULATION else ""
        yield NUMBER.sub("#", stem) + modulation


@lru_cache(maxsize=65536)
def _families(stem: str) -> frozenset[str]:
    flat = stem.replace(".", "_")
    known, prefixes = _tables()
    return frozenset().union(*(known.get(flat[len(prefix) :], ()) for prefix in prefixes if flat.startswith(prefix)))


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """Return (flattened name -> families, flattened prefixes of all families)."""
    known: dict[str, set[str]] = defaultdict(set)
    prefixes: set[str] = set()
    for family in ARCHITECTURES:
        for part in family.components:
            prefixes.update(_flat(text) + "_" if text else "" for texts in part.prefixes.values() for text in texts)
            for name in _names(part, family):
                known[_flat(name)].add(family.id)
    return dict(known), tuple(prefixes)


def _names(part: Component, family: Architecture) -> Iterator[str]:
    """Yield a component's names in every naming, ranges unexpanded."""
    for group in part.groups:
        for row in group.rows:
            original = f"{group.original}.{row.original}".strip(".")
            fused = (row.diffusers,) if isinstance(row.diffusers, str) else row.diffusers
            diffusers = [f"{group.diffusers}.{name}".strip(".") for name in fused]
            yield original
            yield from diffusers
            for naming in (*NAMINGS, *family.namings):
                for name in [original] if naming.of == "original" else diffusers:
                    if (changed := renamed(name, naming)) is not None:
                        yield changed[0]


def _flat(name: str) -> str:
    return NUMBER.sub("#", RANGE.sub("#", name)).replace(".", "_")
