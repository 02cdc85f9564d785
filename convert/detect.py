"""Which family and dialect a file is, from its keys and shapes alone.

The promise: a key counts as known only when its prefix, module and suffix are all in the tables. The family is the one
that knows the most keys; shapes, then the header, break ties between families with equal names. What stays tied is
reported, never guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from ..lora_core.adapter import Target
from ..lora_core.errors import NotALoRA, UnknownFormat
from .algorithms import Shape, shape_of
from .architectures import ARCHITECTURES, architecture
from .faults import faults
from .formats import FORMATS
from .keymap import SAME, Keymap, Place, Spelling, grouped, keymap, layout_of
from .model import Architecture
from .patterns import known_parameters, promising
from .suffixes import COMMON, looks_like_layer

Shapes = Mapping[str, Shape]
MODELS_OWN = ("norm-scale", "peft", "control")  # groups of suffixes that a model's own parameters have too
RIDER = re.compile(  # keys beside the layers': textual inversions, bundled or of the same training, and markers
    r"bundle_emb\..+|string_to_param\..+|<[^<>]+>|emb_params|clip_[lgh]|t5xxl|embeddings\.(embeddings|indices)"
    r"|lora_controlnet"
).fullmatch
POSITIONAL = ("unet", "text_encoder", "prior")  # header entries: which classes of a model's modules are numbered
NUMBERED = re.compile(r"\.\d+(?=\.)")  # of a module below a numbered block


@dataclass(frozen=True)
class Match:
    """What a file's keys stand for."""

    architecture: str | None  # None: several families fit alike
    candidates: tuple[str, ...]  # those that fit alike, or the one
    fits: tuple[str, ...]  # every family that knows the same keys and whose modules have these shapes
    format: str  # dialect id, or "mixed"
    formats: tuple[str, ...]
    places: Mapping[str, Place]  # key -> what it stands for
    riders: tuple[str, ...] = ()  # bundled embeddings and markers: known, but no layer's; carried through
    unknown: tuple[str, ...] = ()  # keys that no table knows; carried through
    unplaced: tuple[str, ...] = ()  # those of them that belong to a layer: left out, the effect would be another
    faults: Mapping[str, str] = field(default_factory=dict)  # key that makes no whole layer -> what is wrong
    positions: Mapping[str, frozenset[str]] = field(default_factory=dict)  # classes counted by a positional file

    @property
    def incomplete(self) -> tuple[str, ...]:
        """Return the keys that make no whole layer."""
        return tuple(self.faults)

    @cached_property
    def layers(self) -> dict[Target, dict[str, str]]:
        """Return the keys of each layer: target -> role -> key."""
        return grouped(self.places)


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
    found = _known(tuple(shapes), frozenset(positions.items()))
    if not found or all(map(_models_own, next(iter(found.values())).values())):
        raise _stranger(shapes, file)
    fits = tuple(id for id in found if not conflicts(keymap(id), found[id], shapes)) or tuple(found)
    candidates = _narrow(list(found), found, shapes, metadata)
    best = candidates[0]
    places = found[best]
    riders = tuple(key for key in shapes if key not in places and RIDER(key))
    unknown = tuple(key for key in shapes if key not in places and not RIDER(key))
    owners = {key: owner[0] for key in unknown if (owner := keymap(best).owner(key))}
    unplaced = tuple(key for key in unknown if key in owners or looks_like_layer(key))
    if len(unplaced) > len(places):
        raise UnknownFormat.closest(file, _title(best, places), len(places), len(shapes), unplaced)
    formats = _formats({place.spelling for place in places.values()}, best)
    return Match(
        architecture=best if len(candidates) == 1 else None,
        candidates=tuple(candidates),
        fits=fits if best in fits else (best, *fits),
        format=formats[0] if len(formats) == 1 else "mixed",
        formats=formats,
        places=places,
        riders=riders,
        unknown=unknown,
        unplaced=unplaced,
        faults=faults(places, shapes, owners.values()),
        positions=positions,
    )


