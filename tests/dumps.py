"""Key dumps as files: real key names and shapes, seeded random values."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lorasmith.convert.detect import detect
from lorasmith.convert.keymap import Place, keymap
from lorasmith.lora_core.adapter import Adapter
from lorasmith.lora_core.layers import LoRA

KEYS = Path(__file__).parent / "keys"
NAMES = sorted(path.stem for path in KEYS.glob("*.json"))
RANK = 2  # every layer's rank here, whatever the dump's, so that files stay small
ALPHAS = (0.5, 1.0, 2.0, 3.0)  # against rank 2: a scale that is exact in any dtype, and 1.5


@dataclass(frozen=True)
class Dump:
    """A dump made a file."""

    name: str
    family: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@lru_cache(maxsize=4)
def dump(name: str, dtype: torch.dtype = torch.float32) -> Dump:
    """Fill a dump with random values; shapes that it does not give come from its family's tables."""
    content = json.loads((KEYS / f"{name}.json").read_text())
    shapes = _shapes(content)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = {}
    for key, shape in shapes.items():
        if not shape:
            tensors[key] = torch.tensor(ALPHAS[zlib.crc32(key.encode()) % len(ALPHAS)], dtype=dtype)
        else:
            tensors[key] = torch.randn(shape, generator=generator).to(dtype)
    metadata = {key: value for key, value in content.get("metadata", {}).items() if isinstance(value, str)}
    return Dump(name, content["family"], tensors, metadata)


def effect(adapter: Adapter) -> dict[object, Tensor]:
    """Return what every layer makes of one random input, float64: equal effects on it mean equal deltas."""
    return {target: _effect(layer) for target, layer in adapter.layers.items()}


def _effect(layer: object) -> Tensor:
    if not isinstance(layer, LoRA):
        return layer.diff.double()  # type: ignore[attr-defined]
    columns = layer.columns().double()
    probe = torch.randn(columns.shape[1], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return layer.up.flatten(1).double() * layer.scale @ (columns @ probe)


def _shapes(content: dict) -> dict[str, tuple[int, ...]]:
    keys = content["keys"]
    match = detect(dict.fromkeys(keys), content.get("metadata", {}))
    map = keymap(content["family"])
    return {
        key: _shape(shape, map.place(key, match.positions), map) if key not in match.unknown else tuple(shape)
        for key, shape in keys.items()
    }


def _shape(shape: list | None, place: Place, map) -> tuple[int, ...]:  # type: ignore[no-untyped-def]
    out, inner, *kernel = shape if shape and len(shape) > 1 else (*(map.shape(place.target) or (1, 1)), 1)[:2]
    weight = map.shape(place.target)
    if place.role == "alpha":
        return ()
    if place.role in ("w_norm", "b_norm"):
        return tuple(shape)
    if shape is None:
        kernel = list(weight[2:])
        inner, out = weight[1], weight[0]
    if place.role == "mid":
        return (RANK, RANK, *kernel)
    if place.role == "down":
        return (RANK, inner, *kernel)
    return (out, RANK, *[1] * len(kernel))
