"""What every layer promises.

Additive layers have a change of their own; a Transform's effect depends on the weight that it meets. Either kind has
`apply`, `tensors` and `scaled`. At strength 0 a weight stays as it is, whatever the layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import WrongArchitecture

Sizes = tuple[int | None, ...]  # a weight's shape; None for a side that may have any size


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the dtype to compute in: float64 if it is in float64 already, else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


T = TypeVar("T", bound="Transform")


def identical(one: object, other: object) -> bool:
    """Tell whether two tensors, or two other values, are the same: dtype and every value of a tensor."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    if one is other or one.dtype != other.dtype or one.shape != other.shape:
        return one is other
    if _same_memory(one, other):
        return True
    if one.dtype.itemsize == 1:  # torch has few operations on 8-bit floats
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    if one.dtype in (torch.float16, torch.bfloat16):  # many times as quick as the comparison of numbers
        return torch.equal(one.view(torch.int16), other.view(torch.int16)) or torch.equal(one, other)
    return torch.equal(one, other)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one dtype and shape are the same place in memory."""
    where = [(tensor.device, tensor.data_ptr(), tensor.stride()) for tensor in (one, other)]
    return where[0] == where[1] and one.device.type != "meta"


class Additive(ABC):
    """A layer whose effect is `weight + strength * delta()`, whatever the weight."""

    @abstractmethod
    def delta(self) -> Tensor:
        """Return the parameter's change at strength 1, float32 (float64 from float64 tensors), in its own shape."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors, for counting, checking and moving."""

    @abstractmethod
    def scaled(self, strength: float) -> Additive:
        """Return the same layer with `delta()` multiplied by `strength`."""

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return `weight + strength * delta()`, computed in float32, in the weight's shape and dtype.

        Raises WrongArchitecture where the change has another number of values than the weight.
        """
        change = self.delta().to(weight.device)
        if change.numel() != weight.numel():
            raise misfit(self, tuple(change.shape), weight)
        return torch.add(wide(weight), change.reshape(weight.shape), alpha=strength).to(weight.dtype)


class Transform(ABC):
    """A layer whose effect depends on the weight: a rotation, a factor, a normalisation, a replacement."""

    @property
    @abstractmethod
    def shape(self) -> Sizes:
        """Shape of the weights that the layer fits, the kernel left out or flattened into the input where unknown."""

    @abstractmethod
    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the changed weight; `weight` is float32 or float64, `strength` is not 0."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the stored tensors, for counting, checking and moving."""

    def scaled(self: T, strength: float) -> T | None:
        """Return the layer whose effect at strength 1 is this one's at `strength`, or None where no tensor can say it.

        None is the rule: most of these layers have no number that a strength could go into.
        """
        return self if strength == 1 else None

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the changed weight, computed in float32, in the weight's shape and dtype.

        Raises WrongArchitecture where the layer does not fit the weight.
        """
        if strength == 0:
            return weight
        return self.changed(wide(weight), strength).reshape(weight.shape).to(weight.dtype)


def misfit(layer: Additive | Transform, shape: Sizes, weight: Tensor) -> WrongArchitecture:
    """Return the refusal of a layer that meets a weight which it was not made for."""
    sizes = ", ".join("any" if size is None else str(size) for size in shape)
    return WrongArchitecture(
        f"a {type(layer).__name__} layer for a weight of shape ({sizes}) met one of shape {tuple(weight.shape)}: "
        "the adapter was made for another model"
    )
