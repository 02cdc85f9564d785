"""Every family in every dialect that is written: read back it is the same family, the same layers, the same effect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lorasmith import convert
from lorasmith.convert.architectures import ARCHITECTURES
from lorasmith.convert.formats import FORMATS
from lorasmith.convert.keymap import keymap, prefix_for
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import LoRA

NUMBER = re.compile(r"\d+")
DIALECTS = [format for format in FORMATS if format.writable and "lora" in format.kinds]


def sample(family: str) -> Adapter:
    """A LoRA on the last matrix of each kind (names that differ in numbers alone) of all components."""
    map, layers = keymap(family), {}
    for part in map.family.components:
        kinds = {NUMBER.sub("#", name): module for name, module in map.modules(part.id).items()}
        for module in kinds.values():
            if len(module.shape) > 1 and not module.original.endswith("modulation"):  # Wan's is a bare parameter
                out, inner, *kernel = module.shape
                down, up = torch.ones(2, inner, *kernel), torch.ones(out, 2, *[1] * len(kernel))
                layers[Target(part.id, module.original)] = LoRA(down, up, 1.0)
    return Adapter(family, layers)


@pytest.mark.parametrize("family", [family.id for family in ARCHITECTURES])
def test_every_dialect_that_has_a_word_for_a_family_is_read_back_as_it_was_written(family: str, tmp_path: Path) -> None:
    whole, tried = sample(family), 0
    parts = {part.id: part for part in keymap(family).family.components}
    for format in DIALECTS:
        kinds = (keymap(family).family.aitoolkit[0],) if format.prefixes == ("aitoolkit",) else format.prefixes
        able = {id for id, part in parts.items() if any(prefix_for(part, kind) is not None for kind in kinds)}
        if "denoiser" not in able:
            continue
        adapter = Adapter(family, {target: layer for target, layer in whole.layers.items() if target.component in able})
        name = format.id if format.id == "peft" else f"{format.id}.safetensors"  # PEFT's is a folder
        read = convert.read(convert.write(adapter, tmp_path / name, format.id))
        assert read.architecture == family, format.id
        assert {(at.component, at.module) for at in read.layers} == {(at.component, at.module) for at in adapter.layers}
        assert {float(layer.up.flatten()[0] * layer.scale) for layer in read.layers.values()} == {0.5}, format.id
        assert read.extras == {}
        tried += 1
    assert tried > 1
