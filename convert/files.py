"""From a path to an adapter and back: the two ends of the straight line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..lora_core import hashes, store
from ..lora_core.adapter import Adapter
from ..lora_core.dtypes import dtype_named
from ..lora_core.errors import BadConfig, UnknownFormat
from ..lora_core.header import layout
from ..lora_core.layers import DoRA, LoRA
from ..lora_core.ops.merge import store_dtype
from ..lora_core.ops.provenance import STALE, file_origin
from ..lora_core.ops.recipe import RECIPE
from . import peft, positional
from .architectures import architecture
from .codec import decode, encode, encode_like
from .detect import Match, detect
from .formats import WRITABLE
from .keymap import keymap
from .recording import Later, Recording
from .regroup import family_of
from .scales import PEFT_KEY

NO_HASH = "0" * 64  # holds a SHA-256's place


@dataclass(frozen=True)
class Loaded:
    """A file's adapter together with how the file spelled it."""

    adapter: Adapter
    match: Match
    path: Path


def tensors_at(path: str | Path, mapped: bool = False) -> store.Stored:
    """Return the tensors and header of a LoRA file, or of a folder as PEFT writes it.

    A PEFT configuration beside the weights becomes the header entry `adapter_config.json`. Layers that the file numbers
    come under the numbers of the family's table, see `positional`. `mapped` is that of `store.load`.

    Raises:
        FileProblem: nothing readable is there.
        UnknownFormat: the layers are numbered in an order that is not known.
    """
    path = Path(path)
    if path.is_dir():
        return peft.read_folder(path)
    stored = store.load(path, mapped)
    return positional.named(store.Stored(stored.tensors, {**peft.config_beside(path), **stored.metadata}), path)


def load(path: str | Path, mapped: bool = False) -> Loaded:
    """Read a LoRA file in any dialect, and keep its spelling for writing it back alike.

    With `mapped`, for a process that ends once it has written a result, the values stay in the file until they are used
    (see `header.map_tensors`), and it is hashed meanwhile.

    Raises:
        LorasmithError: the file cannot be read, is no LoRA, or holds layers that no table knows.
    """
    path = Path(path)
    origin = file_origin(path)
    if mapped:
        origin["digest"] = Later(origin["source"].digest)
    stored = tensors_at(path, mapped)
    match = detect({key: tuple(tensor.shape) for key, tensor in stored.tensors.items()}, stored.metadata, path)
    if match.unplaced:
        title = f"{match.candidates[0]}/{match.format}"
        raise UnknownFormat.closest(path, title, len(match.places), len(stored.tensors), match.unplaced)
    adapter = decode(stored.tensors, match, stored.metadata, path)
    return Loaded(replace(adapter, origin={**origin, "match": match}), match, path)


def read(path: str | Path) -> Adapter:
    """Read a LoRA file in any dialect into an adapter; see `load`."""
    return load(path).adapter


def write(
    adapter: Adapter, path: str | Path, format: str | Match = "kohya", *, dtype: str = "keep", overwrite: bool = False
) -> Path:
    """Write an adapter in a dialect, with its metadata and hashes brought up to date.

    Args:
        adapter: what to write.
        path: the file; for "peft" a path without `.safetensors` is a folder, laid out as PEFT writes it.
        format: a dialect's id, or a Match to spell the keys as that file did.
        dtype: "keep", "fp32", "fp16" or "bf16"; alphas stay exact in any of them.
        overwrite: replace a file that is already there.

    Raises:
        UnsupportedLayer: the dialect cannot say one of the layers.
        FileProblem: the file cannot be written, or is already there.
    """
    return store_plan(plan(adapter, path, format, dtype), overwrite)


@dataclass(frozen=True)
class Plan:
    """What a file will hold, before it is written."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    configs: Mapping[str, str]  # PEFT configurations, as header entries; empty for other dialects
    recording: Recording | None = None  # of the recipe, under way; None where nobody knows where the adapter is from
    model_hash: Later[str] | None = None  # of the tensors, where it is under way already

    def hashing(self) -> Plan:
        """Return the plan, its tensors being hashed from now on."""
        return self if self.model_hash else replace(self, model_hash=Later(lambda: hashes.model_hash(self.tensors)))


def plan(adapter: Adapter, path: str | Path, format: str | Match = "kohya", dtype: str = "keep") -> Plan:
    """Return what `write` would store, see there."""
    path = Path(path)
    recording = Recording.of(adapter, format, dtype)
    kept: dict[str, str] = {}
    if isinstance(format, Match) and format.format == "peft":
        if any(isinstance(layer, (LoRA, DoRA)) for layer in adapter.layers.values()):
            format = "peft"  # its scales lie in configurations, which are written anew
        else:
            kept = {key: text for key, text in adapter.metadata.items() if key.endswith(PEFT_KEY)}
    tensors = tensors_for(adapter, format, dtype)
    configs = peft.configs_of(adapter, keymap(family_of(adapter))) if format == "peft" else kept
    return Plan(path, tensors, metadata_for(adapter, path.stem), configs, recording)


def store_plan(plan: Plan, overwrite: bool = False) -> Path:
    """Write a planned file, whole or not at all, and return its path."""
    under_way = plan.model_hash or Later(lambda: hashes.model_hash(plan.tensors))
    if plan.configs and plan.path.suffix != ".safetensors":
        metadata = {**plan.metadata, **_recipe(plan, under_way.result())}
        return peft.write_folder(plan.tensors, metadata, plan.configs, plan.path, overwrite)
    metadata = {**plan.metadata, **plan.configs}
    legacy = hashes.legacy_hash(plan.tensors, metadata)

    def hashed(model_hash: str) -> dict[str, str]:
        recipe = _recipe(plan, model_hash)
        return {**metadata, "sshs_model_hash": model_hash, "sshs_legacy_hash": legacy, **recipe}

    return store.save(plan.path, plan.tensors, hashed(NO_HASH), overwrite, lambda: hashed(under_way.result()))


def file_bytes(plan: Plan) -> int:
    """Return how large the planned file will be; of a PEFT folder both files together."""
    hashed = {"sshs_model_hash": NO_HASH, "sshs_legacy_hash": "0" * 8}
    metadata = {"format": "pt", **plan.metadata, **plan.configs, **hashed, **_recipe(plan, NO_HASH)}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in plan.tensors.values())
    return len(layout(plan.tensors, metadata).prefix) + weights


def _recipe(plan: Plan, model_hash: str) -> dict[str, str]:
    return {} if plan.recording is None else {RECIPE: plan.recording.recipe(model_hash).json()}


def tensors_for(adapter: Adapter, format: str | Match, dtype: str = "keep") -> dict[str, Tensor]:
    """Return the tensors that `write` would store."""
    narrow = dtype_named(dtype)
    if isinstance(format, str) and format not in WRITABLE:
        raise BadConfig(f"format {format!r} cannot be written: choose {', '.join(WRITABLE)}")
    tensors = encode(adapter, format) if isinstance(format, str) else encode_like(adapter, format)
    if narrow is None:
        return tensors
    return {key: _narrowed(tensor, narrow) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return store_dtype(tensor.float(), dtype) if tensor.dim() == 0 else tensor.to(dtype)


def metadata_for(adapter: Adapter, name: str) -> dict[str, str]:
    """Return a file's header: what the adapter carried, less what no longer holds, plus what hosts look for."""
    kept = {key: value for key, value in adapter.metadata.items() if key not in STALE and not key.endswith(PEFT_KEY)}
    family = architecture(adapter.architecture).metadata if adapter.architecture else {}
    return {"format": "pt", **family, **kept, "ss_output_name": name}
