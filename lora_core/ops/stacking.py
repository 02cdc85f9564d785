"""Put layers of row blocks together into one of the fused weight: the inverse of `rows.cut`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedLayer
from ..layers import (
    BOFT,
    IA3,
    DiagOFT,
    DoRA,
    Full,
    GLoRA,
    KohyaOFT,
    Layer,
    LoHa,
    LoKr,
    LoRA,
    OFTv2,
    PeftBOFT,
    Replace,
)
from ..layers.base import identical, wide
from .merge import store_dtype, widest

WAY_OUT = "choose a dialect that keeps the layout of the file"


def height(layer: Layer) -> int | None:
    """Return the number of rows of the weight that a layer acts on, None where it acts on the input alone."""
    rows = layer.shape[0]
    return None if rows is None else int(rows)


def stack(layers: Sequence[Layer | None], heights: Sequence[int]) -> Layer:
    """Return the layer of the weight whose row blocks, of these heights from top to bottom, the layers act on.

    None stands for a block that does not change. LoRAs share what rows of `down` they have in common, so that the parts
    that `cut` made come together to the same bytes; others go side by side, ranks added. Scales that differ are
    multiplied into `up`, in float32 where the dtype cannot hold the result.
    Raises UnsupportedLayer where the algorithms differ or the result has no form of the same algorithm.
    """
    given = [layer for layer in layers if layer is not None]
    if len(layers) != len(heights) or not given:
        raise UnsupportedLayer(f"{len(given)} layers for {len(heights)} row blocks: nothing to put together")
    for layer, rows in zip(layers, heights, strict=True):
        if layer is not None and height(layer) not in (None, rows):
            raise mismatch(layer, f"a block of {rows} rows")
    if len(layers) == 1:
        return given[0]
    kinds = sorted({type(layer).__name__ for layer in given})
    if len(kinds) > 1:
        raise UnsupportedLayer(f"row blocks of one weight have layers of {' and '.join(kinds)}: {WAY_OUT}")
    return _stack_alike(given[0], list(layers), heights)


def refusal(layer: Layer, reason: str) -> UnsupportedLayer:
    """Return the refusal of a layer whose rows cannot be taken apart or put together."""
    return UnsupportedLayer(f"the rows of a {type(layer).__name__} layer cannot be rearranged: {reason}; {WAY_OUT}")


def mismatch(layer: Layer, wanted: str) -> UnsupportedLayer:
    """Return the refusal of a layer that has not the rows which it should have."""
    return UnsupportedLayer(f"a {type(layer).__name__} layer of {height(layer)} rows was taken for {wanted}: {WAY_OUT}")


def long_axis(tensor: Tensor) -> int:
    """Return the axis of the one side of a tensor that is longer than 1."""
    return max(range(tensor.dim()), key=lambda axis: tensor.shape[axis])


def unbound(layer: DiagOFT | KohyaOFT) -> bool:
    """Tell whether a rotation's constraint has no effect on it."""
    blocks = wide(layer.blocks)
    size, rows = float((blocks - blocks.transpose(1, 2)).norm()), blocks.shape[0] * blocks.shape[1]
    if isinstance(layer, DiagOFT):
        return layer.constraint <= 0 or size + 1e-8 <= layer.constraint * rows
    return size <= layer.alpha * rows


def _stack_alike(first: Layer, layers: list[Any], heights: Sequence[int]) -> Layer:
    match first:
        case LoRA():
            return _lora(layers, heights)
        case Full():
            return _full(first, layers, heights)
        case LoHa():
            return _loha(layers, heights)
        case LoKr():
            return _lokr(first, layers, heights)
        case IA3() if not first.on_input:
            return _ia3(first, layers, heights)
    whole = _all_there(first, layers)
    match first:
        case DoRA():
            return _dora(first, whole, heights)
        case Replace():
            return Replace(_joined([layer.value for layer in whole]))
        case DiagOFT() | KohyaOFT():
            return _rotation(first, whole)
        case GLoRA():
            _alike(first, whole, "a1", "a2", "b2", "alpha")
            return replace(first, b1=_joined([layer.b1 for layer in whole]))
        case PeftBOFT():
            _alike(first, whole, "blocks")
            return replace(first, rescale=_joined([layer.rescale for layer in whole], long_axis(first.rescale)))
        case OFTv2():
            _alike(first, whole, "upper", "terms", "coft", "scaled_down")
            return first
        case IA3():
            _alike(first, whole, "scale", "on_input", "absolute")
            return first
        case BOFT():
            raise refusal(first, "its rotations mix rows from all over the weight")
    raise refusal(first, "no rule is known for it")


def _all_there(first: Layer, layers: Sequence[Any]) -> list[Any]:
    if any(layer is None for layer in layers):
        raise refusal(first, "a row block has none, and none of this kind does nothing")
    return list(layers)


