"""Layers brought into a layout: fused weights split into row blocks or put together, AdaLN's halves put right.

Splitting keeps `down` and cuts rows of `up`; putting together stacks them, or folds back to the rank before where the
blocks still share one `down`. See `lora_core.ops.rows`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import UnsupportedLayer
from ..lora_core.layers import KohyaOFT, Layer
from ..lora_core.ops.lazy import Lazy, outlines
from ..lora_core.ops.methods import Wish
from ..lora_core.ops.rows import cut, stack, swap_halves
from .architectures import ARCHITECTURES
from .keymap import Keymap, keymap


def in_layout(layers: Mapping[Target, Layer], map: Keymap, layout: str) -> dict[Target, Layer]:
    """Return an adapter's layers as one layout has them; targets stay in the original naming.

    Args:
        layers: by target, halves in the original order.
        map: the family's keys.
        layout: "original" (fused weights whole) or "diffusers" (row blocks apart, halves in Diffusers' order).

    Raises:
        UnsupportedLayer: a layer of this algorithm cannot be split, or put together, without changing its effect.
    """
    if layout == "original":
        return _together(layers, map)
    found: dict[Target, Layer] = {}
    for target, layer in layers.items():
        module = map.module(target)
        if module and module.blocks and target.block is None:
            _add(found, _apart(target, layer, module.blocks))
        else:
            _add(found, {target: turned(target, layer, map)})
    return found


def turned(target: Target, layer: Layer, map: Keymap) -> Layer:
    """Return a layer with the halves of its rows exchanged where the layouts differ so: it is its own inverse."""
    module = map.module(target)
    return swap_halves(layer) if module and module.swapped else layer


def span(target: Target, layer: Layer, blocks: int, map: Keymap) -> dict[Target, Layer]:
    """Split a layer whose name holds several row blocks of a fused weight, from the target's block on."""
    module = map.module(target)
    first = target.block or 0
    heights = module.blocks[first : first + blocks] if module else ()
    return {replace(part, block=first + (part.block or 0)): one for part, one in _apart(target, layer, heights).items()}


def spanned(target: Target, layers: Mapping[Target, Layer], blocks: int, map: Keymap) -> Layer:
    """Put the row blocks of a name together: the inverse of `span`."""
    module = map.module(target)
    first = target.block or 0
    heights = module.blocks[first : first + blocks] if module else ()
    return stack([layers.get(replace(target, block=first + n)) for n in range(blocks)], heights)


def _apart(target: Target, layer: Layer, heights: tuple[int, ...]) -> dict[Target, Layer]:
    edges = [sum(heights[:n]) for n in range(len(heights) + 1)]
    try:
        return {
            replace(target, block=block): cut(layer, start, stop, edges[-1])
            for block, (start, stop) in enumerate(zip(edges, edges[1:], strict=False))
        }
    except UnsupportedLayer as error:
        raise _placed(error, target) from None


def _together(layers: Mapping[Target, Layer], map: Keymap) -> dict[Target, Layer]:
    found: dict[Target, Layer] = {}
    parts: dict[Target, dict[int, Layer]] = defaultdict(dict)
    for target, layer in layers.items():
        if target.block is None or isinstance(layer, KohyaOFT):  # kohya's OFT numbers the blocks itself
            found[target] = layer
        else:
            parts[replace(target, block=None)][target.block] = layer
    for target, blocks in parts.items():
        module = map.module(target)
        heights = module.blocks if module else ()
        try:
            whole = stack([blocks.get(n) for n in range(len(heights))], heights)
        except UnsupportedLayer as error:
            raise _placed(error, target) from None
        _add(found, {target: whole})
    return found


def _add(found: dict[Target, Layer], layers: Mapping[Target, Layer]) -> None:
    """Put layers with the others, in place.

    Raises:
        UnsupportedLayer: there is a layer for a whole weight and one for some of its rows.
    """
    for target, layer in layers.items():
        if target in found:
            raise UnsupportedLayer(
                f"{target.component}.{target.module}: there is a layer for the whole weight and one for a part of it. "
                f"Take one of them out"
            )
        found[target] = layer


def _placed(error: UnsupportedLayer, target: Target) -> UnsupportedLayer:
    return UnsupportedLayer(f"{target.component}.{target.module}: {error.message}")


def alike(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return adapters whose layers act on the same pieces: a weight of which one holds parts is in parts in all.

    Adapters of different families are left as they are.

    Raises:
        UnsupportedLayer: a layer for a whole weight cannot be split.
    """
    parted = {
        replace(target, block=None) for adapter in adapters for target in adapter.layers if target.block is not None
    }
    if not parted:
        return list(adapters)
    maps = [keymap(family_of(adapter)) for adapter in adapters]
    pairs = zip(adapters, maps, strict=True)
    return [replace(adapter, layers=_parted(adapter.layers, parted, map)) for adapter, map in pairs]


def wishes_like(wishes: Iterable[Wish], adapter: Adapter) -> Iterator[Wish]:
    """Yield what a merge wants in the pieces of an adapter: a weight of which it holds parts is in parts here.

    Raises:
        UnsupportedLayer: a layer for a whole weight cannot be split.
    """
    parted = {replace(target, block=None) for target in adapter.layers if target.block is not None}
    map = keymap(family_of(adapter)) if parted else None
    for wish in wishes:
        module = map.module(wish.target) if map and wish.target in parted else None
        if module is None or not module.blocks:
            yield wish
            continue
        pieces = [_apart(wish.target, part.layer, module.blocks) for part in wish.parts]
        for target in pieces[0]:
            parts = [replace(part, layer=piece[target]) for part, piece in zip(wish.parts, pieces, strict=True)]
            yield replace(wish, target=target, parts=parts)


def family_of(adapter: Adapter) -> str:
    """Return the id of the adapter's family, or of the first that has all its targets where several fit alike.

    Raises:
        UnsupportedLayer: no family has them all.
    """
    if adapter.architecture:
        return adapter.architecture
    for family in ARCHITECTURES:
        if all(keymap(family.id).module(target) for target in adapter.layers):
            return family.id
    raise UnsupportedLayer("this adapter's layers belong to no one model family")


def parted(adapter: Adapter, targets: Collection[Target]) -> Adapter:
    """Return an adapter whose layers at these whole weights are in parts, those that the weight has in Diffusers.

    Raises:
        UnsupportedLayer: a layer cannot be split.
    """
    return replace(adapter, layers=_parted(adapter.layers, targets, keymap(family_of(adapter))))


def _parted(layers: Mapping[Target, Layer], parted: Collection[Target], map: Keymap) -> Mapping[Target, Layer]:
    modules = {target: map.module(target) for target in layers if target in parted}
    whole = {target: module.blocks for target, module in modules.items() if module and module.blocks}
    if not whole:
        return layers
    found: dict[Target, Layer] = {}
    for target, layer in outlines(layers).items():
        _add(found, _apart(target, layers[target], whole[target]) if target in whole else {target: layer})
    if not isinstance(layers, Lazy):
        return found
    return Lazy(found, lambda target: layers[target] if target in layers else found[target])
