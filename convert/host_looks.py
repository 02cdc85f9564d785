"""A file's layers as hosts see them: how they are spelled, their algorithms, and what is special about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..lora_core.adapter import Target
from .algorithms import Shape, algorithm_of
from .architectures import architecture
from .detect import Match, Shapes
from .host_model import Look
from .host_words import RECOGNISED
from .keymap import Keymap, Place, grouped, keymap
from .scales import Scales
from .suffixes import COMMON

ROLE_MARKS = {  # beside the name of the layer's algorithm
    **{"mid": "tucker", "lokr_t2": "lokr-tucker", "hada_t1": "loha-tucker", "alpha": "alpha", "scalar": "scalar"},
    **{"diff_b": "bias", "up_bias": "lora-bias", "diff_m": "modulation", "w_norm": "norm", "b_norm": "norm"},
    **{"reshape": "reshape", "boft_R": "boft"},
}


@dataclass(frozen=True)
class Seen:
    """A file's layers as those of one family."""

    family: str
    layers: Mapping[Target, Mapping[str, str]]
    places: Mapping[str, Place]
    looks: Mapping[Target, Look]
    marks: frozenset[str]
    scale: float  # that most layers have from the header alone, 1 where none has one


def seen(family: str, match: Match, shapes: Shapes, metadata: Mapping[str, str], alphas: Mapping[str, float]) -> Seen:
    """Return a file's layers as those of one of the families that it fits.

    Args:
        family: the family's id, one of the match's candidates.
        match: what the file's keys stand for.
        shapes: every key with its tensor's shape.
        metadata: the file's header.
        alphas: the values of alpha tensors by key, where they were read.
    """
    map = keymap(family)
    places = match.places
    if family != match.candidates[0]:
        places = {key: place for key in match.places if (place := map.place(key, match.positions))}
    layers = grouped(places)
    scale = _header_scale(map, layers, shapes, metadata)
    forms = frozenset(mark for mark, keys in RECOGNISED.items() if all(key in shapes for key in keys))
    looks = {target: _look(map, layers, places, target, shapes, alphas, forms) for target in layers}
    marks = frozenset(_file_marks(match, family, looks, metadata, scale))
    if _mixed_attention_alphas(map, places, alphas):
        marks |= {"mixed-attention-alphas"}
    return Seen(family, layers, places, looks, marks, scale)


def _look(
    map: Keymap,
    layers: Mapping[Target, Mapping[str, str]],
    places: Mapping[str, Place],
    target: Target,
    shapes: Shapes,
    alphas: Mapping[str, float],
    forms: frozenset[str],
) -> Look:
    found = [places[key] for key in layers[target].values()]
    spelling = next((place.spelling for place in found if place.spelling.suffixes != COMMON), found[0].spelling)
    marks = forms | frozenset(_marks(map, layers, places, target, shapes, alphas))
    module = map.module(target)
    if module is None or target.block is None:
        names = module.diffusers if module else ()
    else:
        names = module.diffusers[target.block : target.block + 1]
    return Look(map.family.id, target.component, (target.module, *names), spelling, marks)


def _marks(
    map: Keymap,
    layers: Mapping[Target, Mapping[str, str]],
    places: Mapping[str, Place],
    target: Target,
    shapes: Shapes,
    alphas: Mapping[str, float],
) -> Iterator[str]:
    """Yield a layer's algorithm and what is special about it: words that the facts and the cautions ask for."""
    roles = layers[target]
    algorithm = algorithm_of(roles)
    yield algorithm.id if algorithm else "lora"
    yield from (mark for role, mark in ROLE_MARKS.items() if role in roles)
    yield from _magnitude_marks(roles, places, shapes)
    beside = layers.get(replace(target, parameter="bias" if target.parameter == "weight" else "weight"), {})
    if "w_norm" in roles and not beside:
        yield "norm-alone"
    if "diff_b" in roles and "diff" not in beside:
        yield "bias-beside" if beside else "bias-alone"
    factors, weight = [shapes.get(roles.get(role, "")) for role in ("down", "up")], map.shape(target)
    if weight is not None and len(weight) == 4 and any(factor is not None and len(factor) == 2 for factor in factors):
        yield "flat-conv"
    if len(shapes.get(roles.get("oft_blocks", "")) or ()) == 3:  # with four dimensions it is BOFT
        yield from ("plain-rescale" for role in roles if role == "rescale")
        if alphas.get(roles.get("alpha", ""), 0) > 0:
            yield "constraint"
    if any(places[key].spelling.name not in ("", "default") for key in roles.values()):
        yield "named"


