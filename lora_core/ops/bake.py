"""Layers of other algorithms as plain LoRA: the best one of a rank, for hosts and dialects that know nothing else."""

from __future__ import annotations

from ..adapter import Adapter, Target
from ..errors import BadConfig, UnsupportedLayer
from ..layers import Additive, Layer, LoRA
from .health import refuse_bad_values
from .lowrank import truncated_matrix
from .merge import low_rank
from .provenance import derived


def to_lora(adapter: Adapter, rank: int) -> Adapter:
    """Return an adapter whose changes of matrices are all LoRA; those that are already keep their tensors.

    Changes of vectors, biases and norms, stay as they are: they have no rank to lower.

    Args:
        adapter: what to approximate.
        rank: of the approximated layers, at most.

    Raises:
        BadConfig: the rank is no whole number from 1.
        BadValues: a layer holds NaN or infinite values.
        UnsupportedLayer: a layer whose effect depends on the base weight (DoRA, OFT, IA3 ...) has no change of its own.
    """
    if rank < 1:
        raise BadConfig(f"rank {rank}: give a whole number from 1")
    refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    layers = {target: _approximated(target, layer, rank) for target, layer in adapter.layers.items()}
    return derived(adapter, layers, {"method": "bake-to-lora", "rank": rank})


def _approximated(target: Target, layer: Layer, rank: int) -> Layer:
    if isinstance(layer, LoRA):
        return layer
    if not isinstance(layer, Additive):
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: what a {type(layer).__name__} layer does depends on the base weight, "
            f"so there is no LoRA for it. Convert to a dialect that keeps it"
        )
    delta = layer.delta()
    if delta.dim() < 2:
        return layer
    best = truncated_matrix(delta.flatten(1), rank)
    return low_rank(best.rows, best.columns, tuple(delta.shape))
