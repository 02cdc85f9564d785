"""Metadata of a result: what is still true of it, and how it came to be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..adapter import Adapter, Target
from ..layers import DoRA, GLoRA, Layer, LoHa, LoKr, LoRA, rank_of

OPERATION = "lorasmith.operation"

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
STALE = ("lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_output_name")
# Describe one adapter, so a changed copy must not carry them on; a file of the very adapter may.
_CHANGED = ("ss_network_dim", "ss_network_alpha", OPERATION)


def derived(source: Adapter, layers: Mapping[Target, Layer], operation: Mapping[str, Any]) -> Adapter:
    """Return a changed copy of one adapter: other layers, and all its metadata but its name, hashes, rank and alpha.

    Args:
        source: what was changed.
        layers: the result's.
        operation: what was done, JSON-ready: the key "method" and the parameters.
    """
    kept = {key: value for key, value in source.metadata.items() if key not in (*STALE, *_CHANGED)}
    metadata = {**kept, **dimensions(layers), OPERATION: json.dumps(operation)}
    origin = {"operation": dict(operation), "inputs": [source.origin]}
    return replace(source, layers=layers, metadata=metadata, origin=origin)


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
        is_fact = key in _FAMILY_FACTS or key in _SHARED_FACTS or key.startswith("lorasmith.")
        if is_fact and len(values) == 1:
            kept[key] = str(values.pop())
    metadata = {**kept, **dimensions(layers), OPERATION: json.dumps(operation)}
    origin = {"operation": dict(operation), "inputs": [source.origin for source in sources]}
    return Adapter(architecture, layers, metadata, extras, origin)


def dimensions(layers: Mapping[Target, Layer]) -> dict[str, str]:
    """Return `ss_network_dim` and `ss_network_alpha`, "Dynamic" where layers differ (as sd-scripts' resize writes)."""
    inner = [layer.layer if isinstance(layer, DoRA) else layer for layer in layers.values()]
    factored = [layer for layer in inner if isinstance(layer, GLoRA | LoHa | LoKr | LoRA) and rank_of(layer)]
    ranks = {str(rank_of(layer)) for layer in factored}
    alphas = {str(round(float(layer.alpha), 6)) for layer in factored}
    if not factored:
        return {}
    return {
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
    }
