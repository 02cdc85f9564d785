"""Strengths of blocks as people write them: `IN04=0.5, M00=1`, a preset's name, or a line of numbers. All become names.

A line of numbers has one for each label of a convention. Which convention is meant follows from the family and the
count; which block a number stands for, from the label, so that nothing shifts where a LoRA lacks a block.
Sources: sd-webui-lora-block-weight (12, 17, 20, 26 and 61 numbers and its presets, where labels that a shorter line
lacks count 0); ComfyUI's Inspire Pack (a number for the text encoders, then one for each block; presets of SDXL).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..lora_core.errors import BadConfig
from ..lora_core.ops.scale import check_strength
from .architectures import architecture
from .blocks import LIST_LABELS, names_of

SEPARATORS = re.compile(r"[,;]")
NUMBERS = 2  # so many numbers without a name make a line of numbers


@dataclass(frozen=True)
class Convention:
    """A line of numbers: what each stands for."""

    labels: tuple[str, ...]
    off: tuple[str, ...] = ()  # labels that count 0 where the line lacks them


@dataclass(frozen=True)
class Preset:
    """Strengths that have a name. Of two with one name that counts whose families fit."""

    name: str
    text: str
    last: str = ""  # the label with which the family's UNet ends; empty for every family


def _run(letters: str, first: int, last: int) -> tuple[str, ...]:
    return tuple(f"{letters}{number:02}" for number in range(first, last + 1))


UNET = ("BASE", *_run("IN", 0, 11), "M00", *_run("OUT", 0, 11))
SD_LORA = ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *_run("OUT", 3, 11))
SDXL = ("BASE", *_run("IN", 0, 8), "M00", *_run("OUT", 0, 8))
SDXL_LORA = ("BASE", "IN04", "IN05", "IN07", "IN08", "M00", *_run("OUT", 0, 5))
FLUX = ("CLIP", "T5", "IN", *_run("D", 0, 18), *_run("S", 0, 37), "OUT")
UNETS = {  # the label with which a UNet ends -> lines for it, the shortest first
    "OUT11": (Convention(SD_LORA, UNET), Convention(UNET)),
    "OUT08": (Convention(SDXL_LORA, SDXL), Convention(SDXL), Convention(UNET)),
}
PRESETS = (
    Preset("NONE", "all=0"),
    Preset("ALL", "all=1"),
    Preset("INS", "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0", "OUT11"),
    Preset("IND", "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0", "OUT11"),
    Preset("INALL", "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0", "OUT11"),
    Preset("MIDD", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", "OUT11"),
    Preset("OUTD", "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "OUT11"),
    Preset("OUTS", "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1", "OUT11"),
    Preset("OUTALL", "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1", "OUT11"),
    Preset("MIDALL", "IN=0,OUT=0", "OUT11"),
    Preset("INALL", "M00=0,OUT=0", "OUT08"),
    Preset("MIDALL", "IN=0,OUT=0", "OUT08"),
    Preset("OUTALL", "IN=0,M00=0", "OUT08"),
)


def conventions(id: str) -> tuple[Convention, ...]:
    """Return the lines of numbers that a family has, the shortest first; none where it has no numbered blocks."""
    known = names_of(id).labels
    unet = UNETS.get(_last(id), ())
    if unet:
        return unet
    kinds = {label.split("{")[0] for label in LIST_LABELS.values()}
    plain = tuple(label for label in known if label.rstrip("0123456789") in kinds)
    lines = (plain, ("BASE", *plain)) if plain else ()
    with_ends = (FLUX,) if set(FLUX) <= set(known) and set(plain) <= set(FLUX) else ()
    return tuple(Convention(labels) for labels in (*lines, *with_ends))


def presets(id: str) -> dict[str, str]:
    """Return the named presets of a family with their text."""
    return {preset.name: preset.text for preset in PRESETS if preset.last in ("", _last(id))}


def strengths(id: str, text: str) -> dict[str, float]:
    """Return the strength of each block that a text names, by the block's name, in the order of the model.

    Entries are parted by commas or lines, and a later one counts more than an earlier one. Each is `NAME=STRENGTH`, the
    name of a preset, or a whole line of numbers (`NAME:` before it, as in files of presets, is passed over). A name may
    be a block's, its label, a range `IN04-IN08` or `double.0-9`, a beginning such as `down`, or `all`. A block that no
    entry names keeps its strength; `#` begins a comment.
    Raises BadConfig for anything else.

    >>> strengths("sdxl", "IN04=0.5, down.1.resnets=1")
    {'down.1.resnets.0': 1.0, 'down.1.attentions.0': 0.5, 'down.1.resnets.1': 1.0}
    """
    found: dict[str, float] = {}
    for line in (line.split("#")[0].strip() for line in text.splitlines()):
        entries = [entry.strip() for entry in SEPARATORS.split(line) if entry.strip()]
        if len(entries) >= NUMBERS and "=" not in line and sum(_number(entry) is not None for entry in entries) > 1:
            found |= _read_line(id, line)
            continue
        for entry in entries:
            found |= _entry(id, entry)
    return {block.name: found[block.name] for block in names_of(id).blocks if block.name in found}


def chosen(id: str, text: str) -> frozenset[str]:
    """Return the names of the blocks that a text lists; raises BadConfig for an unknown one, or for strengths."""
    entries = [entry.strip() for entry in SEPARATORS.split(text.replace("\n", ",")) if entry.strip()]
    valued = next((entry for entry in entries if "=" in entry), None)
    if valued:
        raise BadConfig(f"{valued!r}: here blocks are chosen, not weighed; leave the strength out")
    return frozenset(name for entry in entries for name in names_of(id).find(entry))


def line(
    id: str, weights: Mapping[str, float], length: int | None = None, present: Collection[str] | None = None
) -> str:
    """Return strengths by name as a line of numbers: the inverse of `strengths`.

    Args:
        id: the family.
        weights: strength by block name; a block that is not in it has strength 1.
        length: of the line; without it the shortest of the family that says it all.
        present: the blocks that a LoRA has, where only these have to be said.

    Raises:
        BadConfig: the line cannot say it: blocks of one label have several strengths, or a block has no place in it.
    """
    lines = [one for one in conventions(id) if length in (None, len(one.labels))]
    if not lines:
        raise BadConfig(f"{_lengths(id)}, not {length}" if length else f"{_lengths(id)}; write NAME=STRENGTH")
    problem = ""
    for convention in lines:
        numbers, problem = _line(id, weights, convention, present)
        if not problem:
            return ",".join(f"{number:.6g}" for number in numbers)
    raise BadConfig(f"no line of {len(lines[-1].labels)} numbers can say it: {problem}; write NAME=STRENGTH")


def _line(
    id: str, weights: Mapping[str, float], convention: Convention, present: Collection[str] | None
) -> tuple[list[float], str]:
    """Return the numbers and, where they do not say it all, what is lost."""
    blocks = names_of(id)
    relevant = {block.name for block in blocks.blocks if present is None or block.name in present}
    read: dict[str, float] = dict.fromkeys(_all(blocks.labels, convention.off), 0.0)
    numbers = []
    for label in convention.labels:
        members = [name for name in blocks.labels.get(label, ()) if name in relevant]
        values = {weights.get(name, 1.0) for name in members}
        if len(values) > 1:
            return [], f"the blocks of {label} have several strengths"
        absent = {weights.get(name, 1.0) for name in blocks.labels.get(label, ())}  # whatever it says, it does nothing
        numbers.append(values.pop() if values else min(absent, default=0.0))
        read |= dict.fromkeys(members, numbers[-1])
    lost = [name for name in relevant if weights.get(name, 1.0) != read.get(name, 1.0)]
    return numbers, f"{min(lost)} has no place in it" if lost else ""


def _entry(id: str, entry: str) -> dict[str, float]:
    name, equals, value = entry.partition("=")
    known = presets(id)
    if not equals and name.upper() in known:
        return strengths(id, known[name.upper()])
    if not equals and _number(name) is not None:
        raise BadConfig(f"{_lengths(id)}, not 1; or write NAME={name}")
    found = names_of(id).find(name)
    number = _number(value)
    if number is None:
        named = f"has no strength, and is no preset ({', '.join(known)})"
        wrong = f"{value.strip()!r} is no strength" if equals else named
        raise BadConfig(f"block {name.strip()}: {wrong}; write {name.strip()}=0.5")
    check_strength(number)
    return dict.fromkeys(found, number)


def _read_line(id: str, line: str) -> dict[str, float]:
    entries = [entry.strip() for entry in line.rpartition(":")[2].split(",")]
    convention = next((one for one in conventions(id) if len(one.labels) == len(entries)), None)
    if convention is None:
        raise BadConfig(f"{_lengths(id)}, not {len(entries)}; or write NAME=STRENGTH, such as M00=0.5")
    labels = names_of(id).labels
    found = dict.fromkeys(_all(labels, convention.off), 0.0)
    for label, entry in zip(convention.labels, entries, strict=True):
        number = _number(entry)
        if number is None:
            raise BadConfig(f"{label}: {entry!r} is no strength; write a number, such as 0.5")
        check_strength(number)
        found |= dict.fromkeys(labels.get(label, ()), number)
    return found


def _all(labels: Mapping[str, Iterable[str]], wanted: Iterable[str]) -> list[str]:
    return [name for label in wanted for name in labels.get(label, ())]


def _last(id: str) -> str:
    return max((label for label in names_of(id).labels if re.fullmatch(r"OUT\d\d", label)), default="")


def _lengths(id: str) -> str:
    lengths = sorted(len(one.labels) for one in conventions(id))
    title = architecture(id).name
    if not lengths:
        return f"{title} has no line of numbers"
    return f"a line for {title} has {' or '.join(map(str, lengths))} numbers"


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
