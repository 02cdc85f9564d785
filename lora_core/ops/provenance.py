"""Metadata of a result: what is still true of it, and how it came to be.

`Adapter.origin` is a tree. A leaf is a file, `{"file": name, "source": Source}`, or what no file holds,
`{"made": words}`; above them stand operations, `{"operation": {"method": name, **parameters}, "inputs": [trees]}`.
`recipe` turns it into the JSON that a written file carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapter import Adapter, Target
from ..layers import DoRA, GLoRA, Layer, LoHa, LoKr, LoRA, rank_of
from .lazy import outlines
from .recipe import RECIPE, Source

# Follow from the family, which all inputs share: kept unless two inputs contradict each other.
_FAMILY_FACTS = ("ss_base_model_version", "ss_v2", "modelspec.architecture")
# True of a result only when it is true of every input.
_SHARED_FACTS = (
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_new_sd_model_hash",
    "ss_clip_skip",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
# Name or describe one file's bytes or scales, so no new file may carry them on.
STALE = (
    *("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_output_name"),
    RECIPE,
)
# Describe one adapter, so a changed copy must not carry them on; a file of the very adapter may.
_CHANGED = ("ss_network_dim", "ss_network_alpha")


def derived(source: Adapter, layers: Mapping[Target, Layer], operation: Mapping[str, Any]) -> Adapter:
    """Return a changed copy of one adapter: other layers, and all its metadata but its name, hashes, rank and alpha.

    Args:
        source: what was changed.
        layers: the result's.
        operation: what was done, JSON-ready: the key "method" and the parameters.
    """
    kept = {key: value for key, value in source.metadata.items() if key not in (*STALE, *_CHANGED)}
    origin = operated([source.origin], operation)
    return replace(source, layers=layers, metadata={**kept, **dimensions(layers)}, origin=origin)


def united(
    sources: Sequence[Adapter],
    layers: Mapping[Target, Layer],
    operation: Mapping[str, Any],
    architecture: str | None,
    extras: Mapping[str, Tensor],
) -> Adapter:
    """Return several adapters' common result, with the facts of the base model that hold for it, and no more metadata.

    Args:
        sources: what it was made from.
        layers: the result's.
        operation: what was done, JSON-ready: the key "method" and the parameters; what belongs to a source stands in
            lists of the same order.
        architecture: family of the result.
        extras: tensors that belong to no layer.
    """
    keys = dict.fromkeys(key for source in sources for key in source.metadata)
    kept = {}
    for key in keys:
        values = {source.metadata.get(key) for source in sources}
        if key in _FAMILY_FACTS:
            values.discard(None)
        is_fact = key in _FAMILY_FACTS or key in _SHARED_FACTS or (key.startswith("lorasmith.") and key not in STALE)
        if is_fact and len(values) == 1:
            kept[key] = str(values.pop())
    origin = operated([source.origin for source in sources], operation)
    return Adapter(architecture, layers, {**kept, **dimensions(layers)}, extras, origin)


def file_origin(path: str | Path, **others: Any) -> dict[str, Any]:
    """Return the origin of what is read from a file or folder now; `others` stay in memory, no recipe holds them."""
    source = Source.of(path)
    return {"file": source.name, "source": source, **others}


def beside(result: Adapter, path: str | Path) -> Adapter:
    """Return an operation's result that knows of one more input, the last: the file of the base model."""
    origin = dict(result.origin or {})
    return replace(result, origin={**origin, "inputs": [*origin.get("inputs", ()), file_origin(path)]})


def operated(inputs: Sequence[Mapping[str, Any] | None], operation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin of an operation's result; an input of unknown origin is one that was made in memory."""
    return {"operation": dict(operation), "inputs": [origin or made("in memory") for origin in inputs]}


def made(words: str) -> dict[str, Any]:
    """Return the origin of an adapter that no file holds, such as one that was just trained: `words` say so."""
    return {"made": words}


def dimensions(layers: Mapping[Target, Layer]) -> dict[str, str]:
    """Return `ss_network_dim` and `ss_network_alpha`, "Dynamic" where layers differ (as sd-scripts' resize writes)."""
    inner = [layer.layer if isinstance(layer, DoRA) else layer for layer in outlines(layers).values()]
    factored = [layer for layer in inner if isinstance(layer, GLoRA | LoHa | LoKr | LoRA) and rank_of(layer)]
    ranks = {str(rank_of(layer)) for layer in factored}
    alphas = {str(round(float(layer.alpha), 6)) for layer in factored}
    if not factored:
        return {}
    return {
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
    }
