"""`W x + b + scale * up(down(x))` as one differentiable step whose frozen weight never enters autograd's records.

The weight is asked for in the forward and again in the backward pass, so it may be an inference tensor, of any dtype,
quantised, or living on another device between the two: `Fetch` hides that. Saved for the backward pass are x, the small
`down(x)` and the two factors. Source of the gradients: the chain rule on LoRA's equation 3 (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Fetch = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # input -> (weight, bias) in its dtype and on its device


class AdaptedLinear(torch.autograd.Function):
    """Inputs: x (..., in), down (rank, in), up (out, rank), scale, fetch. Output: (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, fetch: Fetch) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        y = F.linear(x, weight, bias).contiguous()
        low = F.linear(x, down.to(x.dtype))
        y.view(-1, y.shape[-1]).addmm_(low.flatten(0, -2), up.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, low, down, up)
        ctx.scale, ctx.fetch = scale, fetch
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x, down and up; the weight has none."""
        x, low, down, up = ctx.saved_tensors
        grad = grads[0].reshape(-1, up.shape[0])
        grad_low = (grad @ up.to(x.dtype)).mul_(ctx.scale)
        grad_up = (grad.t() @ low.reshape(grad.shape[0], -1)).mul_(ctx.scale)
        grad_down = grad_low.t() @ x.reshape(grad.shape[0], -1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight, _ = ctx.fetch(x)
            grad_x = torch.mm(grad, weight).addmm_(grad_low, down.to(x.dtype)).view(x.shape)
        return grad_x, grad_down.to(down.dtype), grad_up.to(up.dtype), None, None


@dataclass(frozen=True)
class Geometry:
    """How a two-dimensional convolution moves over its input."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class AdaptedConv2d(torch.autograd.Function):
    """Inputs: x (B, in, h, w), down (rank, in, *kernel), up (out, rank, 1, 1), scale, fetch, geometry."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, fetch: Fetch, geometry: Geometry
    ) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        how = (geometry.stride, geometry.padding, geometry.dilation)
        y = F.conv2d(x, weight, bias, *how)
        low = F.conv2d(x, down.to(x.dtype), None, *how)
        y.add_(F.conv2d(low, up.to(x.dtype)), alpha=scale)
        ctx.save_for_backward(x, low, down, up)
        ctx.scale, ctx.fetch, ctx.geometry = scale, fetch, geometry
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x, down and up; the weight has none."""
        x, low, down, up = ctx.saved_tensors
        grad, wants_x = grads[0], ctx.needs_input_grad[0]
        pointwise = Geometry((1, 1), (0, 0), (1, 1))
        grad_low, grad_up = _conv_backward(grad * ctx.scale, low, up.to(x.dtype), pointwise, (True, True))
        grad_x, grad_down = _conv_backward(grad_low, x, down.to(x.dtype), ctx.geometry, (wants_x, True))
        if wants_x:
            weight, _ = ctx.fetch(x)
            grad_x = grad_x + _conv_backward(grad, x, weight, ctx.geometry, (True, False))[0]
        return grad_x, grad_down.to(down.dtype), grad_up.to(up.dtype), None, None, None


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, how: Geometry, wanted: tuple[bool, bool]
) -> tuple[Any, Any]:
    """Return the gradients of a convolution's input and weight; None where not wanted."""
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, how.stride, how.padding, how.dilation, False, (0, 0), 1, (*wanted, False)
    )
    return grad_x, grad_weight
