"""Whether an adapter fits a loaded model, decided before anything is patched. Knows tensors and names, no host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor

from ..convert.against import UNKNOWN, model_of
from ..convert.architectures import architecture
from ..convert.codec import encode, family_of
from ..convert.detect import shape_of
from ..convert.keymap import keymap
from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig, WrongArchitecture

DENOISER = "denoiser"


@dataclass(frozen=True)
class Weights:
    """What the host says about the models that are wired."""

    names: Mapping[str, Any]  # names that its LoRA loader knows -> weight, or (weight, rows) for a part of a fused one
    shapes: Mapping[str, tuple[int, ...]]  # weight -> shape
    denoiser: bool  # a MODEL is wired
    text_encoder: bool  # a CLIP is wired

    def concerns(self, target: Target) -> bool:
        """Tell whether the target's component belongs to one of the wired models."""
        return self.denoiser if target.component == DENOISER else self.text_encoder


@dataclass(frozen=True)
class Conflict:
    """A layer whose shape is not that of the weight it names."""

    name: str
    layer: tuple[int | None, ...]
    weight: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fit:
    """How an adapter meets the wired models. `matched` and `unmatched` are names in the host's spelling."""

    family: str | None  # of the loaded denoiser; None when no table knows it or none is wired
    tensors: Mapping[str, Tensor]  # of the layers that match, under the host's names
    matched: tuple[str, ...]
    unmatched: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def total(self) -> int:
        """Number of layers that concern the wired models."""
        return len(self.matched) + len(self.unmatched) + len(self.conflicts)


def fit(adapter: Adapter, weights: Weights) -> Fit:
    """Compare an adapter's layers with the loaded models' weights, by name and shape.

    Raises:
        UnsupportedLayer: ComfyUI's names cannot express a layer.
    """
    layers = {target: layer for target, layer in adapter.layers.items() if weights.concerns(target)}
    matched: dict[str, Tensor] = {}
    names, unmatched, conflicts = [], [], []
    tensors = encode(replace(adapter, layers=layers, extras={}), "comfy") if layers else {}
    for group in _groups(tensors, family_of(adapter)).values():
        name = _known(group, weights.names)
        if name is None:
            unmatched.append(next(iter(group)))
            continue
        conflict = _conflict(name, group, weights, family_of(adapter))
        if conflict:
            conflicts.append(conflict)
            continue
        names.append(name)
        matched |= group
    return Fit(family(weights), matched, tuple(names), tuple(unmatched), tuple(conflicts))


def refuse_misfit(adapter: Adapter, found: Fit, allow_partial: bool) -> None:
    """Raise one line when the adapter does not belong to the models, or only partly and that is not allowed.

    Raises:
        WrongArchitecture: another family, or layers that have no place or another shape.
        BadConfig: nothing is wired that the adapter could change.
    """
    title = name_of(adapter)
    if found.family and adapter.architecture and found.family != adapter.architecture:
        made, loaded = (architecture(id).name for id in (adapter.architecture, found.family))
        raise WrongArchitecture(
            f"{title} was made for {made}, the loaded model is {loaded}: choose a LoRA for {loaded}"
        )
    if found.total == 0:
        parts = " and ".join(sorted({target.component for target in adapter.layers})) or "nothing"
        raise BadConfig(f"{title} changes {parts}, which is not wired to this node: wire the model that it changes")
    if not found.matched:
        raise WrongArchitecture(f"{title} fits none of the loaded model's modules: {_first_problem(found)}")
    if (found.unmatched or found.conflicts) and not allow_partial:
        advice = "turn on allow_partial to apply the rest"
        raise WrongArchitecture(f"{title}: {_first_problem(found)}; {advice}")


def family(weights: Weights) -> str | None:
    """Return the id of the loaded denoiser's family; None when no MODEL is wired or no table knows it."""
    if not weights.denoiser:
        return None
    found = model_of(weights.shapes, "the loaded model").architecture
    return None if found == UNKNOWN else found


def name_of(adapter: Adapter) -> str:
    """Return what to call an adapter in a message: its file's name where it has one."""
    return adapter.metadata.get("ss_output_name") or "This LoRA"


def _groups(tensors: Mapping[str, Tensor], id: str) -> dict[Any, dict[str, Tensor]]:
    """Return the tensors of each layer; a key that the tables do not place is a group of its own."""
    groups: dict[Any, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        place = keymap(id).place(key)
        groups[place.target if place else key][key] = tensor
    return groups


def _known(group: Mapping[str, Tensor], names: Mapping[str, Any]) -> str | None:
    """Return the host's name for a layer's module: the beginning, up to a dot, of each of its keys."""
    stem = next(iter(group))
    while "." in stem:
        stem = stem.rpartition(".")[0]
        if stem in names:
            return stem
    return None


def _conflict(name: str, group: Mapping[str, Tensor], weights: Weights, id: str) -> Conflict | None:
    places = {key: keymap(id).place(key) for key in group}
    roles = {place.role: tuple(group[key].shape) for key, place in places.items() if place}
    shape, named = shape_of(roles), weights.names[name]
    weight = weights.shapes.get(named) if isinstance(named, str) else None  # a part of a fused weight has no shape here
    if shape is None or weight is None:
        return None
    return None if _matrix(shape) == _matrix(weight) else Conflict(name, tuple(shape), weight)


def _matrix(shape: Sequence[int | None]) -> tuple[int, int]:
    """Return a weight's rows and columns as a matrix: ComfyUI reshapes, and its own trainer stores kernels flat."""
    sizes = [size or 0 for size in shape]
    return sizes[0], prod(sizes[1:])


def _first_problem(found: Fit) -> str:
    if found.unmatched:
        return (
            f"{len(found.unmatched)} of {found.total} layers have no place in the model, first {found.unmatched[0]!r}"
        )
    first = found.conflicts[0]
    sizes = f"{list(first.layer)} where the model has {list(first.weight)}"
    return f"{len(found.conflicts)} of {found.total} layers have another shape, first {first.name!r} with {sizes}"
