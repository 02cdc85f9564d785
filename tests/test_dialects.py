"""Every family in every dialect of the grammar: made-up files whose every key is known and whose family is found."""

from __future__ import annotations

import re

import pytest

from lorasmith.convert.architectures import ARCHITECTURES, architecture
from lorasmith.convert.detect import detect
from lorasmith.convert.keymap import JOINERS, Keymap, keymap
from lorasmith.convert.model import Component

NUMBER = re.compile(r"\d+")
Shapes = dict[str, tuple[int, ...]]
UP_DOWN, A_B = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
NAMED, BARE = ("lora_A.default.weight", "lora_B.default.weight"), ("lora_A", "lora_B")
OLD = ("lora.down.weight", "lora.up.weight")
SUFFIXES = {  # family of prefixes -> how files with them end their keys
    "kohya": (UP_DOWN,),
    "onetrainer": (UP_DOWN,),
    "diffusers": (A_B, UP_DOWN, NAMED, OLD, BARE),  # with original names: OMI
    "peft": (A_B, NAMED, BARE),
    "comfy": (A_B, UP_DOWN, NAMED, OLD),
    "bare": (A_B, UP_DOWN, NAMED, BARE),
}


def kinds(map: Keymap, part: Component, naming: str) -> dict[str, tuple[int, ...]]:
    """Return of the matrices whose names differ in numbers alone the last, with its shape."""
    found = {}
    for name, target in map.targets(part.id, naming).items():
        shape = map.shape(target)
        if shape is not None and len(shape) > 1:
            found[NUMBER.sub("#", name)] = (name, shape)
    return dict(found.values())


def file(names: dict[str, tuple[int, ...]], beginning: str, joiner: str, ends: tuple[str, str]) -> Shapes:
    """Return the shapes of a LoRA of rank 4 on named modules."""
    shapes: Shapes = {}
    for name, (out, inner, *kernel) in names.items():
        stem = beginning + name.replace(".", joiner)
        shapes[f"{stem}.{ends[0]}"] = (4, inner, *kernel)
        shapes[f"{stem}.{ends[1]}"] = (out, 4, *[1] * len(kernel))
        if ends == UP_DOWN:
            shapes[f"{stem}.alpha"] = ()
    return shapes


def problem(shapes: Shapes, family: str, part: str) -> str:
    """Return what detection got wrong, or nothing."""
    match = detect(shapes)
    if match.unknown or match.faults:
        return f"of {len(shapes)} keys unknown {match.unknown[:2]}, at fault {list(match.faults.items())[:2]}"
    return "" if family in match.fits or part != "denoiser" else f"taken for {match.fits}"


@pytest.mark.parametrize("family", [family.id for family in ARCHITECTURES])
def test_every_dialect_of_a_family_is_known_and_fits_it(family: str) -> None:
    map, problems, files = keymap(family), {}, 0
    own = [naming.id for naming in architecture(family).namings if not naming.suffixes and not naming.spans]
    for part in architecture(family).components:
        for naming in ("original", "diffusers", *own):
            names = kinds(map, part, naming)
            for kind, ways in SUFFIXES.items() if names else ():
                joiner = JOINERS.get(kind, ".")
                for n, prefix in enumerate(part.prefixes.get(kind, ()) if kind != "peft" or naming not in own else ()):
                    for ends in ways if n == 0 and part.id == "denoiser" else ways[:1]:
                        shapes = file(names, f"{prefix}{joiner}" if prefix else "", joiner, ends)
                        files += 1
                        if wrong := problem(shapes, family, part.id):
                            problems[part.id, naming, kind, prefix, ends[0]] = wrong
    assert files > 10
    assert not problems
