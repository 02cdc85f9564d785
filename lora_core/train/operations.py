"""What a Linear or a two-dimensional convolution does with its weight, and the gradients of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operation(Protocol):
    """A layer's product, apart from its weight."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return a new tensor, the layer's output."""

    def to_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x; of x only the shape counts."""

    def to_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the weight; of the weight only the shape counts."""

    def per_output(self, vector: Tensor) -> Tensor:
        """Return a vector (out,) in a shape that multiplies outputs."""

    def summed(self, grad: Tensor) -> Tensor:
        """Return the sum over all but the outputs' dimension, (out,)."""


@dataclass(frozen=True)
class Matrix:
    """The product of a Linear: x (..., in), weight (out, in)."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (..., out)."""
        return F.linear(x, weight, bias)

    def to_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return (..., in)."""
        return grad @ weight

    def to_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return (out, in)."""
        return grad.flatten(0, -2).t() @ x.flatten(0, -2)

    def per_output(self, vector: Tensor) -> Tensor:
        """Return the vector as it is."""
        return vector

    def summed(self, grad: Tensor) -> Tensor:
        """Return the sum over all but the last dimension."""
        return grad.flatten(0, -2).sum(0, dtype=_at_least_float32(grad))


@dataclass(frozen=True)
class Geometry:
    """How a two-dimensional convolution moves over its input: x (B, in, h, w), weight (out, in, *kernel)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (B, out, h', w')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)

    def to_input(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return (B, in, h, w)."""
        found: Tensor = convolution_gradients(grad, x, weight, self, (True, False))[0]
        return found

    def to_weight(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return (out, in, *kernel)."""
        found: Tensor = convolution_gradients(grad, x, weight.to(x.dtype), self, (False, True))[1]
        return found

    def per_output(self, vector: Tensor) -> Tensor:
        """Return (out, 1, 1)."""
        return vector[:, None, None]

    def summed(self, grad: Tensor) -> Tensor:
        """Return the sum over pictures and places."""
        return grad.sum((0, 2, 3), dtype=_at_least_float32(grad))

    def size(self, x: Tensor, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output's height and width."""
        sides = zip(x.shape[2:], kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((side + 2 * pad - dilation * (k - 1) - 1) // step + 1 for side, k, step, pad, dilation in sides)


POINTWISE = Geometry((1, 1), (0, 0), (1, 1))


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, how: Geometry, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """Return the gradients of a convolution's input and weight; None where not wanted."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, how.stride, how.padding, how.dilation, False, (0, 0), 1, (*wanted, False)
    )
    return grad_x, grad_weight


def operation_of(module: nn.Module) -> tuple[Operation, tuple[int, ...], str]:
    """Return a module's operation, and what has to be padded onto its input first: widths and mode.

    Circular, reflecting and unequal padding happens before the convolution, which then has none of its own.
    """
    if not isinstance(module, nn.Conv2d):
        return Matrix(), (), ""
    stride, dilation = _pair(module.stride), _pair(module.dilation)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return Geometry(stride, (0, 0), dilation), tuple(module._reversed_padding_repeated_twice), mode
    return Geometry(stride, _pair(module.padding), dilation), (), ""


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _pair(sides: tuple[int, ...]) -> tuple[int, int]:
    return int(sides[0]), int(sides[1])
