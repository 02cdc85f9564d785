"""Which family and dialect a file is, from its keys and shapes alone.

The promise: a key counts as known only when its prefix, module and suffix are all in the tables. The family is the one
that knows the most keys; shapes, then the header, break ties between families with equal names. What stays tied is
reported, never guessed.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..lora_core.adapter import Target
from ..lora_core.errors import NotALoRA, UnknownFormat
from .architectures import ARCHITECTURES, architecture
from .faults import Shape, faults
from .formats import FORMATS
from .keymap import SAME, Keymap, Place, Spelling, keymap, looks_like_layer

Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Match:
    """What a file's keys stand for."""

    architecture: str | None  # None: several families fit alike
    candidates: tuple[str, ...]
    format: str  # dialect id, or "mixed"
    formats: tuple[str, ...]
    places: Mapping[str, Place]  # key -> what it stands for
    unknown: tuple[str, ...] = ()  # keys that no table knows; carried through
    unplaced: tuple[str, ...] = ()  # those of them that belong to a layer: left out, the effect would be another
    faults: Mapping[str, str] = field(default_factory=dict)  # key that makes no whole layer -> what is wrong
    positions: Mapping[str, frozenset[str]] = field(default_factory=dict)  # classes counted by a positional file

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Return the keys that make no whole layer."""
        return tuple(self.faults)

    @property
    def layers(self) -> dict[Target, dict[str, str]]:
        """Return the keys of each layer: target -> role -> key."""
        layers: dict[Target, dict[str, str]] = defaultdict(dict)
        for key, place in self.places.items():
            layers[place.target][place.role] = key
        return dict(layers)


def detect(shapes: Shapes, metadata: Mapping[str, str] | None = None, file: str | Path | None = None) -> Match:
    """Return the family and dialect whose tables know a file's keys.

    Args:
        shapes: every key with its tensor's shape (None, or None or -1 inside, where unknown).
        metadata: the file's header.
        file: the file's name, for messages.

    Raises:
        UnknownFormat: no family knows any of the keys, or there are none.
        NotALoRA: the keys are those of a checkpoint or of a textual inversion.
    """
    metadata = metadata or {}
    name = Path(file).name if file else "adapter"
    if not shapes:
        raise UnknownFormat(
            f"{name}: holds no tensors, so there is no LoRA in it. Download or save it again", file=file
        )
    positions = _positions(metadata)
    found = {family.id: _places(keymap(family.id), shapes, positions) for family in ARCHITECTURES}
    most = max(len(places) for places in found.values())
    if most == 0:
        raise _stranger(shapes, file)
    candidates = _narrow([id for id, places in found.items() if len(places) == most], found, shapes, metadata)
    best = candidates[0]
    places = found[best]
    unknown = tuple(key for key in shapes if key not in places)
    owners = {key: owner[0] for key in unknown if (owner := keymap(best).owner(key))}
    unplaced = tuple(key for key in unknown if key in owners or looks_like_layer(key))
    if len(unplaced) > len(places):
        raise UnknownFormat.closest(file, _title(best, places), len(places), len(shapes), unplaced)
    formats = _formats({place.spelling for place in places.values()}, best)
    return Match(
        architecture=best if len(candidates) == 1 else None,
        candidates=tuple(candidates),
        format=formats[0] if len(formats) == 1 else "mixed",
        formats=formats,
        places=places,
        unknown=unknown,
        unplaced=unplaced,
        faults=faults(places, shapes, owners.values()),
        positions=positions,
    )


def shape_of(roles: Mapping[str, Shape]) -> list[int | None] | None:
    """Return the shape of the weight that a layer's tensors make, None in places that are not known."""
    dense = roles.get("diff") or roles.get("w_norm")
    if dense:
        return list(dense)
    down, up = roles.get("down"), roles.get("up")
    if not down or not up or len(down) < 2:
        return None
    kernel = roles.get("mid") or down
    return [size if size != -1 else None for size in (up[0], down[1], *kernel[2:])]


def agree(shape: Sequence[int | None], expected: tuple[int, ...] | None) -> bool:
    """Compare two shapes up to trailing 1x1 kernels and flattened ones; what is not known agrees with anything."""
    if expected is None or not shape:
        return True
    if len(shape) == 2 < len(expected) and shape[1] == math.prod(expected[1:]):
        return shape[0] in (None, expected[0])
    width = max(len(shape), len(expected))
    pairs = zip((*shape, *[1] * (width - len(shape))), (*expected, *[1] * (width - len(expected))), strict=True)
    return all(a is None or a == b for a, b in pairs)


def conflicts(map: Keymap, places: Mapping[str, Place], shapes: Shapes) -> list[Target]:
    """Return the layers whose shape is not that of the family's released model."""
    return [target for target, shape in _layer_shapes(places, shapes).items() if not agree(shape, map.shape(target))]


