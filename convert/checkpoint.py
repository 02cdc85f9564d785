"""A base model's weights by target, read one at a time from a single file or a Diffusers folder, in either layout.

A target's weight always comes in the ORIGINAL layout: row blocks put together or cut out, halves put right, OpenCLIP's
joint projections taken apart. No more than the tensor in question is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..lora_core import store
from ..lora_core.adapter import Target
from ..lora_core.errors import BadConfig, UnsupportedLayer, WrongArchitecture
from .against import UNKNOWN, Model, model_of
from .keymap import keymap
from .parameters import Held, block_heights, model_files, parameters

SCALES = (".scale_weight", ".weight_scale", ".weight_scale_inv", ".scale_input")  # beside weights in scaled 8-bit
QUANTISED = (".absmax", ".quant_map", ".qweight", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


class Readable(Protocol):
    """Where tensors are read from: a file, or a model that is loaded."""

    @property
    def path(self) -> Path:
        """The file, or what to call the model."""

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read one tensor, or its rows from `start` to `stop`."""

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's dtype, without reading it."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Where a stored tensor lies."""

    file: Readable
    key: str  # in that file
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype as it is stored."""
        return self.file.dtype(self.key)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Read it, or some of its rows."""
        return self.file.read(self.key, start, stop)


@dataclass(frozen=True)
class Rows:
    """The rows of a stored tensor that one parameter takes."""

    key: str  # as in `Checkpoint.entries`
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model whose weights are read when they are asked for."""

    path: Path
    model: Model  # its family, and the shape of every parameter in the original layout, row blocks and whole weights
    files: Mapping[Path, str]  # its weight files, each with what stands before its keys in `entries`
    entries: Mapping[str, Entry]  # every stored tensor; in a folder the component's name stands before the key

    @property
    def architecture(self) -> str:
        """Id of the family."""
        return self.model.architecture

    @property
    def shapes(self) -> Mapping[Target, tuple[int, ...]]:
        """Shape of every parameter, in the original layout; of fused weights both the whole and its row blocks."""
        return self.model.shapes

    @cached_property
    def held(self) -> dict[str, Held]:
        """What each stored tensor holds whose name the family's table knows."""
        known = parameters(self.architecture)
        return {key: known[key] for key in self.entries if key in known}

    @cached_property
    def places(self) -> dict[Target, Rows]:
        """Where each parameter lies that is stored as such, in the stored tensor's own order of rows."""
        found: dict[Target, Rows] = {}
        for key, held in self.held.items():
            shape, count = self.entries[key].shape, len(held.targets)
            height = shape[0] // count if shape else 0
            for index, target in enumerate(held.targets):
                found.setdefault(target, Rows(key, index * height, (index + 1) * height))
        return found

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """Every parameter once: whole where all of it is there, in row blocks elsewhere."""
        whole = (replace(target, block=None) for target in self.places)
        names = (one if one in self.shapes else target for one, target in zip(whole, self.places, strict=True))
        return tuple(dict.fromkeys(names))

    @cached_property
    def quantised(self) -> str | None:
        """The first key that tells that weights are stored as codes or scaled, or None."""
        codes = (key for key in self.held if not self.entries[key].dtype.is_floating_point)
        return next((key for key in self.entries if key.endswith((*SCALES, *QUANTISED))), next(codes, None))

    def shape(self, target: Target) -> tuple[int, ...] | None:
        """Return a parameter's shape, or None where the model has none there."""
        return self.shapes.get(target)

    def dtype(self, target: Target) -> torch.dtype:
        """Return the dtype that a parameter is stored in; of row blocks stored apart, the first one's."""
        return self.entries[self._first(target).key].dtype

    def weight(self, target: Target) -> Tensor:
        """Read a parameter, in the original layout and the dtype that it is stored in.

        Raises:
            WrongArchitecture: the model has none there.
            UnsupportedLayer: the weights are stored as codes or scaled, and are no plain numbers.
            FileProblem: the file cannot be read.
        """
        if self.quantised:
            raise quantised(self)
        if target in self.places:
            return self._stored(target, self.places[target])
        if target.block is not None:
            whole, (start, stop) = replace(target, block=None), self.span(target)
            return self._stored(whole, self.places[whole], start, stop)
        if target not in self.shapes:
            raise absent(self, target)
        return torch.cat([self.weight(part) for part in self.blocks(target)])

    def blocks(self, target: Target) -> list[Target]:
        """Return the row blocks of a fused weight, from top to bottom; none for any other."""
        module = keymap(self.architecture).module(target)
        return [replace(target, block=n) for n in range(len(module.blocks))] if module else []

    def span(self, target: Target) -> tuple[int, int]:
        """Return the rows, from and to, that a row block takes in its fused weight."""
        module, whole = keymap(self.architecture).module(target), replace(target, block=None)
        heights = block_heights(module.blocks, self.shapes[whole][0]) if module and whole in self.shapes else ()
        if target.block is None or target.block >= len(heights):
            raise absent(self, target)
        start = sum(heights[: target.block])
        return start, start + heights[target.block]

    def _first(self, target: Target) -> Rows:
        for one in (target, replace(target, block=None), *self.blocks(target)):
            if one in self.places:
                return self.places[one]
        raise absent(self, target)

    def _stored(self, target: Target, rows: Rows, start: int = 0, stop: int | None = None) -> Tensor:
        """Read a parameter that is stored as such, or some of its rows."""
        held, entry = self.held[rows.key], self.entries[rows.key]
        if held.swapped or held.transposed or not entry.shape:
            whole = straightened(entry.read(), held)
            return whole if (start, stop) == (0, None) else whole[start:stop]
        if len(held.targets) == 1 and stop is None:
            return entry.read()
        return entry.read(rows.start + start, rows.stop if stop is None else rows.start + stop)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a base model: a safetensors file, a `torch.save` file, or a Diffusers folder, sharded or not.

    Headers alone are read.

    Raises:
        FileProblem: nothing readable is there.
        UnsafeFile: a pickle that asks for code.
        BadConfig: it holds a LoRA, nothing that could be a model, or one of a family that no table knows.
    """
    path = Path(path)
    entries: dict[str, Entry] = {}
    files = dict(model_files(path))
    for file, before in files.items():
        opened = store.tensor_file(file)
        for key, shape in opened.header.shapes.items():
            entries[before + key] = Entry(opened, key, shape)
    model = model_of({key: entry.shape for key, entry in entries.items()}, str(path))
    if model.architecture == UNKNOWN:
        raise BadConfig(f"{path.name}: is a model of a family that no table knows; take another checkpoint", file=path)
    return Checkpoint(path, model, files, entries)


def straightened(tensor: Tensor, held: Held) -> Tensor:
    """Return a stored tensor as the original layout has it; its own inverse."""
    if held.transposed:
        return tensor.transpose(0, 1).contiguous()
    if held.swapped:
        return torch.cat(tuple(reversed(tensor.chunk(2))))
    return tensor


def absent(checkpoint: Checkpoint, target: Target) -> WrongArchitecture:
    """Return the refusal of a target that a model does not have."""
    part = "" if target.block is None else f" (row block {target.block})"
    return WrongArchitecture(
        f"{checkpoint.path.name}: is a {checkpoint.model.title} model without {target.component}.{target.module}{part}"
        f"{' bias' if target.parameter == 'bias' else ''}; take a checkpoint that has it",
        file=checkpoint.path,
    )


def quantised(checkpoint: Checkpoint) -> UnsupportedLayer:
    """Return the refusal of a model whose weights are no plain numbers."""
    return UnsupportedLayer(
        f"{checkpoint.path.name}: its weights are stored as codes with scales ({checkpoint.quantised!r}); "
        "take the fp16, bf16 or fp32 checkpoint",
        file=checkpoint.path,
    )
