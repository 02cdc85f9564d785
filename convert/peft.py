"""PEFT's own layout: a folder with `adapter_model.safetensors` and `adapter_config.json` for each adapted model."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..lora_core import store
from ..lora_core.adapter import Adapter
from ..lora_core.errors import FileProblem
from ..lora_core.layers import DoRA, LoRA
from .keymap import Keymap, prefix_for
from .regroup import in_layout
from .scales import PEFT_KEY

WEIGHTS = "adapter_model.safetensors"
LEGACY_WEIGHTS = "adapter_model.bin"
FOLDERS = (
    *("unet", "transformer", "prior", "controlnet", "connectors", "text_conditioner"),
    *("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"),
)


def read_folder(folder: Path) -> store.Stored:
    """Return what the adapters in a folder hold together.

    Keys of an adapter in a subfolder (`text_encoder/`), and its configuration's entry, begin with the subfolder's name.

    Raises:
        FileProblem: neither the folder nor one of its subfolders holds an adapter.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in ("", *FOLDERS):
        weights = next(
            (file for file in (folder / name / WEIGHTS, folder / name / LEGACY_WEIGHTS) if file.is_file()), None
        )
        if weights is None:
            continue
        stored = store.load(weights)
        beginning = f"{name}." if name else ""
        tensors.update({f"{beginning}{key}": tensor for key, tensor in stored.tensors.items()})
        own = {**config_beside(weights), **stored.metadata}
        metadata.update({f"{beginning}{key}" if key == PEFT_KEY else key: text for key, text in own.items()})
    if not tensors:
        raise FileProblem(f"{folder}: a folder without {WEIGHTS}. Name the LoRA file inside it", file=folder)
    return store.Stored(tensors, metadata)


def config_beside(weights: Path) -> dict[str, str]:
    """Return the configuration that PEFT keeps beside an adapter's weights, as a header entry."""
    config = weights.parent / PEFT_KEY
    if not weights.name.startswith("adapter_model.") or not config.is_file():
        return {}
    try:
        return {PEFT_KEY: config.read_text(encoding="utf-8-sig")}
    except (OSError, UnicodeDecodeError) as error:
        raise FileProblem(
            f"{config}: cannot be read ({error}). The scale of {weights.name} is in it", file=config
        ) from error


def config_of(adapter: Adapter, component: str, map: Keymap) -> dict[str, Any]:
    """Return the `adapter_config.json` of one component's layers (source of the fields: PEFT `LoraConfig`)."""
    own = {target: layer for target, layer in adapter.layers.items() if target.component == component}
    plain = {
        map.name(target, "diffusers") or target.module: layer.layer if isinstance(layer, DoRA) else layer
        for target, layer in in_layout(own, map, "diffusers").items()
        if target.parameter == "weight"
    }
    layers = {name: layer for name, layer in plain.items() if isinstance(layer, LoRA)}
    rank = _common(layer.rank for layer in layers.values())
    alpha = _common(layer.alpha for layer in layers.values())
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(layers),
        "rank_pattern": {f"^{name}": layer.rank for name, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {f"^{name}": layer.alpha for name, layer in layers.items() if layer.alpha != alpha},
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": any(isinstance(layer, DoRA) for layer in own.values()),
        "lora_bias": any(target.parameter == "bias" for target in own),
        "inference_mode": True,
    }


def _common(numbers: Iterable[float]) -> float:
    """Return the most frequent number, PEFT's default of 8 where there is none."""
    counted = Counter(numbers).most_common(1)
    return counted[0][0] if counted else 8


def configs_of(adapter: Adapter, map: Keymap) -> dict[str, str]:
    """Return the configuration of each component as header entries; the denoiser's has no prefix."""
    entries: dict[str, str] = {}
    for component in sorted({target.component for target in adapter.layers}):
        entries[_entry(component, map)] = json.dumps(config_of(adapter, component, map))
    return entries


def write_folder(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], configs: Mapping[str, str], path: Path, overwrite: bool
) -> Path:
    """Write one adapter for each configuration below a folder, all of them or nothing.

    Raises:
        FileProblem: the folder is already there, or cannot be written.
    """
    if not overwrite:
        store.refuse_existing(path)
    if path.exists() and not (path.is_dir() and _is_ours(path)):
        raise FileProblem(f"{path}: is not a folder of PEFT adapters, so it is not replaced; choose another", file=path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise FileProblem(f"{path}: cannot be written ({error.strerror}). Choose another folder", file=path) from error
    try:
        for entry, config in configs.items():
            part = _subfolder(entry)
            beginning = f"{part}." if part else ""
            own = {key[len(beginning) :]: tensor for key, tensor in tensors.items() if _part(key, configs) == part}
            store.save(building / part / WEIGHTS, own, metadata)
            (building / part / PEFT_KEY).write_text(config, encoding="utf-8")
        _put(building, path)
    except FileProblem as error:  # name the folder that was asked for, not the one under construction
        raise FileProblem(error.message.replace(str(building), str(path)), file=path) from None
    except OSError as error:
        raise FileProblem(
            f"{path}: cannot be written ({error.strerror}). Free some space or choose another folder", file=path
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return path


def _put(building: Path, path: Path) -> None:
    """Move a finished folder into place; one that is there makes way as a whole."""
    building.chmod(0o755)
    if not path.exists():
        building.rename(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / path.name
    path.rename(old)
    try:
        building.rename(path)
    except BaseException:  # an interrupt too: what was there comes back
        if not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder holds PEFT adapters and nothing else."""
    files = {WEIGHTS, LEGACY_WEIGHTS, PEFT_KEY, "README.md"}
    return all(
        entry.name in (FOLDERS if entry.is_dir() else files) and (not entry.is_dir() or _is_ours(entry))
        for entry in folder.iterdir()
    )


def _part(key: str, configs: Mapping[str, str]) -> str:
    return next((part for part in map(_subfolder, configs) if part and key.startswith(f"{part}.")), "")


def _subfolder(entry: str) -> str:
    """Return the subfolder that a configuration's header entry names, empty for the folder itself."""
    return entry.removesuffix(PEFT_KEY).rstrip(".")


def _entry(component: str, map: Keymap) -> str:
    part = map.family.component(component)
    folder = (prefix_for(part, "diffusers") if part else None) or component
    return PEFT_KEY if component == "denoiser" else f"{folder}.{PEFT_KEY}"
