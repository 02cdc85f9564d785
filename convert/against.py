"""A model seen through its header: which family it is, which modules it has, and whether an adapter fits them.

Only names and shapes are read, never a weight. Names are generated from the families' tables and looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..lora_core import store
from ..lora_core.adapter import Target
from ..lora_core.errors import BadConfig
from .algorithms import shape_of
from .architectures import architecture, related
from .detect import Match, Shapes, agree
from .keymap import keymap
from .parameters import block_heights, model_files, parameters
from .patterns import promising
from .suffixes import looks_like_layer

UNKNOWN = "unknown"  # the architecture of a model whose family has no table
KNOWN_ENOUGH = 0.9  # of a model's denoiser tensors, the share that its family's table must know
WRAPPERS = (  # before a denoiser's names
    *("model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "prior."),
)


@dataclass(frozen=True)
class Model:
    """What an adapter can be held against: a family and its modules' shapes."""

    name: str  # its path, or what a host calls it
    architecture: str  # family id, or UNKNOWN
    title: str  # the family's name for people
    shapes: Mapping[Target, tuple[int, ...]]  # per parameter ("weight" or "bias")

    @property
    def components(self) -> frozenset[str]:
        """Ids of the components that are in it."""
        return frozenset(target.component for target in self.shapes)


def read_model(path: str | Path) -> Model:
    """Read a checkpoint's or a Diffusers folder's headers.

    Raises:
        FileProblem: nothing readable is there.
        BadConfig: it holds a LoRA, or nothing that could be a model.
    """
    files = model_files(Path(path))
    shapes = {before + key: shape for file, before in files for key, shape in store.header(file).shapes.items()}
    return model_of(shapes, str(path))


def model_of(shapes: Mapping[str, Sequence[int]], name: str) -> Model:
    """Return the model that a state dict's names and shapes belong to.

    Args:
        shapes: as in a checkpoint, a UNet alone, a Diffusers folder (each key with its subfolder in front), or a live
            ComfyUI model ("diffusion_model....weight", "clip_l.transformer....weight").
        name: its path, or what to call it.

    Raises:
        BadConfig: it holds a LoRA, or nothing that could be a model.
    """
    _refuse_other(list(shapes), name)
    wrapped = {key: shape for key, shape in shapes.items() if key.startswith(WRAPPERS)}
    denoiser = wrapped or shapes
    id = _family(denoiser)
    if id is None or not _known_enough(id, denoiser):
        return Model(name, UNKNOWN, UNKNOWN, {})
    return model_as(id, shapes, name)


def model_as(id: str, shapes: Mapping[str, Sequence[int]], name: str) -> Model:
    """Return the model of a family that is known to be the one that these names and shapes belong to."""
    return Model(name, id, architecture(id).name, _both_ways(id, _targets(id, shapes)))


def compare(match: Match, shapes: Shapes, model: Model) -> dict[str, Any]:
    """Return how an adapter fits a model, as `info --json` prints it.

    Args:
        match: what the adapter's keys stand for.
        shapes: the adapter's tensors.
        model: what it is held against.
    """
    layers = _layer_shapes(match, shapes, model)
    unmatched = [target for target in layers if target not in model.shapes]
    conflicts = [
        target for target, shape in layers.items() if target in model.shapes and not agree(shape, model.shapes[target])
    ]
    total = len(_modules(layers))
    matched = total - len(_modules([*unmatched, *conflicts]))
    verdict = _verdict(match, model, matched, total)
    return {
        "model": model.name,
        "architecture": model.architecture,
        "matched": matched,
        "total": total,
        "verdict": verdict,
        "unmatched": [_name(target) for target in unmatched],
        "shape_conflicts": [_conflict(target, layers[target], model.shapes[target]) for target in conflicts],
        "next": _next(verdict, match, model, unmatched, conflicts),
    }


