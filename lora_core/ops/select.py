"""Keep some layers of an adapter and drop the others."""

from __future__ import annotations

from collections.abc import Callable

from ..adapter import Adapter, Target
from ..errors import BadConfig
from .lazy import subset
from .provenance import derived


def select(adapter: Adapter, wanted: Callable[[Target], bool], **told: object) -> Adapter:
    """Return the adapter with those layers alone whose target `wanted` says yes to; they keep their bits.

    `told` is how the choice was made, JSON-ready, for the recipe. Raises BadConfig where nothing is left.
    """
    layers = subset(adapter.layers, wanted)
    if not layers:
        raise BadConfig(f"none of the {len(adapter.layers)} layers is left: choose others")
    return derived(adapter, layers, {"method": "select", **told})
