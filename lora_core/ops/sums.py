"""The exact sum of adapters, computed target by target when a layer is first asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from ..adapter import Adapter, Target
from ..errors import BadConfig
from ..layers import Full, Layer, LoHa, LoKr, LoRA, Norm
from .combine import change_of
from .health import refuse_bad_values
from .lazy import Lazy, outlines
from .merge import Order, common_architecture, common_extras, refuse_products, stored_layer
from .parts import Part, Weighted, common_shape, low_rank
from .provenance import united
from .scale import scaled

NOWHERE = torch.device("meta")  # tensors of a shape and without values


def added(parts: Sequence[Weighted]) -> Adapter:
    """Return what `merge(parts)` returns, with layers that are computed when they are first asked for.

    What needs no numbers is refused now, as `merge` does: other families, strengths, shapes and kinds of layers that do
    not go together. A layer that holds NaN is refused when it is asked for. Whether all layers cancel each other out is
    not looked at.
    """
    order = Order(parts)
    architecture = common_architecture(parts)
    acting = [part for part in parts if part.strength != 0 or part.text_encoder]
    places: dict[Target, list[int]] = {}
    for index, part in enumerate(acting):
        for target in part.adapter.layers:
            if part.at(target) != 0:
                places.setdefault(target, []).append(index)
    if not places:
        raise BadConfig("every part has strength 0 or no layers: nothing is left to add")

    def meeting(target: Target, known: Sequence[Mapping[Target, Layer]]) -> list[Part]:
        return [Part(known[index][target], acting[index].at(target), index) for index in places[target]]

    def computed(target: Target) -> Layer:
        for index in places[target]:
            alone = Adapter(None, {target: acting[index].adapter.layers[target]})
            refuse_bad_values(alone, acting[index].name)
        return stored_layer(target, meeting(target, [part.adapter.layers for part in acting]), None, None)

    known = [outlines(part.adapter.layers) for part in acting]
    layers = Lazy({target: _outline(target, meeting(target, known)) for target in places}, computed)
    sources = [part.adapter for part in parts]
    return united(sources, layers, order.operation(), architecture, common_extras(acting))


def _outline(target: Target, parts: Sequence[Part]) -> Layer:
    """Return a layer of the kind, shape, rank and alpha of the parts' sum, without values."""
    if len(parts) == 1:
        return scaled(target, parts[0].layer, parts[0].strength)
    layers = [part.layer for part in parts if isinstance(part.layer, LoRA)]
    if len(layers) == len(parts):
        shape = common_shape(target, [layer.shape for layer in layers])
        rank = sum(layer.rank for layer in layers)
        up, down = (torch.empty(sides, device=NOWHERE) for sides in ((shape[0], rank), (rank, math.prod(shape[1:]))))
        return low_rank(up, down, shape)
    refuse_products(target, parts)
    for part in parts:
        change_of(target, part)
    found = [part.layer.shape for part in parts if isinstance(part.layer, (Full, LoHa, LoKr, LoRA))]
    shape = common_shape(target, found)
    kind = Norm if all(isinstance(part.layer, Norm) for part in parts) else Full
    return kind(torch.empty(shape, device=NOWHERE))
