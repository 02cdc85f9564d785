"""Measures which layers of each key dump ComfyUI reads: its own model classes, without weights, and its own loader.

COMFYUI_PATH=... python tests/measure_comfyui.py [DUMP ...], with ComfyUI's interpreter. With names of dumps it only
shows what it finds; without, it records it, and beside it which names of each family's modules ComfyUI knows.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HOST = Path(os.environ.get("COMFYUI_PATH") or "~/ComfyUI").expanduser().resolve()
TESTS = Path(__file__).resolve().parent
ARGUMENTS = sys.argv[1:]
sys.argv = [sys.argv[0], "--cpu"]
sys.path[:0] = [str(HOST), str(TESTS), str(TESTS / "host_comfy/stubs")]

import measuring  # noqa: E402
import sitecustomize  # noqa: E402, F401 - stands in for packages that a CPU does not need

measuring.alias_root()

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import torch  # noqa: E402
from comfyui_version import __version__  # noqa: E402

from lorasmith.convert.architectures import ARCHITECTURES, architecture  # noqa: E402
from lorasmith.convert.keymap import keymap  # noqa: E402

NAMES = TESTS / "host_names.json.gz"
HOW_NAMES = "the names in the maps that comfy.lora makes of its model classes"
HOW = "its model classes on the meta device, comfy.lora.load_lora on the dump's keys"
NUMBER = re.compile(r"\d+")
NOT_LOADED = "lora key not loaded: "
DUMPS = {  # family -> its parameters in the layout that ComfyUI loads, where there is a dump of all of them
    "flux": "flux-dev.bfl",
    **{family: f"{family}.bfl" for family in ("flux2-dev", "flux2-klein4b", "flux2-klein9b", "chroma")},
    **{family: f"{family}.ldm.unet" for family in ("sd15", "sd21", "sdxl", "sdxl-refiner")},
    **{family: f"{family}.mmdit" for family in ("sd3-medium", "sd35-medium", "sd35-large")},
    **{family: f"{family}.wan" for family in ("wan21-14b-t2v", "wan21-14b-i2v", "wan21-1.3b-t2v")},
    **{family: f"{family}.comfy" for family in ("qwen-image", "ltx2", "auraflow", "hunyuandit", "kandinsky5")},
    "wan22-5b": "wan22-5b-ti2v.wan",
    "omnigen2": "omnigen2.comfy",
    "hidream": "hidream-i1.comfy",
    "ltx-video": "ltx-video-2b.comfy",
    "z-image": "z-image.lumina",
    "lumina2": "lumina2.lumina",
    "anima": "anima.cosmos",
    "cosmos-predict2": "cosmos-predict2-2b.nvidia",
    "mochi": "mochi.genmo",
    "stable-cascade-c": "stable-cascade-c.sai",
}
ALONE = {  # parameters outside the tables by which ComfyUI recognises a family that has no dump
    "ace-step": {
        "encoder.lyric_encoder.layers.0.input_layernorm.weight": (2048,),
        "encoder.lyric_encoder.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "encoder.lyric_encoder.layers.0.mlp.gate_proj.weight": (6144, 2048),
    },
    "krea2": {"txtfusion.layerwise_blocks.0.prenorm.scale": (2560,)},
    "minimax-h3": {"rope.inv_freq": (16,)},
    "ovis-image": {"double_blocks.0.img_mlp.gate_proj.weight": (12288, 3072)},
    "skyreels-v2": {"head.modulation": (1, 2, 2048)},
}
PIXART = {  # its recognition reads a value
    **{"image_model": "pixart_sigma", "patch_size": 2, "hidden_size": 1152, "in_channels": 4, "depth": 28},
    **{"model_max_length": 300, "num_heads": 16, "micro_condition": False, "input_size": 128},
}
COMPUTING = ("pixart-sigma", "ace-step")  # their classes compute while they are made
SD3 = ("clip_l", "clip_g", "t5xxl")
TEXT_ENCODERS = {  # those that are built from their weights alone, or loaded beside the model
    **dict.fromkeys(("sd3-medium", "sd35-medium", "sd35-large"), SD3),
    "ovis-image": ("qwen3_2b",),
}
ABSENT = ("encoder.embed_tokens",)  # in T5 it is the shared one
STRANGERS = ("bria-fibo", "sana", "sdxl-controlnet", "qwen-image21", "framepack")  # taken for another family's model


class Unread(logging.Handler):
    """Collects the keys that the loader says it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a key."""
        if record.getMessage().startswith(NOT_LOADED):
            self.keys.append(record.getMessage()[len(NOT_LOADED) :])


def model_of(family: str) -> Any:
    """Return ComfyUI's model of a family on the meta device, or None where it has none."""
    if family in STRANGERS:
        return None
    if family == "pixart-sigma":
        config = supported.PixArtSigma(dict(PIXART))
    else:
        config = comfy.model_detection.model_config_from_unet(weights(family), "")
    if config is None:
        return None
    config.set_inference_dtype(torch.float16, None)
    with torch.device("cpu" if family in COMPUTING else "meta"):
        return config.get_model({}, "", device=None if family in COMPUTING else "meta")


