"""Names of a family's blocks, generated from its table: `down.1.attentions.0`, `double.3`, `clip_l.5`, `img_in`.

A block is a member of a repeated list of modules, or a part of the model outside such lists. Every module lies in
exactly one. UNets go by Diffusers' names, other models by their original ones. Beside its name a block may have labels
of the block-weight world (`IN04`, `M00`, `D03`, `BASE`), and any beginning of names is a group: `down`, `clip_l`.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig
from ..lora_core.ops.scale import DENOISER
from .architectures import architecture
from .model import Component, Module, modules
from .regroup import family_of

TEXT_ENCODER = "text_encoder"  # the group of all components but the denoiser
EVERYTHING = ("all", "*")
SHORTHANDS = {"mid00": "m00", "te": TEXT_ENCODER, "unet": DENOISER}
WRAPPERS = ("text_model", "model", "encoder", "decoder", "bert")  # words that only hold the rest of a component
STAGES = {"down_blocks": ("down", 2), "mid_block": ("mid", 1), "up_blocks": ("up", 2)}  # short, numbers in a name
LISTS = {  # a list's path in the model -> its name here; other lists keep their path
    "double_blocks": "double",
    "double_layers": "double",
    "double_stream_blocks": "double",
    "single_blocks": "single",
    "single_layers": "single",
    "single_stream_blocks": "single",
    "single_transformer_blocks": "single",
    "joint_blocks": "joint",
    "transformer_blocks": "blocks",
    "visual_transformer_blocks": "visual",
    "text_transformer_blocks": "text",
    "token_refiner.blocks": "refiner",
    "txt_in.individual_token_refiner.blocks": "refiner",
    "context_embedder.token_refiner.refiner_blocks": "refiner",
}
DOUBLE = ("transformer_blocks", "single_transformer_blocks", "double")  # what the first is beside the second
UNET_LABELS = {"input_blocks": "IN{:02}", "middle_block": "M00", "output_blocks": "OUT{:02}"}  # by original name
LIST_LABELS = {  # by the list's name here
    **{"double": "D{:02}", "single": "S{:02}", "joint": "J{:02}"},
    **{"blocks": "B{:02}", "visual": "B{:02}", "layers": "L{:02}"},
}
GROUP_LABELS = {  # label -> groups of names
    "BASE": (TEXT_ENCODER,),
    "CLIP": ("clip_l", "clip_g", "clip_h"),
    "T5": ("t5xxl",),
    "IN": ("*_in",),
    "OUT": ("final_layer",),
}
SPAN = re.compile(r"(\d+)-(\d+)")
LABEL_SPAN = re.compile(r"([a-z]+\d+)\s*-\s*([a-z]+\d+)")


@dataclass(frozen=True)
class Block:
    """A named piece of a family, with its labels and its modules."""

    name: str
    aliases: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class _Place:
    """Where a module lies: its block, and what puts blocks in order."""

    name: str
    label: str
    order: tuple[Any, ...]


class Names:
    """All blocks of one family. Build it through `names_of(id)`, which keeps one per family."""

    def __init__(self, id: str):
        family = architecture(id)
        places = {
            Target(part.id, original): replace(place, order=(number, *place.order))
            for number, part in enumerate(family.components)
            for original, place in _places(part).items()
        }
        self.family = family.name
        self.name = {target: place.name for target, place in places.items()}
        self.labels = _labels(places)
        self.blocks = _blocks(places, self.labels)

    def of(self, target: Target) -> str:
        """Return the name of a target's block; of a module that the table lacks, its component."""
        return self.name.get(Target(target.component, target.module), target.component)

    def find(self, text: str) -> tuple[str, ...]:
        """Return the names of the blocks that a name, label, range or beginning of names stands for, in order.

        Raises BadConfig for one that stands for none.

        >>> names_of("sd15").find("IN04"), names_of("flux").find("double.0-1")
        (('down.1.resnets.0', 'down.1.attentions.0'), ('double.0', 'double.1'))
        """
        key = text.strip().lower()
        key = SHORTHANDS.get(key, key)
        label = self.labels.get(key.upper(), ())
        found = {*(self._grouped(key) or label or self._beginning(key) or self._labelled(key))}
        if not found:
            raise BadConfig(f"unknown block {text.strip()!r} in {self.family}: {self._nearest(key)}")
        return tuple(block.name for block in self.blocks if block.name in found)

    def _grouped(self, key: str) -> list[str]:
        if key not in (*EVERYTHING, DENOISER, TEXT_ENCODER):
            return []
        wanted = {DENOISER: (True,), TEXT_ENCODER: (False,)}.get(key, (True, False))
        return [name for target, name in self.name.items() if (target.component == DENOISER) in wanted]

    def _beginning(self, key: str) -> list[str]:
        return [block.name for block in self.blocks if _begins(block.name.lower().split("."), key.split("."))]

    def _labelled(self, key: str) -> list[str]:
        """Return the blocks of a range of labels, `IN04-OUT05`, or of all labels of one kind, `IN`."""
        span = LABEL_SPAN.fullmatch(key)
        order = list(self.labels)
        if span is None:
            chosen = [label for label in order if label[: len(key)].lower() == key and label[len(key) :].isdigit()]
        else:
            first, last = (order.index(end.upper()) if end.upper() in order else -1 for end in span.groups())
            chosen = order[first : last + 1] if min(first, last) >= 0 else []
        return [name for label in chosen for name in self.labels[label]]

    def _nearest(self, key: str) -> str:
        known = dict.fromkeys(
            (*(".".join(words) for block in self.blocks for words in _beginnings(block.name)), *self.labels, DENOISER)
        )
        spelled = {word.lower(): word for word in known}
        near = [spelled[word] for word in difflib.get_close_matches(key, spelled, 3, 0.5)]
        if near:
            return f"did you mean {' or '.join(near)}? 'blocks' lists them all"
        return "'blocks' lists the names"


