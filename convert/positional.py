"""Files whose layers are numbered and not named: which module each number means, told by the sizes of all layers.

Three kinds are known. cloneofsimo's `lora.pt` is a bare list: up, down, up, down ... His safeloras count the layers of
each model (`unet:0:up`). Stability's trainer for Stable Cascade writes `weights.0.lora_up`. A trainer numbers layers as
it meets them walking through its model, so the order hangs on the model's code: here a numbering counts as known only
when the sizes of all layers, one after the other, are those of a model in one known order. What comes out is numbered
as safeloras are, in the order of the family's table (`Component.positional`).

Sources of the orders: cloneofsimo's lora_diffusion (`_find_modules`, `save_lora_weight`), Diffusers' and transformers'
modules, StableCascade's `modules/lora.py` (scale 1 / rank; a weight's own layer comes after its child's).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from torch import Tensor

from ..lora_core.adapter import Target
from ..lora_core.errors import UnknownFormat
from ..lora_core.store import Stored
from .algorithms import Shape, shape_of
from .architectures import ARCHITECTURES
from .detect import agree, counted_classes
from .keymap import Keymap, keymap, prefix_for
from .scales import DIFFUSERS_KEY

LISTED = re.compile(r"()(\d+)")  # number, all tensors counted
SAFELORAS = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
CASCADE = re.compile(r"(weights)\.(\d+)\.lora_(up|down)")
CLASSES = (  # what trainers walk through, by the names of the modules' classes
    frozenset({"CrossAttention", "Attention", "GEGLU"}),
    frozenset({"CrossAttention", "Attention"}),
    frozenset({"CrossAttention", "Attention", "GEGLU", "ResnetBlock2D"}),
    frozenset({"CLIPAttention"}),
    frozenset({"MultiheadAttention"}),
)
LAST = ".ff."  # the part of a transformer block that newer Diffusers have after both attentions

Layers = dict[int, dict[str, str]]  # number -> role -> key
Shapes = Sequence[Sequence[int | None]]  # of the layers' weights, lowest number first
Numbers = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Part:
    """The numbered layers of one model in a file."""

    prefix: str  # of the keys that come out; empty: whichever fits
    layers: Layers
    alpha: float | None = None  # of every layer; None: its rank


@dataclass(frozen=True)
class _Order:
    """One known order of a model's layers."""

    map: Keymap
    prefix: str
    classes: frozenset[str]
    targets: tuple[Target, ...]  # in the order that trainers met them
    numbers: Mapping[Target, int]  # in the order of the table


@dataclass(frozen=True)
class _Numbering:
    """What a part's layers mean, lowest number first: the numbers of the modules they change in the table's order."""

    prefix: str
    classes: frozenset[str]
    numbers: Numbers


def numbered(keys: Iterable[str]) -> bool:
    """Return whether a file's layers are numbered and not named."""
    return bool(_parts(list(keys)))


def named(stored: Stored, file: str | Path | None = None) -> Stored:
    """Return a file's tensors with every numbered layer under the number of its place in the family's table.

    A file without such layers is returned as it is. Of a layer that covers several modules (Stable Cascade's query, key
    and value) each gets its rows of `up`.

    Raises:
        UnknownFormat: the sizes of the layers fit no known order, or several.
    """
    parts = _parts(list(stored.tensors))
    if not parts:
        return stored
    tensors, metadata = dict(stored.tensors), dict(stored.metadata)
    for part in parts:
        shapes = _shapes(part, stored.tensors, file)
        if shapes is None:
            continue  # a layer lacks a half: detection names it
        numbering = _numbering(part, shapes, stored.metadata, file)
        for keys in part.layers.values():
            for key in keys.values():
                del tensors[key]
        tensors.update(_renumbered(part, numbering, stored.tensors))
        metadata.update(_header(part, numbering, stored.tensors))
    return Stored(tensors, metadata)