def _alike(first: Layer, layers: Sequence[Any], *names: str) -> None:
    """Raise UnsupportedLayer unless all layers agree in these fields."""
    for name in names:
        if not all(identical(getattr(first, name), getattr(layer, name)) for layer in layers):
            raise refusal(first, f"{name} differs between the row blocks")


def _joined(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    dtype = widest(tensors)
    return torch.cat([tensor.to(dtype) for tensor in tensors], axis)


def _filled(
    layers: Sequence[Any], heights: Sequence[int], get: Callable[[Any], Tensor], fill: float = 0, axis: int = 0
) -> Tensor:
    """Join one tensor of each layer along its rows, a constant block where there is no layer."""
    like = next(get(layer) for layer in layers if layer is not None)
    parts = []
    for layer, rows in zip(layers, heights, strict=True):
        sides = [rows if side == axis else size for side, size in enumerate(like.shape)]
        blank = torch.full(sides, fill, dtype=torch.float32).to(like.dtype).to(like.device)
        parts.append(blank if layer is None else get(layer))
    return _joined(parts, axis)


def _full(first: Full, layers: Sequence[Full | None], heights: Sequence[int]) -> Full:
    scales = {layer.scale for layer in layers if layer is not None}
    if len(scales) == 1:
        return replace(first, diff=_filled(layers, heights, lambda layer: layer.diff))
    return replace(first, diff=_filled(layers, heights, lambda layer: layer.delta()), scale=1.0)


def _ia3(first: IA3, layers: Sequence[IA3 | None], heights: Sequence[int]) -> IA3:
    _alike(first, [layer for layer in layers if layer is not None], "on_input", "absolute")
    scale = _filled(layers, heights, lambda layer: layer.scale, float(first.absolute), long_axis(first.scale))
    return replace(first, scale=scale)


def _rotation(first: DiagOFT | KohyaOFT, layers: Sequence[Any]) -> DiagOFT | KohyaOFT:
    _alike(first, layers, "constraint" if isinstance(first, DiagOFT) else "alpha")
    if any(layer.blocks.shape[1] != first.blocks.shape[1] for layer in layers):
        raise refusal(first, "the row blocks have rotations of different size")
    whole = replace(first, blocks=_joined([layer.blocks for layer in layers]))
    if isinstance(whole, DiagOFT):
        scales = [layer.rescale for layer in layers if layer.rescale is not None]
        if len(scales) not in (0, len(layers)):
            raise refusal(first, "some row blocks are rescaled, others not")
        whole = replace(whole, rescale=_joined(scales) if scales else None)
    if not all(unbound(layer) for layer in (*layers, whole)):
        raise refusal(first, "its constraint bounds all blocks together")
    return whole


def _dora(first: DoRA, layers: Sequence[DoRA], heights: Sequence[int]) -> DoRA:
    _alike(first, layers, "peft", "on_input")
    if first.on_input:
        raise refusal(first, "its lengths are those of columns, which reach over all rows")
    inner = stack([layer.layer for layer in layers], heights)
    if not isinstance(inner, LoRA | LoHa | LoKr):
        raise TypeError(f"layers of {type(first.layer).__name__} became a {type(inner).__name__} layer")
    magnitude = _joined([layer.magnitude for layer in layers], long_axis(first.magnitude))
    return DoRA(inner, magnitude, first.peft)


def _lokr(first: LoKr, layers: Sequence[LoKr | None], heights: Sequence[int]) -> LoKr:
    given = [layer for layer in layers if layer is not None]
    _alike(first, given, "w2", "w2_a", "w2_b", "t2", "alpha", "r", "scalar", "w1_b")
    size = first.second_shape[0]
    if any((layer.w1 is None) != (first.w1 is None) for layer in given) or any(rows % size for rows in heights):
        raise refusal(first, f"not every row block is a multiple of {size} rows, the height of its second factor")
    rows = [height // size for height in heights]
    shape = (sum(heights), *first.shape[1:])
    if first.w1 is not None:
        return replace(first, w1=_filled(layers, rows, lambda layer: layer.w1), shape=shape)
    return replace(first, w1_a=_filled(layers, rows, lambda layer: layer.w1_a), shape=shape)


def _loha(layers: Sequence[LoHa | None], heights: Sequence[int]) -> LoHa:
    given = [layer for layer in layers if layer is not None]
    first = given[0]
    shape = (sum(heights), *first.shape[1:])
    if any(layer.shape[1:] != first.shape[1:] for layer in given):
        raise refusal(first, "the row blocks have weights of different width")
    shared = ("w1_b", "w2_b", "t1", "t2", "alpha", "scalar")
    if all(identical(getattr(first, name), getattr(layer, name)) for layer in given for name in shared):
        axis = 0 if first.t1 is None else 1
        one = _filled(layers, heights, lambda layer: layer.w1_a, axis=axis)
        two = _filled(layers, heights, lambda layer: layer.w2_a, axis=axis)
        return replace(first, w1_a=one, w2_a=two, shape=shape)
    if any(layer.t1 is not None for layer in given):
        raise refusal(first, "the row blocks have Tucker cores of their own")
    common = first.scale or 1.0  # carried by alpha; where a layer's differs, its w1_a takes the ratio
    rank, ranks = sum(layer.rank for layer in given), _column_ranges(layers)
    ones: list[_Placed | None] = []
    twos: list[_Placed | None] = []
    for layer, columns in zip(layers, ranks, strict=True):
        ones.append(None if layer is None else _Placed(layer.w1_a, columns, layer.scale / common))
        twos.append(None if layer is None else _Placed(layer.w2_a, columns))
    b1, b2 = _joined([layer.w1_b for layer in given]), _joined([layer.w2_b for layer in given])
    w1_a, w2_a = _assembled(ones, heights, rank), _assembled(twos, heights, rank)
    return LoHa(w1_a, b1, w2_a, b2, alpha=common * rank, shape=shape)


def _column_ranges(layers: Sequence[LoHa | None]) -> list[list[int]]:
    """Return the columns of each layer where their ranks stand side by side."""
    ranges, start = [], 0
    for layer in layers:
        rank = 0 if layer is None else layer.rank
        ranges.append(list(range(start, start + rank)))
        start += rank
    return ranges


@dataclass(frozen=True, eq=False)
class _Placed:
    """A block of rows of an assembled matrix."""

    values: Tensor  # (rows, len(columns), *ones)
    columns: list[int]  # where they go
    factor: float = 1.0  # on them


def _assembled(blocks: Sequence[_Placed | None], heights: Sequence[int], rank: int) -> Tensor:
    """Return the matrix `(rows, rank)` with these blocks one below the other, zero elsewhere."""
    given = [block for block in blocks if block is not None]
    narrow = widest([block.values for block in given])
    like = wide(given[0].values)
    whole = torch.zeros(sum(heights), rank, *like.shape[2:], dtype=wide(torch.empty(0, dtype=narrow)).dtype)
    start = 0
    for block, rows in zip(blocks, heights, strict=True):
        if block is not None:
            values = wide(block.values) if block.factor == 1 else wide(block.values) * block.factor
            whole[start : start + rows, block.columns] = values.to(whole)
        start += rows
    return store_dtype(whole, narrow)


def _lora(layers: Sequence[LoRA | None], heights: Sequence[int]) -> LoRA:
    given = [layer for layer in layers if layer is not None]
    first = given[0]
    if any(layer.reshape is not None for layer in given):
        raise refusal(first, "it widens the base weight")
    if any(layer.down.shape[1:] != first.down.shape[1:] for layer in given):
        raise refusal(first, "the row blocks have weights of different width")
    if any(layer.mid is not None for layer in given):
        _alike(first, given, "mid", "down")
    pool = _pool(given)
    column = {key: index for index, key in enumerate(pool)}
    common = first.scale or 1.0  # carried by alpha; where a layer's differs, its up takes the ratio
    placed = [
        None if layer is None else _Placed(layer.up, [column[key] for key in _keys(layer.down)], layer.scale / common)
        for layer in layers
    ]
    down, up = _joined(list(pool.values())), _assembled(placed, heights, len(pool))
    if first.scale != 0 and all(identical(first.scalar, layer.scalar) for layer in given):
        alpha = first.alpha if len(pool) == first.rank else first.alpha * len(pool) / first.rank
        return LoRA(down, up, alpha, first.mid, scalar=first.scalar)
    return LoRA(down, up, common * len(pool), first.mid)


Key = tuple[torch.dtype, bytes, int]  # a row's dtype, its bytes, and how often the layer had it before


def _keys(down: Tensor) -> list[Key]:
    seen: dict[bytes, int] = {}
    keys = []
    for row in down.detach().flatten(1).cpu().contiguous().view(torch.uint8).numpy():
        data = row.tobytes()
        keys.append((down.dtype, data, seen.setdefault(data, 0)))
        seen[data] += 1
    return keys


def _pool(layers: Sequence[LoRA]) -> dict[Key, Tensor]:
    """Return the different rows of all `down`; one that has all the others' rows gives their order."""
    pool: dict[Key, Tensor] = {}
    for layer in layers:
        own = dict(zip(_keys(layer.down), torch.split(layer.down, 1), strict=True))
        pool = own if pool.keys() <= own.keys() else {**pool, **own}
    return pool