def _places(map: Keymap, keys: Iterable[str], positions: Mapping[str, frozenset[str]]) -> dict[str, Place]:
    return {key: place for key in keys if (place := map.place(key, positions)) is not None}


def _narrow(
    candidates: list[str], found: Mapping[str, Mapping[str, Place]], shapes: Shapes, metadata: Mapping[str, str]
) -> list[str]:
    """Keep the candidates that shapes, then kinds of module, then the header allow; a test that none passes is void."""
    tests: tuple[Callable[[str], bool], ...] = (
        lambda id: not conflicts(keymap(id), found[id], shapes),
        lambda id: not _other_kinds(keymap(id), found[id], shapes),
        lambda id: _named_in(metadata, id),
    )
    for test in tests:
        if len(candidates) > 1:
            candidates = [id for id in candidates if test(id)] or candidates
    return candidates


def _layer_shapes(places: Mapping[str, Place], shapes: Shapes) -> dict[Target, list[int | None]]:
    roles: dict[Target, dict[str, Shape]] = defaultdict(dict)
    for key, place in places.items():
        roles[place.target][place.role] = shapes[key]
    return {target: shape for target, parts in roles.items() if (shape := shape_of(parts)) is not None}


def _other_kinds(map: Keymap, places: Mapping[str, Place], shapes: Shapes) -> bool:
    """Tell whether a convolution's layer sits on a linear module, or a norm's on a matrix."""
    expected = {target: map.shape(target) for target in _layer_shapes(places, shapes)}
    return any(
        (wanted := expected[target]) is not None and len(shape) > len(wanted)
        for target, shape in _layer_shapes(places, shapes).items()
    )


def _named_in(metadata: Mapping[str, str], id: str) -> bool:
    hints = architecture(id).hints
    return any(metadata.get(key, "").startswith(beginnings) for key, beginnings in hints.items())


def _formats(spellings: set[Spelling], id: str) -> tuple[str, ...]:
    """Return the one dialect that explains all spellings, or else one for each."""
    explained = [_explaining(spelling) for spelling in spellings]
    common = [format.id for format in FORMATS if all(format.id in ids for ids in explained)]
    if common:
        return (common[0],)
    first = Counter(ids[0] for ids in explained if ids)
    return tuple(sorted(first))


def _explaining(spelling: Spelling) -> list[str]:
    return [
        format.id
        for format in FORMATS
        if spelling.prefixes in format.prefixes
        and spelling.naming in (*format.namings, SAME)
        and (not spelling.suffixes or spelling.suffixes in format.suffixes)
    ]


def _positions(metadata: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Read the class lists in a safeloras header, `{"unet": '["CrossAttention", "Attention"]'}`."""
    return {part: _classes(metadata[part]) for part in ("unet", "text_encoder") if part in metadata}


def _classes(text: str) -> frozenset[str]:
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(item for item in listed if isinstance(item, str)) if isinstance(listed, list) else frozenset()


def _title(id: str, places: Mapping[str, Place]) -> str:
    return f"{id}/{_formats({place.spelling for place in places.values()}, id)[0]}"


def _stranger(shapes: Shapes, file: str | Path | None) -> NotALoRA | UnknownFormat:
    """Say what a file without a single known key is."""
    name = Path(file).name if file else "adapter"
    keys = list(shapes)
    if _is_checkpoint(keys):
        what = f"holds a model's own weights ({len(keys)} tensors), not a LoRA. Load it as a checkpoint instead"
        return NotALoRA(f"{name}: {what}", file=file)
    if len(keys) <= 4 and all("." not in key and len(shapes[key] or ()) <= 2 for key in keys):
        listed = ", ".join(map(repr, keys))
        what = f"looks like a textual inversion (keys {listed}), not a LoRA. Load it as an embedding instead"
        return NotALoRA(f"{name}: {what}", file=file)
    return UnknownFormat.closest(file, None, 0, len(keys), keys)


def _is_checkpoint(keys: Sequence[str]) -> bool:
    """Tell whether most keys are a known module's own weight or bias, or, in a large file, an unknown model's."""
    maps = [keymap(family.id) for family in ARCHITECTURES]
    prefixes = tuple(
        f"{prefix}." for family in ARCHITECTURES for part in family.components for prefix in part.checkpoint
    )
    suffixes = {key: {owner[1] for map in maps if (owner := map.owner(key))} for key in keys}
    own = sum(key.startswith(prefixes) or bool(suffixes[key] & {"weight", "bias"}) for key in keys)
    plain = sum(key.endswith((".weight", ".bias")) and not looks_like_layer(key) for key in keys)
    foreign = any(found - {"weight", "bias"} for found in suffixes.values())
    return own > len(keys) / 2 or (len(keys) > 100 and plain > 0.9 * len(keys) and not foreign)
