"""Health of an adapter: weights that are no numbers, and layers that do nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..adapter import Adapter
from ..errors import BadValues
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


@dataclass(frozen=True)
class Health:
    """What a look at every value found."""

    nan: int  # values that are NaN
    inf: int  # values that are infinite
    zero_layers: int  # layers without effect, such as a LoRA whose up is all zero

    @property
    def sound(self) -> bool:
        """Whether every value is a finite number."""
        return not self.nan and not self.inf


def health(adapter: Adapter) -> Health:
    """Count bad values and idle layers; alphas count as values."""
    tensors = [tensor for layer in adapter.layers.values() for tensor in values(layer) if not finite(tensor)]
    return Health(
        nan=sum(int(tensor.float().isnan().sum()) for tensor in tensors),
        inf=sum(int(tensor.float().isinf().sum()) for tensor in tensors),
        zero_layers=sum(is_zero(layer) for layer in adapter.layers.values()),
    )


def refuse_bad_values(adapter: Adapter, file: str | Path) -> None:
    """Raise BadValues naming the first layers that hold NaN or infinite values; `file` is named in the message."""
    bad = [target for target, layer in adapter.layers.items() if not all(map(finite, values(layer)))]
    if bad:
        first = ", ".join(f"{target.component} {target.module}" for target in bad[:3])
        raise BadValues(
            f"{Path(file).name}: {len(bad)} of {len(adapter.layers)} layers hold NaN or infinity, first {first}: "
            "the training failed there; take an earlier checkpoint",
            file=file,
            layers=len(bad),
        )


def is_zero(layer: Layer) -> bool:
    """Tell whether a layer changes nothing, as far as its tensors tell: one factor of a product is zero, say.

    A DoRA and a replacement count as acting: whether they do depends on the weight.
    """
    match layer:
        case LoRA():
            return any(map(_empty, (layer.down, layer.up))) or layer.scale == 0
        case LoHa() | LoKr():
            return any(map(_empty, layer.tensors())) or layer.scale == 0
        case Full():
            return _empty(layer.diff) or layer.scale == 0
        case GLoRA():
            return all(any(map(_empty, pair)) for pair in ((layer.a1, layer.a2), (layer.b1, layer.b2)))
        case BOFT() | DiagOFT():
            return _still(layer.blocks) and (layer.rescale is None or _empty(layer.rescale.float() - 1))
        case PeftBOFT():
            return _still(layer.blocks) and _empty(layer.rescale.float() - 1)
        case KohyaOFT():
            return _still(layer.blocks) or layer.alpha == 0
        case OFTv2():
            return _empty(layer.upper) or layer.terms == 1
        case IA3():
            return _empty(layer.scale.float() - float(layer.absolute))
        case DoRA() | Replace():
            return False


def values(layer: Layer) -> tuple[Tensor, ...]:
    """Return every number that a layer holds, those beside the tensors (alpha, a constraint) included."""
    inner = layer.layer if isinstance(layer, DoRA) else layer
    beside = (getattr(inner, item.name) for item in fields(inner))
    return (*layer.tensors(), *(torch.tensor(number) for number in beside if isinstance(number, float)))


def _empty(tensor: Tensor) -> bool:
    return not bool(tensor.float().any())


def _still(blocks: Tensor) -> bool:
    """Tell whether blocks make no rotation: their skew-symmetric part is zero."""
    return torch.equal(blocks.float(), blocks.float().transpose(-1, -2))


def finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds finite numbers alone: its extremes tell, as NaN is one; ten times as quick."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch has few operations on 8-bit floats
    return all(math.isfinite(float(extreme)) for extreme in torch.aminmax(wide))
