"""Layers chosen by kind of module, part of the model or name of block, and scaled by names of blocks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig
from ..lora_core.layers import Layer
from ..lora_core.ops import scale
from ..lora_core.ops.parts import Weighted
from ..lora_core.ops.select import select
from .blocks import STAGES, TEXT_ENCODER, namer, names_of
from .keymap import Keymap, keymap
from .regroup import family_of, parted

KINDS = ("attention", "mlp", "convolution", "norm", "other")
PARTS = (scale.DENOISER, TEXT_ENCODER)
MIXED = frozenset({"proj_in", "proj_out", "scale_shift_table", "to_qkv_mlp_proj"})  # words of modules of no one kind
JOINED = ["attn", "to_out"]  # the end of FLUX.2's single blocks, for attention and MLP in one
ATTENTION = ("attn", "attention")  # a word holds one of these
MLP = ("mlp", "ff", "feed_forward", "densereludense")  # a word is one of these, or so with more joined by "_"
MLP_WORDS = frozenset({"ffn", "intermediate", "output", "channelwise", "gate_proj", "up_proj", "down_proj"})


def kinds_of(map: Keymap, target: Target) -> tuple[str, ...]:
    """Return the kind of a target's module, one of KINDS; of a weight that fuses several, those of its row blocks."""
    module = map.module(target)
    if module is None:
        return ("other",)
    names = module.diffusers if target.block is None else module.diffusers[target.block : target.block + 1]
    name = names_of(map.family.id).of(target).split(".")
    return tuple(dict.fromkeys(_kind(title.rpartition(".")[2], _inside(title, name), module.shape) for title in names))


def pick(
    adapter: Adapter,
    kinds: Sequence[str] = (),
    part: str | None = None,
    blocks: Collection[str] | None = None,
    drop: bool = False,
) -> Adapter:
    """Return the adapter with those layers alone that fit every condition.

    A weight that fuses modules of several kinds, such as the first of Flux's single blocks, is cut into its rows.

    Args:
        adapter: what to choose from.
        kinds: of modules, see KINDS; empty for all.
        part: "denoiser" or "text_encoder"; None for both.
        blocks: names of blocks; None for all.
        drop: leave out what fits, and keep the rest.

    Raises:
        BadConfig: an unknown kind or part, or nothing is left.
        UnsupportedLayer: a layer of several kinds that cannot be cut.
    """
    unknown = [kind for kind in kinds if kind not in KINDS] + [word for word in (part,) if word not in (None, *PARTS)]
    if unknown:
        raise BadConfig(f"{unknown[0]!r}: choose kinds from {', '.join(KINDS)}, a part from {' and '.join(PARTS)}")
    map, name = keymap(family_of(adapter)), namer(adapter)
    if kinds:
        adapter = parted(adapter, [target for target in adapter.layers if len(kinds_of(map, target)) > 1])

    def wanted(target: Target) -> bool:
        fits = part is None or (target.component == scale.DENOISER) == (part == scale.DENOISER)
        fits = fits and (not kinds or kinds_of(map, target)[0] in kinds)
        return (fits and (blocks is None or name(target) in blocks)) != drop

    told = None if blocks is None else sorted(blocks)
    return select(adapter, wanted, kinds=list(kinds), part=part, blocks=told, drop=drop)


def scaled(
    adapter: Adapter,
    strength: float = 1.0,
    text_encoder: float | None = None,
    blocks: Mapping[str, float] | None = None,
) -> Adapter:
    """Return the adapter at other strengths, those of blocks by their names (see `ops.scale.scale`)."""
    return scale.scale(adapter, strength, text_encoder, blocks, namer(adapter) if blocks else None)


def weighted(
    adapter: Adapter, strength: float, text_encoder: float | None, blocks: Mapping[str, float]
) -> list[Weighted]:
    """Return parts whose sum is what `scaled` should give: the layers apart by the strength of their block."""
    name = namer(adapter)
    groups: dict[float, dict[Target, Layer]] = {}
    for target, layer in adapter.layers.items():
        groups.setdefault(blocks.get(name(target), 1.0), {})[target] = layer
    encoder = strength if text_encoder is None else text_encoder
    return [
        Weighted(replace(adapter, layers=layers), strength * factor, encoder * factor)
        for factor, layers in groups.items()
    ]


def _inside(title: str, block: Sequence[str]) -> list[str]:
    """Return the words of a Diffusers name below its block, lower-case; none for parts outside repeated lists."""
    words = title.lower().split(".")
    if not block[-1].isdigit():
        return []
    if words[0] in STAGES:
        return words[len(block) :]
    return words[next(index for index, word in enumerate(words) if word.isdigit()) + 1 :]


def _kind(last: str, words: Sequence[str], shape: tuple[int, ...]) -> str:
    """Return the kind of a module from its name's last word, the words inside its block and its weight's shape."""
    if len(shape) == 1:
        return "norm"
    if last in MIXED or list(words[-2:]) == JOINED:
        return "other"
    if math.prod(shape[2:]) > 1:
        return "convolution"
    if any(part in word for word in words for part in ATTENTION):
        return "attention"
    if MLP_WORDS & set(words) or any(set(word.split("_")) & set(MLP) or word in MLP for word in words):
        return "mlp"
    return "convolution" if len(shape) > 2 else "other"
