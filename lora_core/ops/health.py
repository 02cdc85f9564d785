"""Health of an adapter: weights that are no numbers, and layers that do nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..adapter import Adapter
from ..errors import BadValues
from ..layers import Layer, LoRA


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
    """Tell whether a layer changes nothing: a LoRA with one factor all zero, any other with every tensor zero."""
    empty = [not bool(tensor.float().any()) for tensor in layer.tensors()]
    return any(empty) if isinstance(layer, LoRA) else all(empty)


def values(layer: Layer) -> tuple[Tensor, ...]:
    """Return every number that a layer holds, a LoRA's alpha included."""
    return (*layer.tensors(), torch.tensor(layer.alpha)) if isinstance(layer, LoRA) else layer.tensors()


def finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds finite numbers alone."""
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch has few operations on 8-bit floats
    return bool(torch.isfinite(wide).all())
