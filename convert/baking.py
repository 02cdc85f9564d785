"""Adapters baked into a checkpoint, and out of it again: read tensor by tensor, changed, written as read.

Changes are computed in float32, added in float64 and rounded once, to the dtype of the stored weight. The file keeps
its layout, its names and its dtypes. A weight that is stored in parts is changed part by part; where an algorithm needs
all of it (a rotation of rows, say), it is put together first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..lora_core.adapter import Target
from ..lora_core.dtypes import dtype_named
from ..lora_core.errors import BadConfig, BadValues, UnsupportedLayer, WrongArchitecture
from ..lora_core.layers import IA3, Additive, Layer, LoRA
from ..lora_core.layers.base import wide
from ..lora_core.ops.health import finite, refuse_bad_values
from ..lora_core.ops.merge import Weighted
from ..lora_core.ops.report import Report, Share
from ..lora_core.ops.rows import cut
from ..lora_core.ops.scale import check_strength
from ..lora_core.ops.sketch import square_norm
from .architectures import architecture
from .checkpoint import Checkpoint, quantised, straightened
from .detect import agree


@dataclass(frozen=True, eq=False)
class Edit:
    """One layer at work on a weight, or on one of its row blocks."""

    target: Target
    layer: Layer
    strength: float


@dataclass(frozen=True, eq=False)
class Edits:
    """Everything that is to be done to a checkpoint."""

    by_weight: Mapping[Target, list[Edit]]  # whole weight -> in the order of the adapters
    unplaced: tuple[str, ...]  # layers without a weight, or with one of another shape

    @property
    def count(self) -> int:
        """Number of layers that are placed."""
        return sum(map(len, self.by_weight.values()))


@dataclass
class Oven:
    """A checkpoint with adapters in it, tensor by tensor; notes how far what is stored is from what was wanted."""

    checkpoint: Checkpoint
    edits: Edits
    dtype: str = "keep"
    shares: dict[Target, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look up the dtype, before anything is read; raises BadConfig."""
        self._dtype = dtype_named(self.dtype)

    def outline(self, key: str) -> Tensor:
        """Return shape and dtype of a tensor in the result, on torch's meta device."""
        entry = self.checkpoint.entries[key]
        shape = next((wider for edit in self._edits(key) if (wider := _wider(edit.layer))), entry.shape)
        return torch.empty(shape, dtype=self._kept(entry.dtype), device="meta")

    def baked(self, key: str) -> Tensor:
        """Read a stored tensor and return it changed, in the dtype to store."""
        stored = self.checkpoint.entries[key].read()
        dtype = self._kept(stored.dtype)
        if not self._edits(key):
            result = stored.to(dtype)
            if result.dtype != stored.dtype:
                self._note(key, stored, stored, result)
            return result
        changed = self._changed(key, stored.double())
        result = changed.to(dtype)
        if not finite(stored):
            path = self.checkpoint.path
            raise BadValues(f"{path.name}: {key!r} holds NaN or infinity; take a sound checkpoint", file=path)
        if not finite(result):
            name = str(dtype).removeprefix("torch.")
            raise BadValues(f"{key}: becomes larger than {name} holds; choose bf16 or fp32, or a smaller strength")
        self._note(key, stored, changed, result)
        return result

    def touches(self, keys: Sequence[str]) -> bool:
        """Tell whether any of these tensors changes, be it its dtype alone."""
        entries = self.checkpoint.entries
        return any(self._edits(key) or self._kept(entries[key].dtype) != entries[key].dtype for key in keys)

    @property
    def report(self) -> Report:
        """The stored change against the wanted one, weight by weight, of all that was written so far."""
        return Report(self.shares)

    def _kept(self, dtype: torch.dtype) -> torch.dtype:
        return self._dtype if self._dtype is not None and dtype.is_floating_point else dtype

    def _edits(self, key: str) -> list[Edit]:
        held = self.checkpoint.held.get(key)
        wholes = dict.fromkeys(replace(target, block=None) for target in held.targets) if held else {}
        return [
            edit
            for whole in wholes
            for edit in self.edits.by_weight.get(whole, ())
            if held and (edit.target.block is None or edit.target in held.targets or whole in held.targets)
        ]

    def _changed(self, key: str, stored: Tensor) -> Tensor:
        held = self.checkpoint.held[key]
        weight = straightened(stored, held)
        if len(held.targets) == 1:
            return straightened(self._edited(held.targets[0], weight), held)
        height = len(weight) // len(held.targets)
        return torch.cat(
            [self._edited(t, part) for t, part in zip(held.targets, torch.split(weight, height), strict=True)]
        )

    def _edited(self, target: Target, weight: Tensor) -> Tensor:
        """Return a parameter, or a row block stored apart, with every layer applied."""
        edits = self.edits.by_weight.get(replace(target, block=None), [])
        if target.block is None:
            for edit in edits:
                weight = self._applied(edit, weight)
            return weight
        try:
            for edit in edits:
                if edit.target.block in (None, target.block):
                    weight = self._part_of(edit, target).apply(weight, edit.strength)
            return weight
        except UnsupportedLayer:  # its rows act on one another
            start, stop = self.checkpoint.span(target)
            whole = replace(target, block=None)
            return self._edited(whole, self.checkpoint.weight(whole).double())[start:stop].clone()

    def _applied(self, edit: Edit, weight: Tensor) -> Tensor:
        if edit.target.block is None:
            return edit.layer.apply(weight, edit.strength)
        start, stop = self.checkpoint.span(edit.target)
        changed = edit.layer.apply(weight[start:stop], edit.strength)
        return torch.cat([weight[:start], changed, weight[stop:]])

    def _part_of(self, edit: Edit, target: Target) -> Layer:
        if edit.target.block is not None:
            return edit.layer
        total = self.checkpoint.shapes[edit.target][0]
        return cut(edit.layer, *self.checkpoint.span(target), total)

    def _note(self, key: str, before: Tensor, wanted: Tensor, result: Tensor) -> None:
        held = self.checkpoint.held.get(key)
        target = replace(held.targets[0], block=None) if held else Target("", key)
        old = wide(before) if before.shape == wanted.shape else torch.zeros(())
        size, error = square_norm(wide(wanted) - old), square_norm(result.double() - wide(wanted))
        known = self.shares.get(target, Share(0.0, 0.0))
        self.shares[target] = Share(math.hypot(known.error, error**0.5), math.hypot(known.size, size**0.5))


