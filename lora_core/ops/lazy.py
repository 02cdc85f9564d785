"""Layers that are computed when they are first asked for, so that chains of operations cost nothing until then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ..adapter import Target
from ..layers import Layer


class Lazy(Mapping[Target, Layer]):
    """A mapping whose layers are computed once, on first use, and kept. It never changes.

    `outlines` tell without any computing what will come: layers of the same algorithm, shape, rank and alpha, some of
    whose tensors may lie on torch's meta device.
    """

    def __init__(self, outlines: Mapping[Target, Layer], compute: Callable[[Target], Layer]):
        self.outlines = outlines
        self._compute = compute
        self._known: dict[Target, Layer] = {}

    @property
    def computed(self) -> int:
        """Number of layers that are there already."""
        return len(self._known)

    def __getitem__(self, target: Target) -> Layer:
        """Return a layer, computed now if it is asked for the first time; raises KeyError for an unknown target."""
        if target not in self._known:
            if target not in self.outlines:
                raise KeyError(target)
            self._known[target] = self._compute(target)
        return self._known[target]

    def __iter__(self) -> Iterator[Target]:
        """Yield the targets, without any computing."""
        return iter(self.outlines)

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.outlines)

    def __contains__(self, target: object) -> bool:
        """Tell whether there is a layer at a target, without any computing."""
        return target in self.outlines


def outlines(layers: Mapping[Target, Layer]) -> Mapping[Target, Layer]:
    """Return what is known of layers without computing them: kinds, shapes, ranks and alphas hold, values may not."""
    return layers.outlines if isinstance(layers, Lazy) else layers


def mapped(layers: Mapping[Target, Layer], change: Callable[[Target, Layer], Layer]) -> Mapping[Target, Layer]:
    """Return every layer changed: lazily where they are lazy. What `change` refuses, it refuses now, for outlines."""
    made = {target: change(target, layer) for target, layer in outlines(layers).items()}
    return Lazy(made, lambda target: change(target, layers[target])) if isinstance(layers, Lazy) else made


def subset(layers: Mapping[Target, Layer], wanted: Callable[[Target], bool]) -> Mapping[Target, Layer]:
    """Return the layers at wanted targets: lazily where they are lazy."""
    kept = {target: layer for target, layer in outlines(layers).items() if wanted(target)}
    return Lazy(kept, layers.__getitem__) if isinstance(layers, Lazy) else kept
