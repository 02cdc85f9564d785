"""What the tables say of hosts against what the hosts were measured to do, dump by dump and name by name.

`measure_comfyui.py` and `measure_diffusers.py` measure again.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from dumps import NAMES, dump

from lorasmith.convert.architectures import ARCHITECTURES, architecture
from lorasmith.convert.detect import detect
from lorasmith.convert.host_comfyui import COMFYUI
from lorasmith.convert.host_looks import seen
from lorasmith.convert.host_model import Look
from lorasmith.convert.hosts import HOSTS, verdicts
from lorasmith.convert.keymap import keymap

HERE = Path(__file__).parent
MEASURED = json.loads((HERE / "host_verdicts.json").read_text())
KNOWN = json.loads(gzip.decompress((HERE / "host_names.json.gz").read_bytes()))["names"]
NUMBER = re.compile(r"\d+")
DISAGREE = {  # dump and host -> why the tables say otherwise
    (
        "excerpt_comfy5655_sdxl_kohya",
        "diffusers",
    ): "an excerpt with two attention layers of a text encoder: Diffusers goes by keys that every whole file has",
}
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_unet_{ATTENTION.replace('.', '_')}"
ORIGINAL = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
LORA = {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4), "alpha": ()}
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def loads(found: dict[str, Any]) -> bool:
    """Whether every layer took effect."""
    if "verdict" in found:
        return found["verdict"] == "full"
    return "refusal" not in found and found["read"] == found["layers"]


@lru_cache(maxsize=2)
def said(name: str) -> dict[str, dict[str, Any]]:
    content = dump(name)
    return verdicts(detect(content.keys, content.metadata), content.keys, content.metadata)


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_what_was_measured(name):
    for host in HOSTS:
        found = MEASURED[host.id]["dumps"].get(name)
        if found is not None:
            agrees = said(name)[host.id]["loads"] == loads(found)
            assert agrees != ((name, host.id) in DISAGREE), (host.id, found, said(name)[host.id])


@pytest.mark.parametrize("name", sorted(MEASURED["comfyui"]["dumps"]))
def test_comfyui_reads_as_many_layers_as_the_facts_say(name):
    content, found = dump(name), MEASURED["comfyui"]["dumps"][name]
    match = detect(content.keys, content.metadata)
    looks = seen(content.family, match, content.keys, content.metadata, {}).looks
    assert sum(COMFYUI.fact(look).reads for look in looks.values()) == found["read"]


def test_what_was_measured_is_there():
    assert set(MEASURED["comfyui"]["dumps"]) == set(MEASURED["diffusers"]["dumps"]) <= set(NAMES)
    assert len(MEASURED["comfyui"]["dumps"]) >= 191 and set(KNOWN) <= {family.id for family in ARCHITECTURES}
    assert all(set(entry) == {"host", "version", "how", "dumps"} for entry in MEASURED.values())


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_comfyui_knows_the_names_that_the_facts_say(family):
    rows = KNOWN[family]
    for row, kind, look in named(family):
        missing = ["*"] if rows is None else rows[row]
        known = missing != ["*"] and kind not in missing
        assert COMFYUI.fact(look).reads == known, (row, kind)


def named(family: str) -> Iterator[tuple[str, str, Look]]:
    """Yield one module of each kind under every prefix and naming: its row in what was measured, its kind, its look."""
    map, done = keymap(family), set()
    for spelling in map.spellings:
        for part in architecture(family).components:
            if spelling.joiner == ":" or spelling.prefix not in part.prefixes.get(spelling.prefixes, ()):
                continue
            for naming in ("original", "diffusers", *map.namings):
                for name in {NUMBER.sub("#", name): name for name in map.targets(part.id, naming)}.values():
                    stem = f"{spelling.prefix}{spelling.joiner}" * bool(spelling.prefix)
                    place = map.place(f"{stem}{name.replace('.', spelling.joiner)}.lora_down.weight")
                    if place is None or place.blocks:
                        continue
                    target = place.target
                    row = f"{target.component} {place.spelling.prefix} {place.spelling.naming}"
                    kind = NUMBER.sub("#", map.name(target, "diffusers") or target.module)
                    if (row, kind) not in done:
                        done.add((row, kind))
                        module = map.module(target)
                        blocks = slice(None) if target.block is None else slice(target.block, target.block + 1)
                        names = (target.module, *module.diffusers[blocks])
                        yield row, kind, Look(family, target.component, names, place.spelling, frozenset({"lora"}))


def layer(stem: str, parts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{suffix}": shape for suffix, shape in parts.items()}


TUCKER = {"lokr_w1": (4, 4), "lokr_w2_a": (2, 80), "lokr_w2_b": (2, 80), "lokr_t2": (2, 2, 3, 3)}
OFT = {"oft_blocks": (32, 10, 10), "alpha": ()}
WRONG = [  # a file's keys, a host, whether it loads, words of why
    (layer(KOHYA, {**LORA, "dora_scale": (320, 1)}), "comfyui", True, ", but not as trained"),
    (layer(KOHYA, {**LORA, "dora_scale": (320, 1)}), "forge", True, ", but not as trained"),
    (layer(KOHYA, {**LORA, "dora_scale": (320, 1)}), "a1111", True, ", but not as trained"),
    (layer(KOHYA, {**LORA, "dora_scale": (1, 320)}), "comfyui", True, "reads all 1 layers"),
    (layer(KOHYA, {**LORA, "dora_scale": (1, 320)}), "diffusers", True, ", but as if it were a plain LoRA"),
    (layer(KOHYA, {**OFT, "rescale": (320, 1)}), "comfyui", True, ", but not as trained: it leaves out OFT's rescale"),
    (layer(KOHYA, OFT), "comfyui", True, ", but not as trained: it takes OFT's constraint"),
    (layer(KOHYA, OFT), "a1111", True, "reads all 1 layers"),
    (layer(KOHYA, OFT), "diffusers", False, "it loads no layers but LoRA's"),
    (layer(CONV, TUCKER), "comfyui", False, "lokr_t2"),
    (layer(CONV, TUCKER), "a1111", True, "reads all 1 layers"),
    (
        layer(KOHYA, {**LORA, "scalar": ()}),
        "comfyui",
        True,
        ", but at the wrong strength: it ignores the layers' scalar",
    ),
    (
        layer(ORIGINAL, {"lora_A.weight": (4, 320), "lora_B.weight": (320, 4), "lora_magnitude_vector": (320,)}),
        "comfyui",
        True,
        ", but as if it were a plain LoRA: it drops DoRA's lora_magnitude_vector",
    ),
    (
        layer(f"unet.{ATTENTION}", {"lora_A.weight": (4, 320), "lora_B.weight": (320, 4), "lora_B.bias": (320,)}),
        "diffusers",
        True,
        "reads all 1 layers",
    ),
    (
        layer(ORIGINAL, {"lora_A.weight": (4, 320), "lora_B.weight": (320, 4), "lora_B.bias": (320,)}),
        "comfyui",
        False,
        "reads 1 of 1 layers only in part",
    ),
    (
        layer("transformer.transformer_blocks.0.attn.to_q", {"lora_A.weight": (4, 3072), "lora_B.weight": (3072, 4)}),
        "a1111",
        False,
        "it has no model of this family",
    ),
]


@pytest.mark.parametrize(("keys", "host", "full", "words"), WRONG)
def test_wrong_numbers_and_parts_left_out_are_said(keys, host, full, words):
    alphas = {key: 0.5 for key in keys if key.endswith("alpha")}
    verdict = verdicts(detect(keys), keys, {}, alphas)[host]
    assert verdict["loads"] == full and words in verdict["why"], verdict


def test_families_that_fit_alike_are_judged_apart():
    verdict = said("diffusers_flux_dreambooth")["forge"]
    assert verdict["loads"] and "but only as flux: as chroma it refuses the file" in verdict["why"]