def _parts(keys: Sequence[str]) -> list[_Part]:
    """Return the numbered layers by model."""
    if len(keys) > 1 and all(LISTED.fullmatch(key) for key in keys):
        pairs: Layers = {}
        for key in keys:
            pairs.setdefault(int(key) // 2, {})["down" if int(key) % 2 else "up"] = key
        return [_Part("", pairs)]
    found: dict[str, Layers] = {}
    for key in keys:
        if match := SAFELORAS.fullmatch(key) or CASCADE.fullmatch(key):
            model, number, role = match.groups()
            found.setdefault(model, {}).setdefault(int(number), {})[role] = key
    return [
        _Part("prior", layers, alpha=1.0) if model == "weights" else _Part(model, layers)
        for model, layers in found.items()
    ]


def _shapes(part: _Part, tensors: Mapping[str, Tensor], file: str | Path | None) -> Shapes | None:
    """Return the shape of the weight that each layer changes, in order; None where a safeloras layer lacks a half.

    Raises:
        UnknownFormat: the tensors are not the ups and downs of layers.
    """
    safeloras = part.prefix in ("unet", "text_encoder")
    if not safeloras and not _gapless(part):
        raise _refusal(file, part, "do not count from 0 on without a gap")
    found: list[Sequence[int | None]] = []
    for _, keys in sorted(part.layers.items()):
        roles: dict[str, Shape] = {role: tuple(tensors[key].shape) for role, key in keys.items()}
        shape = shape_of(roles) if set(roles) == {"up", "down"} else None
        if shape is None or not _pair(roles):
            if safeloras:
                return None
            raise _refusal(file, part, "are not all pairs of an up and a down")
        found.append(shape)
    return found


def _gapless(part: _Part) -> bool:
    return set(part.layers) == set(range(len(part.layers)))


def _pair(roles: Mapping[str, Shape]) -> bool:
    up, down = roles["up"] or (), roles["down"] or ()
    return len(up) >= 2 and len(down) >= 2 and up[1] == down[0]


def _numbering(part: _Part, shapes: Shapes, metadata: Mapping[str, str], file: str | Path | None) -> _Numbering:
    found = {
        _Numbering(order.prefix, order.classes, numbers)
        for order in _orders(part.prefix, counted_classes(metadata.get(part.prefix, "")))
        if (numbers := (_walked if _gapless(part) else _in_place)(part, shapes, order)) is not None
    }
    if not found:
        raise _refusal(file, part, "have the sizes of no model's layers in a known order")
    if len(found) > 1:
        raise _refusal(file, part, "fit several models' layers alike")
    return found.pop()


def _orders(prefix: str, given: frozenset[str]) -> Iterator[_Order]:
    """Yield the known orders: the table's, and that of newer Diffusers.

    Args:
        prefix: only of models with this prefix; empty: of all.
        given: the classes that the header names; empty: it names none.
    """
    renamed = (given, given | {"CrossAttention"}) if "Attention" in given else (given,)  # one class under two names
    for family in ARCHITECTURES:
        for part in family.components:
            own = prefix_for(part, "positional")
            if own is None or prefix not in ("", own):
                continue
            map, seen = keymap(family.id), set[tuple[Target, ...]]()
            for classes in renamed if given else CLASSES:
                targets = map.counted(part.id, classes)
                numbers = {target: number for number, target in enumerate(targets)}
                for walk in (targets, _feed_forward_last(targets)):
                    if walk and walk not in seen:
                        seen.add(walk)
                        yield _Order(map, own, classes, walk, numbers)


def _feed_forward_last(targets: Sequence[Target]) -> tuple[Target, ...]:
    blocks = groupby(targets, key=lambda target: target.module.partition(".transformer_blocks.")[0])
    return tuple(target for _, run in blocks for target in sorted(run, key=lambda target: LAST in target.module))


def _walked(part: _Part, shapes: Shapes, order: _Order) -> Numbers | None:
    """Return for each layer the numbers of its modules, or None when sizes or count differ anywhere."""
    rest = iter(order.targets)
    found: list[tuple[int, ...]] = []
    for height, *others in shapes:
        covered: list[int] = []
        while (height or 0) > 0:
            target = next(rest, None)
            wanted = order.map.shape(target) if target else None
            if target is None or wanted is None or not agree((wanted[0], *others), wanted):
                return None
            height = (height or 0) - wanted[0]
            covered.append(order.numbers[target])
        if height != 0:
            return None
        found.append(tuple(covered))
    return tuple(found) if next(rest, None) is None else None


def _in_place(part: _Part, shapes: Shapes, order: _Order) -> Numbers | None:
    """Return the numbers as they are, as of a file from which layers were taken out, or None where a size differs."""
    if order.targets != tuple(order.numbers) or max(part.layers) >= len(order.targets):
        return None
    numbers = sorted(part.layers)
    wanted = (order.map.shape(order.targets[number]) for number in numbers)
    fits = all(agree(shape, expected) for shape, expected in zip(shapes, wanted, strict=True))
    return tuple((number,) for number in numbers) if fits else None


def _renumbered(part: _Part, numbering: _Numbering, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for number, covered in zip(sorted(part.layers), numbering.numbers, strict=True):
        up, down = (tensors[part.layers[number][role]] for role in ("up", "down"))
        for place, rows in zip(covered, up.chunk(len(covered)), strict=True):
            found[f"{numbering.prefix}:{place}:up"] = rows
            found[f"{numbering.prefix}:{place}:down"] = down
    return found


def _header(part: _Part, numbering: _Numbering, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return what the header says of numbered layers: the classes counted, each layer's rank, and the scale."""
    ranks = {
        f"{numbering.prefix}:{place}:rank": str(tensors[part.layers[number]["down"]].shape[0])
        for number, covered in zip(sorted(part.layers), numbering.numbers, strict=True)
        for place in covered
    }
    scale = {} if part.alpha is None else {DIFFUSERS_KEY: json.dumps({f"{numbering.prefix}.lora_alpha": part.alpha})}
    return {numbering.prefix: json.dumps(sorted(numbering.classes)), **ranks, **scale}


def _refusal(file: str | Path | None, part: _Part, what: str) -> UnknownFormat:
    name = Path(file).name if file else "adapter"
    return UnknownFormat(
        f"{name}: its {len(part.layers)} layers have numbers instead of names, and {what}. "
        f"Save it with names in the program that trained it",
        file=file,
    )