def _magnitude_marks(
    roles: Mapping[str, str], places: Mapping[str, Place], shapes: Mapping[str, Shape]
) -> Iterator[str]:
    if "magnitude" not in roles:
        return
    key = roles["magnitude"]
    shape = shapes[key]
    if places[key].spelling.suffixes != COMMON:
        yield "magnitude-vector"
        return
    yield "dora-scale"
    if shape and (len(shape) == 1 or shape[0] != 1):
        yield "output-magnitude"


def _file_marks(
    match: Match, family: str, looks: Mapping[Target, Look], metadata: Mapping[str, str], scale: float
) -> Iterator[str]:
    spellings = {look.spelling for look in looks.values()}
    prefixes = {spelling.prefixes for spelling in spellings}
    block_names = {spelling.naming for spelling in spellings if spelling.prefix == "lora_unet"}
    if {"original", "diffusers"} <= block_names:
        yield "sgm-and-diffusers"
    if {"kohya"} < prefixes:
        yield "kohya-and-others"
    strays = (*match.unknown, *match.riders)
    if strays and ("kohya" in prefixes or any("lora" not in key for key in strays)):
        yield "stray-keys"
    if any(key.startswith("bundle_emb.") for key in strays):
        yield "embedding"
    if match.incomplete:
        yield "incomplete"
    if scale != 1:
        yield "scale-in-header"
    if family == "sdxl" and metadata and not metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        yield "untagged-sdxl"
        if metadata.get("modelspec.architecture") != architecture("sdxl").metadata["modelspec.architecture"]:
            yield "untagged-sdxl-modelspec"


def _mixed_attention_alphas(map: Keymap, places: Mapping[str, Place], alphas: Mapping[str, float]) -> bool:
    """Tell whether an attention layer of a kohya file has another alpha than most layers of its component."""
    kohya = {
        place.target: alphas[key]
        for key, place in places.items()
        if key in alphas and place.role == "alpha" and place.spelling.prefixes == "kohya"
    }
    counts: dict[str, Counter[float]] = {}
    for target, alpha in kohya.items():
        counts.setdefault(target.component, Counter())[alpha] += 1
    common = {component: count.most_common(1)[0][0] for component, count in counts.items()}
    return any(
        alpha != common[target.component] and map.name(target, "attn-processor") is not None
        for target, alpha in kohya.items()
    )


def _header_scale(
    map: Keymap, layers: Mapping[Target, Mapping[str, str]], shapes: Shapes, metadata: Mapping[str, str]
) -> float:
    """Return the scale that most layers have from the header alone, 1 where none has one."""
    alphas = _header_alphas(map, layers, shapes, metadata)
    scales = Counter(alpha / rank for alpha, rank in alphas.values() if alpha != rank)
    return scales.most_common(1)[0][0] if scales else 1.0


def header_alphas(match: Match, shapes: Shapes, metadata: Mapping[str, str]) -> dict[Target, tuple[float, int]]:
    """Return (alpha, rank) of the layers without an alpha tensor: what the header says, else alpha = rank."""
    return _header_alphas(keymap(match.candidates[0]), match.layers, shapes, metadata)


def _header_alphas(
    map: Keymap, layers: Mapping[Target, Mapping[str, str]], shapes: Shapes, metadata: Mapping[str, str]
) -> dict[Target, tuple[float, int]]:
    scales = Scales.read(metadata)
    found: dict[Target, tuple[float, int]] = {}
    for target, roles in layers.items():
        down = shapes.get(roles.get("down", ""))
        rank = down[0] if down else None
        if rank and rank > 0 and "alpha" not in roles:
            found[target] = (scales.alpha(*map.words(target), rank), rank)
    return found
