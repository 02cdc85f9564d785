"""Row blocks of a layer: cut them out, put them together, exchange the halves. Exact, or refused with the reason.

A fused weight (query, key and value in one) and its parts differ between layouts of the same model; so do the halves of
an adaptive norm's projection. `cut` and `swap_halves` are here, their inverse `stack` is in `stacking`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

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
from .stacking import height, long_axis, mismatch, refusal, stack, unbound

__all__ = ["cut", "height", "stack", "swap_halves"]

Span = tuple[int, int]  # rows from, to


def cut(layer: Layer, start: int, stop: int, total: int) -> Layer:
    """Return the layer that acts on rows `start` to `stop` of a weight as `layer` acts on them in all its `total` rows.

    A LoRA loses the ranks that do nothing in these rows, if some do something and alpha stays exact in float32. What
    acts on the input alone stays as it is. Raises UnsupportedLayer where the algorithm mixes these rows with others.
    """
    if not 0 <= start < stop <= total or height(layer) not in (None, total):
        raise mismatch(layer, f"rows {start} to {stop} of {total}")
    if (start, stop) == (0, total):
        return layer
    return _pick(layer, ((start, stop),), total)


def swap_halves(layer: Layer) -> Layer:
    """Return the layer for the weight whose upper and lower half of the rows are exchanged.

    Raises UnsupportedLayer where the algorithm cannot express it, and for an odd number of rows.
    """
    total = height(layer)
    if total is None:
        return layer
    if total % 2:
        raise mismatch(layer, f"two halves of {total} rows")
    return _pick(layer, ((total // 2, total), (0, total // 2)), total)


def _pick(layer: Layer, spans: Sequence[Span], total: int) -> Layer:
    """Return the layer of these rows of the weight, in this order."""
    match layer:
        case LoRA():
            return _lora(layer, spans)
        case Full():
            return replace(layer, diff=_rows(layer.diff, spans))
        case Replace():
            return Replace(_rows(layer.value, spans))
        case LoHa():
            return _loha(layer, spans)
        case LoKr():
            return _lokr(layer, spans)
        case DoRA():
            return _dora(layer, spans, total)
        case GLoRA():
            return replace(layer, b1=_rows(layer.b1, spans))  # W a1 a2 is taken row by row
        case DiagOFT() | KohyaOFT():
            return _rotation(layer, spans, total)
        case BOFT():
            raise refusal(layer, "its rotations mix rows from all over the weight")
        case PeftBOFT():
            return replace(layer, rescale=_rows(layer.rescale, spans, long_axis(layer.rescale)))
        case IA3() if not layer.on_input:
            return replace(layer, scale=_rows(layer.scale, spans, long_axis(layer.scale)))
        case OFTv2() | IA3():
            return layer


def _rows(tensor: Tensor, spans: Sequence[Span], axis: int = 0) -> Tensor:
    parts = [tensor.narrow(axis, start, stop - start) for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _lora(layer: LoRA, spans: Sequence[Span]) -> LoRA:
    if layer.reshape is not None:
        raise refusal(layer, "it widens the base weight")
    part = replace(layer, up=_rows(layer.up, spans))
    return _without_idle_ranks(part) if len(spans) == 1 and layer.mid is None else part


def _without_idle_ranks(layer: LoRA) -> LoRA:
    """Drop all-zero columns of `up` and their rows of `down`, unless all are zero or alpha would be rounded."""
    up = layer.up.flatten(1)
    used = (up.float() if up.dtype.itemsize == 1 else up).ne(0).any(0).nonzero().flatten()
    alpha = layer.alpha * len(used) / layer.rank
    if len(used) in (0, layer.rank) or float(torch.tensor(alpha, dtype=torch.float32)) != alpha:
        return layer
    return replace(layer, down=_take(layer.down, used, 0), up=_take(layer.up, used, 1), alpha=alpha)


def _take(tensor: Tensor, index: Tensor, axis: int) -> Tensor:
    if tensor.dtype.itemsize == 1:  # torch cannot index 8-bit floats
        return tensor.view(torch.uint8).index_select(axis, index).view(tensor.dtype)
    return tensor.index_select(axis, index)


def _loha(layer: LoHa, spans: Sequence[Span]) -> LoHa:
    axis = 0 if layer.t1 is None else 1
    shape = (sum(stop - start for start, stop in spans), *layer.shape[1:])
    return replace(layer, w1_a=_rows(layer.w1_a, spans, axis), w2_a=_rows(layer.w2_a, spans, axis), shape=shape)


def _lokr(layer: LoKr, spans: Sequence[Span]) -> LoKr:
    size = layer.second_shape[0]  # a row of the first factor makes that many of the weight
    if any(edge % size for span in spans for edge in span):
        raise refusal(layer, f"the cut is not at a multiple of {size} rows, the height of its second factor")
    shape = (sum(stop - start for start, stop in spans), *layer.shape[1:])
    spans = [(start // size, stop // size) for start, stop in spans]
    if layer.w1 is not None:
        return replace(layer, w1=_rows(layer.w1, spans), shape=shape)
    return replace(layer, w1_a=None if layer.w1_a is None else _rows(layer.w1_a, spans), shape=shape)


def _dora(layer: DoRA, spans: Sequence[Span], total: int) -> DoRA:
    inner = _pick(layer.layer, spans, total)
    if not isinstance(inner, LoRA | LoHa | LoKr):
        raise TypeError(f"a part of a {type(layer.layer).__name__} layer became a {type(inner).__name__} layer")
    if not layer.on_input:
        return replace(layer, layer=inner, magnitude=_rows(layer.magnitude, spans, long_axis(layer.magnitude)))
    if sum(stop - start for start, stop in spans) != total:
        raise refusal(layer, "its lengths are those of columns, which reach over all rows")
    return replace(layer, layer=inner)


def _rotation(layer: DiagOFT | KohyaOFT, spans: Sequence[Span], total: int) -> DiagOFT | KohyaOFT:
    size = int(layer.blocks.shape[1])
    if any(edge % size for span in spans for edge in span):
        raise refusal(layer, f"the cut goes through one of its blocks of {size} rows")
    kept = _rows(layer.blocks, [(start // size, stop // size) for start, stop in spans])
    part = replace(layer, blocks=kept)
    if isinstance(part, DiagOFT) and part.rescale is not None:
        part = replace(part, rescale=_rows(part.rescale, spans))
    if math.prod(kept.shape[:2]) != total and not (unbound(layer) and unbound(part)):
        raise refusal(layer, "its constraint bounds all blocks together")
    return part