def agree(shape: Sequence[int | None], expected: tuple[int, ...] | None) -> bool:
    """Compare two shapes up to trailing 1x1 kernels and flattened ones; what is not known agrees with anything."""
    if expected is None or not shape:
        return True
    if shape[-1] is None and len(shape) < len(expected):
        shape = [*shape, *[None] * (len(expected) - len(shape))]
    if len(shape) == 2 < len(expected) and shape[1] == math.prod(expected[1:]):
        return shape[0] in (None, expected[0])
    width = max(len(shape), len(expected))
    pairs = zip((*shape, *[1] * (width - len(shape))), (*expected, *[1] * (width - len(expected))), strict=True)
    return all(a is None or a == b for a, b in pairs)


def conflicts(map: Keymap, places: Mapping[str, Place], shapes: Shapes) -> list[Target]:
    """Return the layers whose shape is not that of the family's released model."""
    return [target for target, shape in _layer_shapes(places, shapes).items() if not agree(shape, map.shape(target))]


def _models_own(place: Place) -> bool:
    """Tell whether a key may as well be a model's own parameter."""
    return place.role in ("value", "value_b") and place.spelling.suffixes in MODELS_OWN


@lru_cache(maxsize=4)  # a result is read back under its source's keys, and files are merged that have the same
def _known(keys: tuple[str, ...], positions: frozenset[tuple[str, frozenset[str]]]) -> Mapping[str, dict[str, Place]]:
    """Return the families that know the most keys, and what they know; tables that cannot win are not built."""
    most, found, counted = 1, dict[str, dict[str, Place]](), dict(positions)
    for id, at_most in promising(keys):
        if at_most < most:
            break
        places = _placed(keymap(id), keys, counted, most)
        if len(places) > most:
            found.clear()
        if len(places) >= most:
            most = len(places)
            found[id] = places
    return found


def _placed(map: Keymap, keys: Sequence[str], positions: Mapping[str, frozenset[str]], least: int) -> dict[str, Place]:
    """Return what a family knows of the keys; less of it where that is fewer than `least` keys."""
    places: dict[str, Place] = {}
    for index, key in enumerate(keys):
        place = map.place(key, positions)
        if place is not None:
            places[key] = place
        elif len(places) + len(keys) - index <= least:
            break
    return places


def _narrow(
    candidates: list[str], found: Mapping[str, Mapping[str, Place]], shapes: Shapes, metadata: Mapping[str, str]
) -> list[str]:
    """Keep the candidates that are best by shapes, then kinds of module, then the header, then completeness."""
    tests: tuple[Callable[[str], float], ...] = (
        lambda id: len(conflicts(keymap(id), found[id], shapes)),
        lambda id: _other_kinds(keymap(id), found[id], shapes),
        lambda id: not _named_in(metadata, id),
        lambda id: _shallow(keymap(id), found[id]),
        lambda id: _absent_siblings(keymap(id), found[id]),
        lambda id: _unusual(keymap(id), found[id]),
        lambda id: not _whole(keymap(id), found[id]),
        lambda id: architecture(id).kin in candidates,
    )
    for test in tests:
        if len(candidates) > 1:
            scores = {id: test(id) for id in candidates}
            candidates = [id for id in candidates if scores[id] == min(scores.values())]
    return candidates


def _layer_shapes(places: Mapping[str, Place], shapes: Shapes) -> dict[Target, list[int | None]]:
    roles: dict[Target, dict[str, Shape]] = defaultdict(dict)
    for key, place in places.items():
        if not place.blocks:
            roles[place.target][place.role] = shapes[key]
    return {
        target: shape
        for target, parts in roles.items()
        if "reshape" not in parts and (shape := shape_of(parts)) is not None  # which widens the weight to its own
    }


def _other_kinds(map: Keymap, places: Mapping[str, Place], shapes: Shapes) -> bool:
    """Tell whether a convolution's layer sits on a linear module, or a norm's on a matrix."""
    expected = {target: map.shape(target) for target in _layer_shapes(places, shapes)}
    return any(
        (wanted := expected[target]) is not None and len(shape) > len(wanted)
        for target, shape in _layer_shapes(places, shapes).items()
    )


def _shallow(map: Keymap, places: Mapping[str, Place]) -> bool:
    """Tell whether the file leaves out, in some of the model's repeated blocks, a module that it has in others."""
    used = {(place.target.component, place.target.module) for place in places.values()}
    kinds = {(component, NUMBERED.sub(".#", module)) for component, module in used}
    return any(
        (component, module) not in used and (component, NUMBERED.sub(".#", module)) in kinds
        for component in {component for component, _ in used}
        for module in map.modules(component)
    )


