"""Key dumps as files: real key names and shapes, seeded random values."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from lorasmith.convert.detect import Match, detect
from lorasmith.convert.keymap import Place, keymap
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import Additive, Layer, LoRA

KEYS = Path(__file__).parent / "keys"
NAMES = sorted(path.name.removesuffix(".json.gz") for path in KEYS.glob("*.json.gz"))
RANK = 2  # every layer's rank here, whatever the dump's, so that files stay small
EVERY = bool(os.environ.get("LORASMITH_EVERY_LAYER"))  # all layers of every dump: hours instead of minutes
MOST = 100_000 if EVERY else 3  # of other algorithms than LoRA, so many layers
LORAS = 100_000 if EVERY else 6  # of LoRA, so many modules
ALPHAS = (0.5, 1.0, 2.0, 3.0)  # against rank 2: a scale that is exact in any dtype, and 1.5
RANKED = {  # role -> the axes that are as long as the rank; Tucker factors of LoHa and LoKr lie the other way
    **{"down": (0,), "up": (1,), "mid": (0, 1), "embedding_down": (0,), "embedding_up": (1,)},
    **{f"hada_{name}_a": (1,) for name in ("w1", "w2")},
    **{f"hada_{name}_b": (0,) for name in ("w1", "w2")},
    **{f"lokr_{name}_a": (1,) for name in ("w1", "w2")},
    **{f"lokr_{name}_b": (0,) for name in ("w1", "w2")},
    **{"hada_t1": (0, 1), "hada_t2": (0, 1), "lokr_t2": (0, 1)},
}
CORES = {"hada_w1_a": "hada_t1", "hada_w2_a": "hada_t2", "lokr_w2_a": "lokr_t2"}  # what makes a factor a Tucker one
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Dump:
    """A dump: the keys with their shapes (None: the name alone is known) and the header."""

    name: str
    family: str
    keys: Mapping[str, tuple[int, ...] | None]
    metadata: Mapping[str, str]

    dtype: torch.dtype = torch.float32

    @property
    def shaped(self) -> bool:
        """Whether all shapes are known, so that a file can be made."""
        return all(shape is not None for shape in self.keys.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The whole file with random values, of small rank; shapes that a LoRA's listing lacks are the family's."""
        return _filled(self.name, self.dtype)


@lru_cache(maxsize=8)
def dump(name: str, dtype: torch.dtype = torch.float32) -> Dump:
    """Read a dump; of real listings the rank is unknown, and RANK then."""
    content = json.loads(gzip.decompress((KEYS / f"{name}.json.gz").read_bytes()))
    metadata = {key: value for key, value in (content.get("metadata") or {}).items() if isinstance(value, str)}
    keys = {
        key: None if shape is None else tuple(RANK if size == -1 else size for size in shape)
        for key, shape in content["keys"].items()
    }
    return Dump(name, content["family"], keys, metadata, dtype)


@lru_cache(maxsize=4)
def _filled(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    file = dump(name)
    match = detect(file.keys, file.metadata)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return {key: _values(key, _small(key, match, file), generator).to(dtype) for key in file.keys}


def constant(name: str) -> dict[str, Tensor]:
    """Return a dump's file with another number in each tensor, whatever its size; takes no memory."""
    return {
        key: torch.tensor(float(number % 1000 + 1)).expand(shape or ())
        for number, (key, shape) in enumerate(dump(name).keys.items())
    }


@lru_cache(maxsize=4)
def sample(name: str) -> dict[str, Tensor]:
    """Return a dump's file with random values, of small rank, and of its layers one of each kind of module."""
    file = dump(name)
    match = detect(file.keys, file.metadata)
    layers = list(match.layers) if EVERY or match.format == "safeloras" else kinds(match.layers)
    modules = list(dict.fromkeys((target.component, target.module) for target in layers))
    few = modules[:: max(1, len(modules) // LORAS)]
    if any(is_dense(match.layers[target]) for target in layers):  # compared as whole matrices, which takes time
        few = _cheapest(layers, file.family)
    if match.format != "safeloras":  # whose numbers count all layers
        layers = [target for target in layers if (target.component, target.module) in set(few)]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    keys = [key for target in layers for key in match.layers[target].values()] + list(match.riders)
    return {key: _values(key, _small(key, match, file), generator) for key in file.keys if key in set(keys)}


def _cheapest(targets: Iterable[Target], family: str) -> list[tuple[str, str]]:
    """Return a few modules with small weights."""
    map = keymap(family)
    sizes = {target: math.prod(map.shape(replace(target, block=None)) or (1,)) for target in targets}
    order = [(target.component, target.module) for target in sorted(sizes, key=lambda target: sizes[target])]
    return [*dict.fromkeys(order)][:MOST]


def is_dense(roles: Mapping[str, str]) -> bool:
    """Tell whether a layer is of another algorithm than LoRA."""
    return "magnitude" in roles or not {"down", "diff_b", "up_bias"} & set(roles)


def kinds(targets: Iterable[Target]) -> list[Target]:
    """Return of targets that differ in their numbers alone the last, with all row blocks and the bias of its module."""
    chosen = {NUMBER.sub("#", f"{target.component}.{target.module}"): target.module for target in targets}
    return [target for target in targets if target.module in chosen.values()]


def effect(adapter: Adapter) -> dict[object, Tensor]:
    """Return what every layer makes of one random weight, float64: equal effects on it mean equal layers."""
    return {target: _effect(layer) for target, layer in adapter.layers.items()}


def _effect(layer: Layer) -> Tensor:
    if isinstance(layer, LoRA):
        columns = layer.columns().double()
        probe = torch.randn(columns.shape[1], 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return layer.up.flatten(1).double() * layer.scale @ (columns @ probe)
    if isinstance(layer, Additive):
        return layer.delta().double().flatten(1) if layer.delta().dim() > 1 else layer.delta().double()
    sizes = [size or 8 for size in layer.shape]
    weight = torch.randn(sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (layer.apply(weight) - weight).flatten(1) if weight.dim() > 1 else layer.apply(weight) - weight


def _small(key: str, match: Match, file: Dump) -> tuple[int, ...]:
    place, shape = match.places.get(key), file.keys[key]
    if shape is None and place is not None:
        shape = _listed(place, file.family)
    shape = list(shape or ())
    if place is None or place.role not in RANKED:
        return tuple(shape)
    core = CORES.get(place.role) or CORES.get(place.role.replace("_b", "_a"))
    tucker = core in match.layers[place.target]
    for axis in (0,) if tucker and not place.role.endswith(("t1", "t2")) else RANKED[place.role]:
        shape[axis] = RANK
    return tuple(shape)


def _listed(place: Place, family: str) -> tuple[int, ...]:
    """Return the shape of a LoRA's tensor of which only the name is known."""
    out, inner, *kernel = keymap(family).shape(place.target) or (1, 1)
    return {"down": (RANK, inner, *kernel), "up": (out, RANK, *[1] * len(kernel))}.get(place.role, ())


def _values(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if key.endswith("on_input"):
        return torch.tensor(True)
    if not shape:
        return torch.tensor(ALPHAS[zlib.crc32(key.encode()) % len(ALPHAS)])
    return torch.randn(shape, generator=generator)
