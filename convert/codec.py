"""Tensors under a dialect's keys <-> an Adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import AmbiguousFormat, UnknownFormat, UnsupportedLayer
from ..lora_core.layers import Full, Layer, LoHa, LoKr, LoRA
from ..lora_core.ops.merge import rescaled
from .detect import Match
from .expressible import expressible
from .formats import WRITABLE, format_named
from .keymap import Keymap, Place, Spelling, keymap, layout_of, prefix_for
from .model import Format
from .regroup import family_of, in_layout, span, spanned, turned
from .scales import Scales
from .suffixes import COMMON
from .tensors import Context, build, roles


def decode(
    tensors: Mapping[str, Tensor], match: Match, metadata: Mapping[str, str], file: str | Path | None = None
) -> Adapter:
    """Return the adapter that a file's tensors stand for.

    Scales come from alpha tensors, else from the header (Diffusers' `lora_adapter_metadata`, PEFT's config), else
    they are 1. Keys that belong to no layer become `extras`.

    Raises:
        AmbiguousFormat: several families fit alike and would put the layers in different places.
        UnknownFormat: a layer lacks a part.
    """
    _refuse_ambiguity(match, file)
    _refuse_incomplete(match, file)
    map = keymap(match.candidates[0])
    scales = Scales.read(metadata)
    layers: dict[Target, Layer] = {}
    for target, keys in match.layers.items():
        place = _factors(match, keys)
        parts = {role: tensors[key] for role, key in keys.items()}
        layer = build(parts, _context(map, target, keys, place, scales))
        if layout_of(map.family, place.spelling.naming) == "diffusers":
            layer = turned(target, layer, map)
        layers.update(span(target, layer, place.blocks, map) if place.blocks else {target: layer})
    _scale_biases(layers, match)
    extras = {key: tensors[key] for key in (*match.unknown, *match.riders)}
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
    written = _Written(row, map)
    tensors: dict[str, Tensor] = {}
    for component in dict.fromkeys(target.component for target in adapter.layers):
        own = {target: layer for target, layer in adapter.layers.items() if target.component == component}
        layers = in_layout(own, map, layout_of(map.family, written.naming(component)))
        for target, layer in layers.items():
            tensors.update(written.keys(target, expressible(target, layer, layers, row, map)))
    return _with_extras(tensors, adapter)


def encode_like(adapter: Adapter, match: Match) -> dict[str, Tensor]:
    """Return an adapter's tensors under the keys they were read from: the inverse of `decode`.

    A scale other than 1 that the file had no tensor for is folded into `up`.
    """
    map = keymap(match.candidates[0])
    tensors: dict[str, Tensor] = {}
    for target, keys in match.layers.items():
        place = _factors(match, keys)
        layer = spanned(target, adapter.layers, place.blocks, map) if place.blocks else adapter.layers.get(target)
        if layer is None:
            continue
        if layout_of(map.family, place.spelling.naming) == "diffusers":
            layer = turned(target, layer, map)
        silent = "folded"
        if match.format == "peft" and isinstance(layer, (LoHa, LoKr)):
            _refuse_another_strength(target, layer, adapter, map)
            silent = "config"
        parts = roles(layer, target.parameter, "tensor" if "alpha" in keys else silent)
        for role, tensor in _as_read(parts, match, adapter, target, layer).items():
            key = keys.get(role) or map.spell(target, role, place.spelling, match.positions)
            if key is None:
                raise _unspeakable(target, role, place.spelling)
            tensors[key] = tensor
    return _with_extras(tensors, adapter)


def _with_extras(tensors: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    twice = next((key for key in adapter.extras if key in tensors), None)
    if twice is not None:
        raise UnsupportedLayer(f"{twice}: a tensor that no table knows has the name of a layer's. Take it out")
    return {**tensors, **adapter.extras}


@dataclass(frozen=True)
class _Written:
    """How one family's layers are written in one dialect."""

    row: Format
    map: Keymap

    def naming(self, component: str) -> str:
        first, family = self.row.namings[0], self.map.family
        kohya = family.kohya_naming if self._inside_denoiser(component) else "diffusers"
        return {"family": kohya, "aitoolkit": family.aitoolkit[1]}.get(first, first)

    def keys(self, target: Target, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a layer's tensors by key.

        Raises:
            UnsupportedLayer: the dialect has no name for the module.
        """
        spelling = self.spelling(target)
        whole = replace(target, block=None) if "oft_blocks" in parts else target
        block = target.block if "oft_blocks" in parts else None
        tensors: dict[str, Tensor] = {}
        for role, tensor in parts.items():
            ways = (replace(spelling, suffixes=group) for group in self._groups(role))
            keys = (self.map.spell(whole, role, way, block=block if role == "oft_blocks" else None) for way in ways)
            key = next((key for key in keys if key is not None), None)
            if key is None:
                raise _unspeakable(target, role, spelling)
            tensors[key] = tensor
        return tensors

    def _groups(self, role: str) -> tuple[str, ...]:
        """Return the groups of suffixes that may have the word for a role, the one to write first."""
        if role == "magnitude" and "bias" not in self.row.kinds:  # lora_magnitude_vector is PEFT's and Diffusers' alone
            return (COMMON,)
        return (*self.row.suffixes, COMMON)

    def spelling(self, target: Target) -> Spelling:
        part = self.map.family.component(target.component)
        kinds = self._kinds()
        kind = next((kind for kind in kinds if part and prefix_for(part, kind) is not None), None)
        if part is None or kind is None:
            raise UnsupportedLayer(
                f"{target.component}: the {self.row.id} dialect has no prefix for it in {self.map.family.name}. "
                f"Choose another --to"
            )
        joiner = next(prefix.joiner for prefix in self.map.spellings if prefix.prefixes == kind)
        return Spelling(kind, prefix_for(part, kind) or "", joiner, self.naming(target.component))

    def _inside_denoiser(self, component: str) -> bool:
        """Tell whether kohya files name a component's modules as the denoiser's: it is the denoiser or a part of it."""
        whole, part = (self.map.family.component(id) for id in ("denoiser", component))
        first = prefix_for(whole, "kohya") if whole else None
        return bool(part and first and (prefix_for(part, "kohya") or "").startswith(first))

    def _kinds(self) -> tuple[str, ...]:
        """Return the families of prefixes to write, the first that a component has."""
        denoiser = self.map.family.component("denoiser")
        if self.row.prefixes == ("aitoolkit",):
            return (self.map.family.aitoolkit[0],)
        first = self.row.prefixes[0]
        if denoiser is not None and len(self.row.prefixes) > 1 and prefix_for(denoiser, first) is None:
            return self.row.prefixes[-1:]  # the dialect writes this family in its other form
        return self.row.prefixes


def _factors(match: Match, keys: Mapping[str, str]) -> Place:
    """Return the place of a layer's factors, or of whatever it has: the spelling that names its dialect."""
    places = [match.places[key] for key in keys.values()]
    return next((place for place in places if place.spelling.suffixes), places[0])


def _context(map: Keymap, target: Target, keys: Mapping[str, str], place: Place, scales: Scales) -> Context:
    prefix, names = map.words(target)

    def alpha_of(rank: int) -> float:
        return scales.alpha(prefix, names, rank)

    return Context(
        shape=map.shape(target),
        alpha_of=alpha_of,
        settings=scales.settings(prefix),
        kohya_oft=place.spelling.prefixes == "oft",
        peft_dora="dora_scale" not in keys.get("magnitude", ""),
    )


def _scale_biases(layers: dict[Target, Layer], match: Match) -> None:
    """Put the scale of a LoRA layer on the bias that belongs to it (PEFT's `lora_bias`)."""
    for target, keys in match.layers.items():
        weight = layers.get(replace(target, parameter="weight"))
        layer = layers.get(target)
        if "up_bias" in keys and isinstance(weight, LoRA) and isinstance(layer, Full):
            layers[target] = replace(layer, scale=weight.scale)


def _as_read(
    parts: Mapping[str, Tensor], match: Match, adapter: Adapter, target: Target, layer: Layer
) -> dict[str, Tensor]:
    """Return a layer's tensors under the roles that the file had for them."""
    found, keys = dict(parts), match.layers[target]
    if "up_bias" in keys and isinstance(layer, Full):
        beside = replace(target, parameter="weight")
        weight = adapter.layers.get(beside)
        stays = isinstance(weight, LoRA) and "alpha" in match.layers.get(beside, {})  # else it is folded into `up`
        scale = layer.scale / weight.scale if stays and isinstance(weight, LoRA) else layer.scale
        return {"up_bias": rescaled(layer.diff, scale)}
    if "embedding_down" in keys and isinstance(layer, LoRA):
        return {"embedding_down": found["up"].T.contiguous(), "embedding_up": found["down"].T.contiguous()}
    if "diff_m" in keys:
        return {"diff_m": found["diff"]}
    return found


def _refuse_another_strength(target: Target, layer: LoHa | LoKr, adapter: Adapter, map: Keymap) -> None:
    """Raise where PEFT's configuration, which is kept as it is, says another alpha than the layer has."""
    rank = layer.rank or 1
    said = Scales.read(adapter.metadata).alpha(*map.words(target), rank)
    if layer.alpha != said:
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: PEFT keeps the strength of {type(layer).__name__} layers in its "
            f"configuration, which is not written here. Choose --to kohya or comfy"
        )


def _unspeakable(target: Target, role: str, spelling: Spelling) -> UnsupportedLayer:
    what = f"the {spelling.naming} names there with the tensor {role!r}"
    return UnsupportedLayer(f"{target.component}.{target.module}: has no word among {what}. Choose another --to")


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
