"""Whether an adapter fits the loaded models, and which of their weights its layers change. It knows names and shapes.

Layers are placed by the families' tables, whose original names are those of ComfyUI's live models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from ..convert.against import UNKNOWN, model_of
from ..convert.architectures import architecture, related
from ..convert.codec import family_of
from ..convert.keymap import keymap
from ..convert.parameters import PARAMETERS, block_heights
from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig, WrongArchitecture
from ..lora_core.layers import IA3, Layer, LoRA, OFTv2
from ..lora_core.layers.base import Sizes

TEXT = "text_encoders."  # what ComfyUI's LoRA names put before a text encoder's, and its models do not


@dataclass(frozen=True)
class Weights:
    """What the host says about the models that are wired."""

    shapes: Mapping[str, tuple[int, ...]]  # parameter, by the name in the live model -> shape
    denoiser: bool  # a MODEL is wired
    text_encoder: bool  # a CLIP is wired


@dataclass(frozen=True)
class Spot:
    """A parameter of a live model, or some of its rows."""

    name: str
    shape: tuple[int, ...]  # of the whole, or of these rows
    start: int | None = None  # first row; None: the whole parameter


@dataclass(frozen=True)
class Conflict:
    """A layer whose shape is not that of the weight it names."""

    name: str
    layer: Sizes
    weight: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Fit:
    """How an adapter meets the wired models. `unmatched` are names in the host's spelling."""

    made_for: str | None  # the adapter's family; None when it fits several alike
    family: str | None  # of the loaded denoiser; None when no table knows it or none is wired
    layers: Mapping[Spot, Layer]  # what to patch
    matched: int  # layers of the adapter that match
    unmatched: tuple[str, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    text_only: bool = False  # no layer belongs to a denoiser

    @property
    def total(self) -> int:
        """Number of layers that concern the wired models."""
        return self.matched + len(self.unmatched) + len(self.conflicts)

    @property
    def whole(self) -> bool:
        """Whether every layer fits."""
        return not self.unmatched and not self.conflicts

    @property
    def elsewhere(self) -> bool:
        """Whether the loaded denoiser is known to be of another family than the one that the layers were made for."""
        known = self.family is not None and self.made_for is not None
        return known and self.family != self.made_for and not self.text_only

    @property
    def related(self) -> bool:
        """Whether the two families share LoRAs."""
        return related(self.family, self.made_for)


def fit(adapter: Adapter, weights: Weights) -> Fit:
    """Compare an adapter's layers with the loaded models' parameters, by name and shape.

    Raises:
        UnsupportedLayer: the adapter's layers belong to no one model family.
    """
    loaded = family(weights)
    search = _Search(family_of(adapter), loaded, weights)
    layers: dict[Spot, Layer] = {}
    unmatched, conflicts, matched = [], [], 0
    for target, layer in adapter.layers.items():
        if not search.concerned(target):
            continue
        spot = search.spot(target, layer)
        if spot is None:
            unmatched.append(search.title(target))
        elif not _agrees(layer, spot.shape):
            conflicts.append(Conflict(search.title(target), layer.shape, spot.shape))
        else:
            layers[spot] = layer
            layers |= _bias_too(target, layer, search, adapter)
            matched += 1
    text_only = all(search.of_text(target) for target in adapter.layers)
    return Fit(adapter.architecture, loaded, layers, matched, tuple(unmatched), tuple(conflicts), text_only)


def refuse_misfit(adapter: Adapter, found: Fit, allow_partial: bool) -> None:
    """Raise one line when the adapter does not belong to the models, or only partly and that is not allowed.

    Variants of a model share LoRAs as far as layers fit. Of other families equal names and shapes prove nothing (FLUX.1
    and HunyuanVideo have them), so that even then it takes the person's word.

    Raises:
        WrongArchitecture: another family, or layers that have no place or another shape.
        BadConfig: nothing is wired that the adapter could change.
    """
    title = name_of(adapter)
    if found.elsewhere and not found.related and not (found.whole and allow_partial):
        made, loaded = families(found)
        anyway = ", or turn on allow_partial to apply it all the same" if found.whole else ""
        raise WrongArchitecture(
            f"{title} was made for {made}, the loaded model is {loaded}: choose a LoRA for {loaded}{anyway}"
        )
    if found.total == 0:
        parts = " and ".join(sorted({target.component for target in adapter.layers})) or "nothing"
        raise BadConfig(f"{title} changes {parts}, which is not wired to this node: wire the model that it changes")
    if not found.matched:
        raise WrongArchitecture(f"{title} fits none of the loaded model's modules: {_first_problem(found)}")
    if not found.whole and not allow_partial:
        other = f" (it was made for {families(found)[0]}, the loaded model is {families(found)[1]})"
        advice = "turn on allow_partial to apply the rest"
        raise WrongArchitecture(f"{title}: {_first_problem(found)}{other if found.elsewhere else ''}; {advice}")


def family(weights: Weights) -> str | None:
    """Return the id of the loaded denoiser's family; None when no MODEL is wired or no table knows it."""
    if not weights.denoiser:
        return None
    modules = {name: shape for name, shape in weights.shapes.items() if name.endswith((".weight", ".bias"))}
    found = model_of(modules, "the loaded model").architecture
    return None if found == UNKNOWN else found


def families(found: Fit) -> tuple[str, str]:
    """Return the names of the family that the adapter was made for and of the loaded one."""
    families = (found.made_for, found.family)
    made, loaded = (architecture(id).name if id else "a family without a table" for id in families)
    return made, loaded


def name_of(adapter: Adapter) -> str:
    """Return what to call an adapter in a message: its file's name where it has one."""
    return adapter.metadata.get("ss_output_name") or "This LoRA"


@dataclass(frozen=True)
class _Search:
    """Finds a target's parameter in the live models: by the loaded family's table, else by the adapter's own."""

    made_for: str
    loaded: str | None
    weights: Weights

    def concerned(self, target: Target) -> bool:
        """Tell whether the target's component belongs to one of the wired models."""
        return self.weights.text_encoder if self.of_text(target) else self.weights.denoiser

    def of_text(self, target: Target) -> bool:
        """Tell whether the target's component is a text encoder."""
        return any(prefix.startswith(TEXT) for prefix in self._prefixes(target))

    def title(self, target: Target) -> str:
        """Return a target's name in the live model, whether it is there or not."""
        bias = "" if target.parameter == "weight" else f".{target.parameter}"
        part = "" if target.block is None else f" (row block {target.block})"
        return f"{next(iter(self._stems(target)), target.module)}{bias}{part}"

    def spot(self, target: Target, layer: Layer) -> Spot | None:
        """Return the parameter, or the rows of it, that a target names; None when the models have none."""
        name = self._name(target)
        if name is None:
            return None
        shape = tuple(self.weights.shapes[name])
        if target.block is None or not shape:
            return Spot(name, shape)
        heights = self._heights(target, shape[0])
        if target.block >= len(heights):
            return None
        return Spot(name, (heights[target.block], *shape[1:]), sum(heights[: target.block]))

    def _name(self, target: Target) -> str | None:
        endings = [ending for ending, parameter in PARAMETERS if parameter == target.parameter]
        names = (f"{stem}{ending}" for stem in self._stems(target) for ending in endings)
        return next((name for name in names if name in self.weights.shapes), None)

    def _stems(self, target: Target) -> Iterator[str]:
        for prefix in self._prefixes(target):
            yield f"{prefix.removeprefix(TEXT)}.{target.module}"

    def _prefixes(self, target: Target) -> tuple[str, ...]:
        parts = (architecture(id).component(target.component) for id in (self.loaded, self.made_for) if id)
        return tuple(dict.fromkeys(prefix for part in parts if part for prefix in part.prefixes.get("comfy", ())))

    def _heights(self, target: Target, rows: int) -> tuple[int, ...]:
        modules = (keymap(id).module(target) for id in (self.loaded, self.made_for) if id)
        blocks = next((module.blocks for module in modules if module and module.blocks), ())
        return block_heights(blocks, rows)


def _bias_too(target: Target, layer: Layer, search: _Search, adapter: Adapter) -> dict[Spot, Layer]:
    """Return the same layer for the module's bias, if there is one, where the trainer multiplied what leaves it."""
    bias = replace(target, parameter="bias")
    outgoing = isinstance(layer, IA3) and layer.absolute and not layer.on_input and target.parameter == "weight"
    spot = search.spot(bias, layer) if outgoing and bias not in adapter.layers else None
    return {} if spot is None else {spot: layer}


def _agrees(layer: Layer, shape: tuple[int, ...]) -> bool:
    """Tell whether a layer fits a weight as a matrix: kernels are stored flat or not."""
    if isinstance(layer, LoRA) and layer.reshape is not None:
        wide = tuple(layer.reshape.tolist())
        fits = len(wide) == len(shape) and all(size <= most for size, most in zip(shape, wide, strict=True))
        return fits and _matrix(layer.shape) == _matrix(wide)
    out, inner = _matrix(layer.shape)
    if not shape or out not in (None, shape[0]):
        return False
    if isinstance(layer, OFTv2) and len(layer.upper) == 1:
        return prod(shape[1:]) % layer.block == 0
    if isinstance(layer, IA3):
        return inner is None or shape[1:2] == (inner,)
    return inner in (None, prod(shape[1:]))


def _matrix(shape: Sizes) -> tuple[int | None, int | None]:
    """Return a weight's rows and columns, None for what is not known."""
    known = [size for size in shape[1:] if size is not None]
    return shape[0], prod(known) if len(known) == len(shape) - 1 else None


def _first_problem(found: Fit) -> str:
    if found.unmatched:
        return (
            f"{len(found.unmatched)} of {found.total} layers have no place in the model, first {found.unmatched[0]!r}"
        )
    first = found.conflicts[0]
    layer = ", ".join("any" if size is None else str(size) for size in first.layer)
    sizes = f"[{layer}] where the model has {list(first.weight)}"
    return f"{len(found.conflicts)} of {found.total} layers have another shape, first {first.name!r} with {sizes}"
