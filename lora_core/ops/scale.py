"""Scale an adapter: the same weights at another strength, without loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..adapter import Adapter, Target
from ..errors import BadConfig, UnsupportedLayer
from ..layers import Layer
from .lazy import mapped, subset
from .provenance import derived

DENOISER = "denoiser"  # the component that is no text encoder
LARGEST, SMALLEST = 1e6, 1e-6  # size of a strength: far outside any use, far inside what a float32 alpha can hold


def scale(
    adapter: Adapter,
    strength: float = 1.0,
    text_encoder: float | None = None,
    blocks: Mapping[str, float] | None = None,
    block_of: Callable[[Target], str] | None = None,
) -> Adapter:
    """Return the adapter whose effect at strength 1 is that of the given one at `strength`.

    Layers at strength 1 are passed on as they are, others through their own `scaled` (a LoRA's alpha carries the
    factor).

    Args:
        adapter: what to scale.
        strength: of every layer.
        text_encoder: strength of every component but the denoiser; left out, it is the same.
        blocks: further strengths by the name of a block, which multiply these; 0 leaves the block's layers out.
        block_of: names the block of a target; needed with `blocks`. A block without a strength has 1.

    Raises:
        BadConfig: a strength that `check_strength` refuses, or no layer is left.
        UnsupportedLayer: a layer that cannot be scaled.
    """
    check_strength(strength, text_encoder)
    operation: dict[str, object] = {"method": "scale", "strength": strength, "text_encoder": text_encoder}
    if not blocks or block_of is None:
        layers = mapped(adapter.layers, lambda at, layer: scaled(at, layer, strength_at(at, strength, text_encoder)))
        return derived(adapter, layers, operation)
    factors = {target: blocks.get(block_of(target), 1.0) for target in adapter.layers}
    kept = subset(adapter.layers, lambda target: factors[target] != 0)
    if not kept:
        raise BadConfig("all layers lie in blocks of strength 0: nothing would be left")
    strengths = {target: factors[target] * strength_at(target, strength, text_encoder) for target in kept}
    check_strength(*blocks.values(), *set(strengths.values()))
    layers = mapped(kept, lambda at, layer: scaled(at, layer, strengths[at]))
    return derived(adapter, layers, {**operation, "blocks": dict(blocks)})


def strength_at(target: Target, strength: float, text_encoder: float | None) -> float:
    """Return the strength that holds at a target."""
    return strength if target.component == DENOISER or text_encoder is None else text_encoder


def scaled(target: Target, layer: Layer, strength: float) -> Layer:
    """Return one layer at another strength; the very same object at strength 1."""
    if strength == 1:
        return layer
    result = layer.scaled(strength)
    if result is None:
        raise UnsupportedLayer(
            f"{target.module}: a {type(layer).__name__} layer has no number that a strength could go into; set the "
            "strength in the program that uses the file"
        )
    return result


def check_strength(*strengths: float | None) -> None:
    """Raise BadConfig for a strength that is no finite number, or one other than 0 outside 1e-6 to 1e6 in size."""
    for strength in strengths:
        if strength is not None and not math.isfinite(strength):
            raise BadConfig(f"strength {strength}: give a finite number, such as 0.8")
        if strength and not SMALLEST <= abs(strength) <= LARGEST:
            limits = f"0, or a number from {SMALLEST:g} to {LARGEST:g} in size, such as 0.8"
            raise BadConfig(f"strength {strength:g}: is beyond what a file can hold; give {limits}")