def _targets(id: str, shapes: Mapping[str, Sequence[int]]) -> dict[Target, tuple[int, ...]]:
    known = parameters(id)
    found: dict[Target, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key in known:
            found.update(known[key].shapes(shape))
    return found


def _likeness(id: str, found: Mapping[Target, tuple[int, ...]]) -> tuple[int, int]:
    """Count the weights of the right kind (linear, convolution, norm), then those of the released model's shape."""
    expected = [(shape, keymap(id).shape(target)) for target, shape in found.items()]
    kinds = sum(wanted is not None and len(shape) == len(wanted) for shape, wanted in expected)
    return kinds, sum(shape == wanted for shape, wanted in expected)


def _family(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return the family that knows the most of a denoiser's tensors; their shapes break ties."""
    most, tied = 1, dict[str, Mapping[Target, tuple[int, ...]]]()
    keys = [key for key in shapes if key.endswith((".weight", ".bias"))]  # what `promising` counts
    for id, at_most in promising([_unwrapped(key) for key in keys]):
        if at_most < most:
            break
        names = parameters(id)
        known = sum(key in names for key in keys)
        if known > most:
            tied.clear()
        if known >= most:
            most = known
            tied[id] = _targets(id, shapes)
    return max(tied, key=lambda id: _likeness(id, tied[id])) if tied else None


def _unwrapped(key: str) -> str:
    return next((key[len(prefix) :] for prefix in WRAPPERS if key.startswith(prefix)), key)


def _known_enough(id: str, denoiser: Iterable[str]) -> bool:
    names, keys = parameters(id), [key for key in denoiser if key.endswith((".weight", ".bias"))]
    return sum(key in names for key in keys) >= KNOWN_ENOUGH * len(keys)


def _both_ways(id: str, shapes: Mapping[Target, tuple[int, ...]]) -> dict[Target, tuple[int, ...]]:
    """Add the row blocks of the fused weights that a model holds, and the fused weights of the row blocks."""
    map, found = keymap(id), dict(shapes)
    for target, shape in shapes.items():
        module = map.module(target)
        if module is None or not module.blocks:
            continue
        blocks = [replace(target, block=block) for block in range(len(module.blocks))]
        if target.block is None and shape:
            heights = block_heights(module.blocks, shape[0])
            found |= {part: (height, *shape[1:]) for part, height in zip(blocks, heights, strict=False)}
        elif target.block is not None and all(part in shapes for part in blocks):
            found[replace(target, block=None)] = (sum(shapes[part][0] for part in blocks), *shape[1:])
    return found


def _refuse_other(keys: Sequence[str], name: str) -> None:
    if 2 * sum(looks_like_layer(key) for key in keys) > len(keys):
        raise BadConfig(
            f"{Path(name).name}: is a LoRA itself, not a model. Name a checkpoint or a Diffusers folder", file=name
        )
    if not any(key.endswith(".weight") for key in keys):
        raise BadConfig(
            f"{Path(name).name}: holds no model's weights. Name a checkpoint or a Diffusers folder", file=name
        )


def _layer_shapes(match: Match, shapes: Shapes, model: Model) -> dict[Target, list[int | None]]:
    """Return the shape of each layer, placed by the model's family where that is one of the candidates."""
    family = model.architecture if model.architecture in match.fits else match.candidates[0]
    roles: dict[Target, dict[str, Any]] = {}
    for key, place in match.places.items():
        other = place if family == match.candidates[0] else keymap(family).place(key, match.positions)
        roles.setdefault((other or place).target, {})[place.role] = shapes[key]
    return {target: shape_of(parts) or [] for target, parts in roles.items()}


def _modules(targets: Iterable[Target]) -> set[tuple[str, str]]:
    return {(target.component, target.module) for target in targets}


def _verdict(match: Match, model: Model, matched: int, total: int) -> str:
    if not matched or not _meant(match, model):
        return "wrong-architecture"
    return "fits" if matched == total else "partial"


def _meant(match: Match, model: Model) -> bool:
    """Tell whether the model's family is one that the LoRA may be for; equal names and sizes alone prove nothing."""
    kin = any(related(model.architecture, id) for id in match.candidates)
    return model.architecture in match.fits and kin


def _next(verdict: str, match: Match, model: Model, unmatched: Sequence[Target], conflicts: Sequence[Target]) -> str:
    """Say in one sentence what the verdict means for the person."""
    adapter = " or ".join(architecture(id).name for id in match.candidates)
    if not _meant(match, model):
        title = f"{model.title} model" if model.title != UNKNOWN else "model of a family that is not known here"
        return f"a LoRA for {adapter} on a {title}: load a {adapter} checkpoint, or a LoRA made for this model"
    if verdict == "fits":
        return "load it: every layer finds its module in this model"
    absent = sorted({target.component for target in unmatched} - model.components)
    if absent and not conflicts and all(target.component in absent for target in unmatched):
        return f"the model holds no {' and '.join(absent)}, so those layers could not be checked; all others fit"
    if not unmatched:
        return f"{len(conflicts)} layers have other sizes than the model's modules: use the model it was trained on"
    left = len(unmatched) + len(conflicts)
    return f"{left} layers would be left out: use the model it was trained on, or expect a weaker effect"


def _name(target: Target) -> str:
    return f"{target.component}.{target.module}" + (".bias" if target.parameter == "bias" else "")


def _conflict(target: Target, shape: Sequence[int | None], expected: tuple[int, ...]) -> str:
    return f"{_name(target)}: {_size(shape)} in the LoRA, {_size(expected)} in the model"


def _size(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