@cache
def names_of(id: str) -> Names:
    """Return the block names of a family, built once."""
    return Names(id)


def blocks(id: str) -> tuple[Block, ...]:
    """Return a family's blocks in the order of the model, each with its labels and modules."""
    return names_of(id).blocks


def namer(adapter: Adapter) -> Callable[[Target], str]:
    """Return the function that names the block of an adapter's target."""
    return names_of(family_of(adapter)).of


def _places(part: Component) -> dict[str, _Place]:
    """Return the place of every module of a component, by original name."""
    found = list(modules(part))
    unet = any(module.diffusers[0].startswith("mid_block.") for module in found)
    twins = {} if unet else _twins(found)
    paths = {module.original: _path(module.diffusers[0] if unet else module.original) for module in found}
    lists = _lists(paths.values())
    own = part.id != DENOISER
    places: dict[str, _Place] = {}
    for original, path in paths.items():
        cut = next((end for end in range(1, len(path)) if path[:end] in lists and path[end].isdigit()), None)
        if path[0] in STAGES and any(word.isdigit() for word in path):
            places[original] = _staged(original, path)
        elif cut is None:
            name = f"{part.id}.{path[0]}" if own else path[0]
            places[original] = _Place(name, _unet_label(original), (0,))
        else:
            list_name = _short(twins.get(path[:cut], path[:cut]), lists)
            title = (part.id if len(lists) == 1 else f"{part.id}.{list_name}") if own else list_name
            label = "" if own else LIST_LABELS.get(list_name, "").format(int(path[cut]))
            rank = len(STAGES) + list(lists).index(path[:cut])
            places[original] = _Place(f"{title}.{path[cut]}", label, (1, rank, int(path[cut])))
    return places


