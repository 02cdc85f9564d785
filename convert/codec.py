"""Tensors under a dialect's keys <-> an Adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import AmbiguousFormat, UnknownFormat, UnsupportedLayer
from ..lora_core.layers import Full, Layer, LoRA, Norm
from ..lora_core.ops.merge import store_dtype
from .architectures import ARCHITECTURES
from .detect import Match
from .formats import WRITABLE, format_named
from .keymap import Keymap, Spelling, keymap, prefix_for
from .model import Format
from .scales import Scales


def decode(
    tensors: Mapping[str, Tensor], match: Match, metadata: Mapping[str, str], file: str | Path | None = None
) -> Adapter:
    """Return the adapter that a file's tensors stand for.

    Scales come from alpha tensors, else from the header (Diffusers' `lora_adapter_metadata`, PEFT's config), else
    they are 1. Keys that no table knows become `extras`.

    Raises:
        AmbiguousFormat: several families fit alike and would put the layers in different places.
        UnknownFormat: a layer lacks a part.
    """
    _refuse_ambiguity(match, file)
    _refuse_incomplete(match, file)
    map = keymap(match.candidates[0])
    scales = Scales.read(metadata)
    layers = {
        target: _layer({role: tensors[key] for role, key in roles.items()}, target, map, scales)
        for target, roles in match.layers.items()
    }
    idle = [roles["alpha"] for roles in match.layers.values() if "alpha" in roles and "down" not in roles]
    extras = {key: tensors[key] for key in (*match.unknown, *idle)}  # a dense layer's alpha does nothing
    return Adapter(match.architecture, layers, dict(metadata), extras)


def encode(adapter: Adapter, format: str) -> dict[str, Tensor]:
    """Return an adapter's tensors under the keys of a dialect.

    Raises:
        UnsupportedLayer: the dialect has no way to say one of the layers, or cannot be written.
    """
    row = format_named(format)
    if not row.writable:
        raise UnsupportedLayer(f"{format}: this dialect is read but not written. Choose one of {', '.join(WRITABLE)}")
    map = keymap(family_of(adapter))
    tensors: dict[str, Tensor] = {}
    for target, layer in adapter.layers.items():
        tensors.update(
            _spelled(map, target, _expressible(layer, target, row, map), _spelling(row, map, target), row.alpha)
        )
    return {**tensors, **adapter.extras}


def encode_like(adapter: Adapter, match: Match) -> dict[str, Tensor]:
    """Return an adapter's tensors under the keys they were read from: the inverse of `decode`.

    A scale other than 1 that the file had no tensor for is folded into `up`.
    """
    map = keymap(match.candidates[0])
    tensors: dict[str, Tensor] = {}
    for target, roles in match.layers.items():
        places = [match.places[key] for key in roles.values()]
        spelling = next((place.spelling for place in places if place.spelling.suffixes), places[0].spelling)
        alpha = "tensor" if "alpha" in roles else "folded"
        tensors.update(_spelled(map, target, adapter.layers[target], spelling, alpha, match.positions))
    return {**tensors, **adapter.extras}


def _layer(parts: Mapping[str, Tensor], target: Target, map: Keymap, scales: Scales) -> Layer:
    for role in ("diff", "diff_b"):
        if role in parts:
            return Full(parts[role])
    for role in ("w_norm", "b_norm"):
        if role in parts:
            return Norm(parts[role])
    down, up = _unflattened(parts["down"], parts["up"], map.shape(target))
    rank = int(down.shape[0])
    if "alpha" in parts:
        alpha = float(parts["alpha"])
    else:
        part = map.family.component(target.component)
        prefix = (prefix_for(part, "diffusers") if part else None) or ""
        alpha = scales.alpha(prefix, map.name(target, "diffusers") or "", rank)
    return LoRA(down, up, alpha, parts.get("mid"))


def _unflattened(down: Tensor, up: Tensor, shape: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    """Give factors of a convolution their kernel back; ComfyUI's own trainer stores `down` as (rank, in * kernel)."""
    flat = shape is not None and math.prod(shape[2:]) > 1 and down.shape[1:] == (math.prod(shape[1:]),)
    if shape is None or not flat or up.dim() != 2:
        return down, up
    return down.reshape(-1, *shape[1:]), up[:, :, None, None]