def edits_of(
    checkpoint: Checkpoint, parts: Sequence[Weighted], unbake: bool = False, allow_partial: bool = False
) -> Edits:
    """Place every layer of the adapters in a checkpoint.

    Args:
        checkpoint: what they are baked into.
        parts: the adapters with their strengths; they act one after the other.
        unbake: take them out instead.
        allow_partial: leave out what finds no weight, and take adapters of another family as far as they fit.

    Raises:
        WrongArchitecture: an adapter of another family, or layers that find no weight of their shape.
        UnsupportedLayer: layers that cannot be taken out again, or weights that are no plain numbers.
        BadValues: NaN or infinity in an adapter.
        BadConfig: a strength that is no number, or nothing to do.
    """
    if checkpoint.quantised:
        raise quantised(checkpoint)
    placed: dict[Target, list[Edit]] = defaultdict(list)
    unplaced: list[str] = []
    for part in parts:
        check_strength(part.strength, part.text_encoder)
        refuse_bad_values(part.adapter, part.name)
        _refuse_family(part, checkpoint, allow_partial)
        for target, layer in part.adapter.layers.items():
            strength = part.at(target) * (-1 if unbake else 1)
            if unbake and not isinstance(layer, Additive):
                raise _for_good(part, target, layer)
            if strength and not _fits(target, layer, checkpoint):
                unplaced.append(f"{target.component}.{target.module}")
            elif strength:
                for one in (target, *_companions(target, part, layer, checkpoint)):
                    placed[replace(one, block=None)].append(Edit(one, layer, strength))
    if unplaced and not allow_partial:
        raise WrongArchitecture(
            f"{checkpoint.path.name}: {len(unplaced)} layers find no weight of their shape, first {unplaced[0]}; take "
            "the checkpoint that they were made for, or --allow-partial to leave them out",
            file=checkpoint.path,
            unplaced=unplaced,
        )
    if not placed:
        raise BadConfig(f"nothing to bake into {checkpoint.path.name}: no layer with a strength other than 0 fits it")
    return Edits(dict(placed), tuple(unplaced))


def _refuse_family(part: Weighted, checkpoint: Checkpoint, allow_partial: bool) -> None:
    family = part.adapter.architecture
    if family in (None, checkpoint.architecture) or allow_partial:
        return
    raise WrongArchitecture(
        f"{part.name} is made for {architecture(str(family)).name}, {checkpoint.path.name} is {checkpoint.model.title}"
        ": take a checkpoint of that family, or --allow-partial to bake what fits",
        file=checkpoint.path,
    )


def _for_good(part: Weighted, target: Target, layer: Layer) -> UnsupportedLayer:
    return UnsupportedLayer(
        f"{part.name}: {target.component}.{target.module} is a {type(layer).__name__} layer, whose effect depends on "
        "the weight that it met: it cannot be taken out again; go back to the checkpoint from before"
    )


def _fits(target: Target, layer: Layer, checkpoint: Checkpoint) -> bool:
    shape = checkpoint.shape(target)
    if shape is None:
        return False
    if _wider(layer):
        held = checkpoint.places.get(target)
        return held is not None and len(checkpoint.held[held.key].targets) == 1
    return agree(layer.shape, shape)


def _wider(layer: Layer) -> tuple[int, ...] | None:
    """Return the shape that a layer gives its weight, where that is another one."""
    widened = isinstance(layer, LoRA) and layer.reshape is not None
    return tuple(map(int, layer.reshape.tolist())) if widened else None  # type: ignore[union-attr]


def _companions(target: Target, part: Weighted, layer: Layer, checkpoint: Checkpoint) -> list[Target]:
    """Return the bias that a layer acts on too: the trainer multiplied what leaves the module."""
    bias = replace(target, parameter="bias")
    outgoing = isinstance(layer, IA3) and layer.absolute and not layer.on_input and target.parameter == "weight"
    return [bias] if outgoing and bias not in part.adapter.layers and checkpoint.shape(bias) else []


Seen = Callable[[int, int], None]  # told how many tensors of how many are written