def _staged(original: str, path: Sequence[str]) -> _Place:
    """Return the place of a module inside a UNet's stages."""
    short, numbers = STAGES[path[0]]
    end = [index for index, word in enumerate(path) if word.isdigit()][:numbers][-1]
    order = tuple((0, int(word)) if word.isdigit() else (1, word) for word in original.split("."))
    name = ".".join((short, *path[1 : end + 1]))
    return _Place(name, _unet_label(original), (1, list(STAGES).index(path[0]), order))


def _unet_label(original: str) -> str:
    words = original.split(".")
    return UNET_LABELS[words[0]].format(int(words[1])) if words[0] in UNET_LABELS else ""


def _path(name: str) -> tuple[str, ...]:
    words = name.split(".")
    while len(words) > 1 and words[0] in WRAPPERS:
        words.pop(0)
    return tuple(words)


def _lists(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Return the repeated lists among modules' paths: numbered, of two members or more that hold several modules."""
    members: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in paths:
        end = next((index for index, word in enumerate(path[:-1]) if word.isdigit()), None)
        if end:
            members[path[:end]][path[end]] += 1
    return {path: len(found) for path, found in members.items() if len(found) > 1 and max(found.values()) > 1}


def _twins(found: Sequence[Module]) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return, of lists that a table has under Diffusers' name too, the original ones: Diffusers' path -> original's."""
    pairs = {(_head(module.diffusers[0]), _head(module.original)) for module in found}
    return {theirs: ours for theirs, ours in pairs if theirs != ours and (theirs, theirs) in pairs and theirs and ours}


def _head(name: str) -> tuple[str, ...]:
    path = _path(name)
    return path[: next((index for index, word in enumerate(path[:-1]) if word.isdigit()), 0)]


def _short(path: tuple[str, ...], lists: Mapping[tuple[str, ...], int]) -> str:
    name = ".".join(path)
    first, beside, short = DOUBLE
    return short if name == first and (beside,) in lists else LISTS.get(name, name)


def _labels(places: Mapping[Target, _Place]) -> dict[str, tuple[str, ...]]:
    """Return label -> block names: of groups first, then of blocks in the order of the model."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for place in sorted(places.values(), key=lambda place: place.order):
        if place.label:
            found[place.label][place.name] = None
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for label, patterns in GROUP_LABELS.items():
        taken = any(other.startswith(label) for other in found)  # a UNet's IN and OUT are many
        for target, place in () if taken else places.items():
            if any(_in_group(target.component, place.name, pattern) for pattern in patterns):
                groups[label][place.name] = None
    return {label: tuple(names) for label, names in (*groups.items(), *found.items())}


def _in_group(component: str, name: str, pattern: str) -> bool:
    return component != DENOISER if pattern == TEXT_ENCODER else _begins(name.split("."), pattern.split("."))


def _blocks(places: Mapping[Target, _Place], labels: Mapping[str, Sequence[str]]) -> tuple[Block, ...]:
    targets: dict[str, list[Target]] = defaultdict(list)
    order: dict[str, tuple[Any, ...]] = {}
    for target, place in places.items():
        targets[place.name].append(target)
        order[place.name] = min(order.get(place.name, place.order), place.order)
    aliases: dict[str, list[str]] = defaultdict(list)
    for label, names in labels.items():
        for name in names:
            aliases[name].append(label)
    sequence = sorted(targets, key=lambda name: order[name])
    return tuple(Block(name, tuple(aliases[name]), tuple(targets[name])) for name in sequence)


def _begins(words: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a name begins as a pattern says; of its words each may be a range `0-9` or hold a `*`."""
    return len(pattern) <= len(words) and all(map(_fits, words, pattern))


def _fits(word: str, pattern: str) -> bool:
    span = SPAN.fullmatch(pattern)
    if span and word.isdigit():
        return int(span[1]) <= int(word) <= int(span[2])
    return fnmatch.fnmatchcase(word, pattern)


def _beginnings(name: str) -> list[list[str]]:
    words = name.split(".")
    return [words[: end + 1] for end in range(len(words))]