def weights(family: str) -> dict[str, torch.Tensor]:
    """Return a family's weights on the meta device, in the original layout."""
    shapes = measuring.parameters(DUMPS.get(family, ""))
    for module in () if shapes else keymap(family).modules("denoiser").values():
        shapes[f"{module.original}.weight"] = module.shape
        shapes[f"{module.original}.bias"] = module.shape[:1]
    shapes.update(ALONE.get(family, {}))
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def text_encoders(family: str, config: Any) -> Any:
    """Return something with the names of the text encoders' weights, as ComfyUI's class has them."""
    names: list[str] = []
    try:
        target = None if family in TEXT_ENCODERS else config.clip_target({})
        with torch.device("meta"):
            names = list(
                target.clip(device="meta", dtype=torch.float16, model_options={}, **target.params).state_dict()
            )
    except (AttributeError, TypeError, KeyError, NameError):
        pass  # it wants the weights: the names are then those of the tables
    if not names:
        for part in architecture(family).components:
            prefix = next(iter(part.prefixes.get("comfy", ())), "")
            if prefix.startswith("text_encoders.") and part.id in TEXT_ENCODERS.get(family, (part.id,)):
                stem = prefix.removeprefix("text_encoders.")
                names += [
                    f"{stem}.{module}.weight" for module in keymap(family).modules(part.id) if module not in ABSENT
                ]
    return SimpleNamespace(state_dict=lambda: dict.fromkeys(names))


def names_of(family: str) -> dict[str, Any] | None:
    """Return every name that ComfyUI knows of a family's layers: name -> its weight; None where it has no model."""
    model = model_of(family)
    if model is None:
        return None
    known = comfy.lora.model_lora_keys_unet(model, {})
    return comfy.lora.model_lora_keys_clip(text_encoders(family, model.model_config), known)


def names_or_none(family: str) -> dict[str, Any] | None:
    """Return the same, and None too where it takes the family for another one and fails."""
    try:
        return names_of(family)
    except (ValueError, RuntimeError):
        return None


def measure(content: Mapping[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what ComfyUI does with a dump."""
    wanted = measuring.layers(content)
    nothing = dict.fromkeys(wanted, False)
    if known is None:
        return measuring.finding(nothing, refusal="no model of this family")
    unread = Unread()
    logging.getLogger().addHandler(unread)
    try:
        patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(measuring.file(content)), known)
    except Exception as error:  # noqa: BLE001 - whatever stops the host is a finding
        return measuring.finding(nothing, refusal=f"{type(error).__name__}: {error}"[:200])
    finally:
        logging.getLogger().removeHandler(unread)
    patched = {_patched(key) for key in patches}
    read = {target: not patched.isdisjoint(_places(content["family"], target)) for target in wanted}
    roles = {key: role for parts in wanted.values() for role, key in parts.items()}
    left = [roles.get(key, roles.get(key.removeprefix("diffusion_model."), "?")) for key in unread.keys]
    return measuring.finding(read, left)


def _patched(key: Any) -> tuple[str, int]:
    if isinstance(key, str):
        return key, -1
    return key[0], key[1][1] if key[1] else -1


def _places(family: str, target: Any) -> set[tuple[str, int]]:
    """Return where a layer may take effect: the parameter's name, and the row at which its block begins (-1: whole)."""
    part = architecture(family).component(target.component)
    prefix = next(iter(part.prefixes.get("comfy", ())), "").removeprefix("text_encoders.")
    module = keymap(family).module(target)
    start = -1 if target.block is None else sum(module.blocks[: target.block])
    stem = f"{prefix}.{target.module}"
    return {(f"{stem}.{target.parameter}", start), (stem, start), (f"{stem}.scale", start)}


def rows(family: str, known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return, for each prefix and naming of a family, the kinds of modules whose names ComfyUI does not know.

    The keys are "component prefix naming"; a kind is a module's Diffusers name with `#` for its numbers, or its
    original name where it has no such one. Where all are missing, the list is ["*"].
    """
    map = keymap(family)
    taken: dict[str, Counter[str]] = defaultdict(Counter)
    missing: dict[str, Counter[str]] = defaultdict(Counter)
    for spelling in map.spellings:
        for part in architecture(family).components:
            if spelling.joiner == ":" or spelling.prefix not in part.prefixes.get(spelling.prefixes, ()):
                continue
            for naming in ("original", "diffusers", *map.namings):
                for name in map.targets(part.id, naming):
                    stem = f"{spelling.prefix}{spelling.joiner}" * bool(spelling.prefix)
                    stem += name.replace(".", spelling.joiner)
                    place = map.place(f"{stem}.lora_down.weight")
                    if place is None:
                        continue
                    row = f"{place.target.component} {place.spelling.prefix} {place.spelling.naming}"
                    kind = NUMBER.sub("#", map.name(place.target, "diffusers") or place.target.module)
                    right = stem in known and _patched(known[stem]) in _places(family, place.target)
                    (taken if right else missing)[row][kind] += 1
    both = {row: set(taken[row]) & set(missing[row]) for row in missing}
    mixed = {row: kinds for row, kinds in both.items() if kinds}
    if mixed:
        raise SystemExit(f"{family}: ComfyUI knows some modules of a kind: {mixed}")
    return {
        row: sorted(missing[row]) if taken[row] else ["*"] if missing[row] else [] for row in sorted({*taken, *missing})
    }


def main() -> None:
    """Measure and write."""
    logging.getLogger().setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)
    known: dict[str, dict[str, Any] | None] = {}
    found = {}
    for name, content in measuring.dumps():
        if ARGUMENTS and name not in ARGUMENTS:
            continue
        family = content["family"]
        if family not in known:
            known[family] = names_or_none(family)
        found[name] = measure(content, known[family])
    if ARGUMENTS:
        sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
        return
    names = {family.id: names_or_none(family.id) for family in ARCHITECTURES}
    known_names = {id: rows(id, known) if known else None for id, known in names.items()}
    measuring.record("comfyui", {"host": "ComfyUI", "version": __version__, "how": HOW, "dumps": found})
    with gzip.GzipFile(NAMES, "wb", mtime=0) as file:
        content = {"host": "ComfyUI", "version": __version__, "how": HOW_NAMES, "names": known_names}
        file.write(json.dumps(content).encode())


main()
