"""The operations that a recipe may name, each with the function that does it again.

A function takes the inputs, then the parameters under the names of the recipe, with the types of its signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lora_core.adapter import Adapter
from ..lora_core.errors import BadConfig
from ..lora_core.ops import bake, provenance
from ..lora_core.ops import extract as extraction
from ..lora_core.ops import merge as merging
from ..lora_core.ops import prune as pruning
from ..lora_core.ops import rescale as rescaling
from ..lora_core.ops import resize as resizing
from ..lora_core.ops.methods import Settings
from . import difference, selection
from .baked_files import Baked
from .baked_files import bake as bake_files
from .checkpoint import open_checkpoint
from .regroup import alike

Unwritten = Callable[[Path, bool], Baked]  # what writes a model to a place, over one that is there if told so
Parts = list[dict[str, Any]]  # of a merge, in the order of its inputs: "source", "strength", perhaps "text_encoder"


@dataclass(frozen=True)
class Operation:
    """What a recipe's "method" stands for."""

    methods: tuple[str, ...]
    run: Callable[..., Adapter | Unwritten]
    models: int = 0  # inputs, the first ones, that are models: it wants their places, not what is in them

    def wants_place(self, told: Mapping[str, Any], index: int, count: int) -> bool:
        """Tell whether an input is a model: of a merge's, the base, which comes last."""
        return index < self.models or (told.get("base") is not None and index == count - 1)


def _only(inputs: Sequence[Adapter]) -> Adapter:
    if len(inputs) != 1:
        raise BadConfig(f"the recipe gives {len(inputs)} inputs to an operation on one; get another copy of it")
    return inputs[0]


def _weighted(inputs: Sequence[Adapter], parts: Parts, apart: bool = False) -> list[merging.Weighted]:
    """Return the adapters with their strengths; `apart` where they are not added up, so that no layout is shared."""
    if len(inputs) != len(parts):
        raise BadConfig(f"the recipe has {len(parts)} strengths for {len(inputs)} inputs; get another copy of it")
    numbers = [(part.get("strength", 1.0), part.get("text_encoder")) for part in parts]
    if not all(type(one) in (int, float) and type(two) in (int, float, type(None)) for one, two in numbers):
        raise BadConfig("the recipe has a strength that is no number; get another copy of it")
    return [
        merging.Weighted(adapter, one, two, str(part.get("source", "")))
        for adapter, (one, two), part in zip(inputs if apart else alike(inputs), numbers, parts, strict=True)
    ]


def _scale(
    inputs: Sequence[Adapter],
    strength: float,
    text_encoder: float | None,
    blocks: dict[str, float] | None = None,
) -> Adapter:
    return selection.scaled(_only(inputs), strength, text_encoder, blocks)


def _select(
    inputs: Sequence[Adapter], kinds: list[str], part: str | None, blocks: list[str] | None, drop: bool
) -> Adapter:
    return selection.pick(_only(inputs), kinds, part, blocks, drop)


def _merge(
    inputs: Sequence[Any],  # adapters, and the place of the base model where there is one
    method: str,
    parts: Parts,
    rank: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    seed: int | None = None,
    normalise: bool | None = None,
    epsilon: float | None = None,
    gamma: float | None = None,
    base: str | None = None,
) -> Adapter:
    settings = Settings(density, seed, normalise, epsilon, gamma)
    if base is None:
        return merging.Order(_weighted(inputs, parts), method, rank, energy, settings).result()
    *adapters, model = inputs
    weights = open_checkpoint(model).weight
    order = merging.Order(_weighted(adapters, parts), method, rank, energy, settings, weights, base_name=base)
    return provenance.beside(order.result(), model)


def _to_lora(inputs: Sequence[Adapter], rank: int) -> Adapter:
    return bake.to_lora(_only(inputs), rank)


def _resize(
    inputs: Sequence[Adapter], rule: str, value: float, conv_rank: int | None, dtype: str, beside: int | None = None
) -> Adapter:
    return resizing.resize(_only(inputs), rule, value, conv_rank, dtype, beside=beside)


def _rescale(inputs: Sequence[Adapter], alpha: float | None, dtype: str) -> Adapter:
    return rescaling.rescale(_only(inputs), alpha, dtype)


def _extract(
    inputs: Sequence[Path],
    kind: str,
    rank: int | None,
    energy: float | None,
    conv_rank: int | None,
    vectors: bool,
    dtype: str,
) -> Adapter:
    if len(inputs) != 2:
        raise BadConfig(f"the recipe gives {len(inputs)} models to an extraction from two; get another copy of it")
    settings = extraction.Settings(kind, rank, energy, conv_rank, vectors, dtype)
    base, tuned = inputs
    return difference.extracted(base, tuned, settings).adapter


def _prune(inputs: Sequence[Adapter], below: float) -> Adapter:
    return pruning.prune(_only(inputs), below)


def _bake(
    inputs: Sequence[Any],  # the place of the model, then adapters
    method: str,
    parts: Parts,
    dtype: str,
    allow_partial: bool,
) -> Unwritten:
    place, *adapters = inputs
    weighted = _weighted(adapters, parts, apart=True)

    def write(out: Path, overwrite: bool) -> Baked:
        return bake_files(
            open_checkpoint(place),
            weighted,
            out,
            dtype=dtype,
            unbake=method == "unbake",
            allow_partial=allow_partial,
            overwrite=overwrite,
        )

    return write


OPERATIONS = (
    Operation(("scale",), _scale),
    Operation(("select",), _select),
    Operation(merging.METHODS, _merge),
    Operation(("bake-to-lora",), _to_lora),
    Operation(("resize",), _resize),
    Operation(("rescale",), _rescale),
    Operation(("prune",), _prune),
    Operation(("extract",), _extract, models=2),
    Operation(("bake", "unbake"), _bake, models=1),
)