def _spelled(
    map: Keymap,
    target: Target,
    layer: Layer,
    spelling: Spelling,
    alpha: str,
    positions: Mapping[str, frozenset[str]] | None = None,
) -> dict[str, Tensor]:
    """Return one layer's tensors by key."""
    tensors: dict[str, Tensor] = {}
    for role, tensor in _roles(layer, target, alpha).items():
        key = map.spell(target, role, spelling, positions)
        if key is None:
            raise UnsupportedLayer(
                f"{target.component}.{target.module}: the {spelling.naming} naming has no word for it"
            )
        tensors[key] = tensor
    return tensors


def _roles(layer: Layer, target: Target, alpha: str) -> dict[str, Tensor]:
    bias = target.parameter == "bias"
    if isinstance(layer, Norm):
        return {"b_norm" if bias else "w_norm": layer.diff}
    if isinstance(layer, Full):
        return {"diff_b" if bias else "diff": layer.diff}
    up = layer.up
    if alpha == "folded" and layer.scale != 1:
        up = store_dtype(up.float() * layer.scale, up.dtype)
    roles = {"down": layer.down, "up": up}
    if layer.mid is not None:
        roles["mid"] = layer.mid
    if alpha == "tensor":
        roles["alpha"] = store_dtype(torch.tensor(layer.alpha), layer.up.dtype)
    return roles


def _spelling(row: Format, map: Keymap, target: Target) -> Spelling:
    part = map.family.component(target.component)
    prefix = prefix_for(part, row.prefixes[0]) if part else None
    if prefix is None:
        raise UnsupportedLayer(
            f"{target.component}: the {row.id} dialect has no prefix for it in {map.family.name}. Choose another --to"
        )
    denoiser = target.component == "denoiser"
    suffixes = row.suffixes[0] if denoiser or row.text_suffixes is None else row.text_suffixes
    naming = row.namings[0]
    if naming == "family":
        naming = map.family.kohya_naming
    return Spelling(row.prefixes[0], prefix, row.joiner, naming, suffixes)


def _expressible(layer: Layer, target: Target, row: Format, map: Keymap) -> Layer:
    """Return the layer as the dialect can hold it, the same change bit for bit or rounded in float32."""
    if isinstance(layer, Full):
        if row.dense:
            return layer
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: a full difference cannot be said in the {row.id} dialect. "
            f"Convert to kohya or comfy, which keep it"
        )
    if layer.mid is not None and not row.tucker:
        dtype = layer.down.dtype
        kernel = layer.mid.shape[2:]
        down = layer.columns().reshape(layer.rank, -1, *kernel)
        layer = replace(layer, down=store_dtype(down, dtype), mid=None)
    return _with_module_shape(layer, map.shape(target)) if row.module_shape else layer


def _with_module_shape(layer: LoRA, shape: tuple[int, ...] | None) -> LoRA:
    """Give linear factors of a 1x1 convolution its four dimensions, and the other way round."""
    if shape is None or layer.down.dim() == len(shape) or layer.mid is not None:
        return layer
    if layer.down.dim() == 2:
        return replace(layer, down=layer.down[:, :, None, None], up=layer.up[:, :, None, None])
    if layer.down.shape[2:].numel() == 1:
        return replace(layer, down=layer.down.flatten(1), up=layer.up.flatten(1))
    return layer


def family_of(adapter: Adapter) -> str:
    """Return the id of the adapter's family, or of the first that has all its targets where several fit alike."""
    if adapter.architecture:
        return adapter.architecture
    for family in ARCHITECTURES:
        if all(keymap(family.id).name(target, "original") for target in adapter.layers):
            return family.id
    raise UnsupportedLayer("this adapter's layers belong to no one model family")


def _refuse_ambiguity(match: Match, file: str | Path | None) -> None:
    others = [keymap(id) for id in match.candidates[1:]]
    for key, place in match.places.items():
        for map in others:
            other = map.place(key, match.positions)
            if other is None or other.target != place.target:
                families = " and ".join(match.candidates)
                raise AmbiguousFormat(
                    f"{_name(file)}: fits {families} alike and would mean different layers (first {key!r}). "
                    f"Write ss_base_model_version into its header",
                    file=file,
                    candidates=list(match.candidates),
                )


def _refuse_incomplete(match: Match, file: str | Path | None) -> None:
    if match.faults:
        key, fault = next(iter(match.faults.items()))
        raise UnknownFormat(
            f"{_name(file)}: {len(match.faults)} keys make no whole layer, first {key!r} ({fault}). "
            f"Download or save the file again",
            file=file,
            incomplete=list(match.incomplete),
        )


def _name(file: str | Path | None) -> str:
    return Path(file).name if file else "adapter"