def _absent_siblings(map: Keymap, places: Mapping[str, Place]) -> int:
    """Count the matrices that the file leaves out beside ones that it has, below the same module of its naming."""
    used: dict[tuple[str, str], set[str]] = defaultdict(set)  # by component and layout
    for place in places.values():
        layout = layout_of(map.family, place.spelling.naming)
        name = map.name(place.target, layout)
        if name is not None and "." in name:
            used[place.target.component, layout].add(name)
    return sum(
        name not in names and name.rpartition(".")[0] in parents and len(map.shape(target) or ()) > 1
        for (component, layout), names in used.items()
        for parents in [{name.rpartition(".")[0] for name in names}]
        for name, target in map.targets(component, layout).items()
    )


def _unusual(map: Keymap, places: Mapping[str, Place]) -> int:
    """Count the keys of kohya files that do not use the names in which the family's trainers write them."""
    family = map.family
    spellings = Counter(
        place.spelling
        for place in places.values()
        if place.spelling.prefix == "lora_unet" and place.target.component == "denoiser"
    )
    usual = (SAME, family.kohya_naming)
    return sum(
        n for spelling, n in spellings.items() if not {spelling.naming, layout_of(family, spelling.naming)} & set(usual)
    )


def _whole(map: Keymap, places: Mapping[str, Place]) -> bool:
    """Tell whether the file has every matrix in the repeated blocks that it touches."""
    used = {place.target.module for place in places.values() if place.target.component == "denoiser"}
    groups = {module.partition(".")[0] for module in used if NUMBERED.search(module)}
    matrices = (module for module, row in map.modules("denoiser").items() if len(row.shape) > 1)
    return bool(groups) and all(module in used for module in matrices if module.partition(".")[0] in groups)


def _named_in(metadata: Mapping[str, str], id: str) -> bool:
    hints = architecture(id).hints
    return any(metadata.get(key, "").startswith(beginnings) for key, beginnings in hints.items())


def _formats(spellings: set[Spelling], id: str) -> tuple[str, ...]:
    """Return the one dialect that explains all spellings, or else one for each."""
    explained = [_explaining(spelling, architecture(id)) for spelling in spellings]
    common = [format.id for format in FORMATS if all(format.id in ids for ids in explained)]
    if common:
        return (common[0],)
    first = Counter(ids[0] for ids in explained if ids)
    return tuple(sorted(first))


def _explaining(spelling: Spelling, family: Architecture) -> list[str]:
    layout = layout_of(family, spelling.naming)
    special = {naming for format in FORMATS for naming in format.namings}
    naming = spelling.naming if spelling.naming in special else layout
    return [
        format.id
        for format in FORMATS
        if spelling.prefixes in format.prefixes
        and (naming in format.namings or spelling.naming == SAME)
        and (spelling.suffixes == COMMON or spelling.suffixes in format.suffixes)
    ]


def _positions(metadata: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Read the class lists in a safeloras header, `{"unet": '["CrossAttention", "Attention"]'}`."""
    return {part: counted_classes(metadata[part]) for part in POSITIONAL if part in metadata}


def counted_classes(text: str) -> frozenset[str]:
    """Return the names in a header's list of classes, none where it is no such list."""
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
    if all(map(RIDER, keys)) or (
        len(keys) <= 4 and all("." not in key and len(shapes[key] or ()) <= 2 for key in keys)
    ):
        listed = ", ".join(map(repr, keys[:4]))
        what = f"looks like a textual inversion (keys {listed}), not a LoRA. Load it as an embedding instead"
        return NotALoRA(f"{name}: {what}", file=file)
    return UnknownFormat.closest(file, None, 0, len(keys), keys)


def _is_checkpoint(keys: Sequence[str]) -> bool:
    """Tell whether most keys are a known module's own weight or bias, or, in a large file, an unknown model's."""
    prefixes = tuple(
        f"{prefix}." for family in ARCHITECTURES for part in family.components for prefix in part.checkpoint
    )
    own = sum(key.startswith(prefixes) or known_parameters(key) for key in keys)
    plain = sum(key.endswith((".weight", ".bias")) and not looks_like_layer(key) for key in keys)
    return own > len(keys) / 2 or (len(keys) > 100 and plain > 0.9 * len(keys))
