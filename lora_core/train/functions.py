"""Adapted layers as differentiable steps whose frozen weight never enters autograd's records.

The weight is asked for in the forward and again in the backward pass, so it may be an inference tensor, of any dtype,
quantised, or living on another device between the two: `Fetch` hides that. Saved for the backward pass are the input
and the trained tensors; what lies between them is cheap and is computed anew. Source of the gradients: the chain rule.

`AdaptedLinear` and `AdaptedConv2d` are LoRA (equation 3 of arXiv 2106.09685), written out because they are what most
runs consist of. `Beside` adds any function of the input to what the frozen layer gives, `Within` any change to its
weight. `Frozen` is a layer that is not adapted at all: autograd would keep a convolution's input for a gradient of its
weight that nobody wants. `GatedGelu` is no layer, but what a UNet keeps most for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operations import POINTWISE, Geometry, Operation, convolution_gradients

Fetch = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # input -> (weight, bias) in its dtype and on its device
Side = Callable[..., Tensor]  # (input, *trained) -> what is added to the output
Change = Callable[..., Tensor]  # (*trained) -> what is added to the weight


class AdaptedLinear(torch.autograd.Function):
    """`W x + b + scale * up(mask * down(x))`.

    Inputs: x (..., in), down (rank, in), up (out, rank), scale, fetch, mask None or (..., rank). Output: (..., out).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, scale: float, fetch: Fetch, mask: Tensor | None = None
    ) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        y = F.linear(x, weight, bias).contiguous()
        low = _masked(F.linear(x, down.to(x.dtype)), mask)
        y.view(-1, y.shape[-1]).addmm_(low.flatten(0, -2), up.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, down, up, mask)
        ctx.scale, ctx.fetch = scale, fetch
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x, down and up; the weight has none."""
        x, down, up, mask = ctx.saved_tensors
        grad, small = grads[0].reshape(-1, up.shape[0]), down.to(x.dtype)
        low = _masked(F.linear(x, small), mask)
        grad_up = (grad.t() @ low.reshape(grad.shape[0], -1)).mul_(ctx.scale)
        grad_low = _masked((grad @ up.to(x.dtype)).mul_(ctx.scale).view(low.shape), mask).flatten(0, -2)
        grad_down = grad_low.t() @ x.reshape(grad.shape[0], -1)
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight, _ = ctx.fetch(x)
            grad_x = torch.mm(grad, weight).addmm_(grad_low, small).view(x.shape)
        return grad_x, grad_down.to(down.dtype), grad_up.to(up.dtype), None, None, None


class AdaptedConv2d(torch.autograd.Function):
    """The same for a convolution.

    Inputs: x (B, in, h, w), down (rank, in, *kernel), up (out, rank, 1, 1), scale, fetch, geometry, mask None or
    (B, rank, h', w').
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        scale: float,
        fetch: Fetch,
        geometry: Geometry,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        y = geometry.output(x, weight, bias)
        low = _masked(geometry.output(x, down.to(x.dtype)), mask)
        y.add_(F.conv2d(low, up.to(x.dtype)), alpha=scale)
        ctx.save_for_backward(x, down, up, mask)
        ctx.scale, ctx.fetch, ctx.geometry = scale, fetch, geometry
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x, down and up; the weight has none."""
        x, down, up, mask = ctx.saved_tensors
        grad, wants_x, small = grads[0], ctx.needs_input_grad[0], down.to(x.dtype)
        low = _masked(ctx.geometry.output(x, small), mask)
        grad_low, grad_up = convolution_gradients(grad * ctx.scale, low, up.to(x.dtype), POINTWISE, (True, True))
        grad_low = _masked(grad_low, mask)
        grad_x, grad_down = convolution_gradients(grad_low, x, small, ctx.geometry, (wants_x, True))
        if wants_x:
            weight, _ = ctx.fetch(x)
            grad_x = grad_x.add_(ctx.geometry.to_input(grad, x, weight))
        return grad_x, grad_down.to(down.dtype), grad_up.to(up.dtype), None, None, None, None


class Beside(torch.autograd.Function):
    """`gain * (W x + side(x, *trained)) + b`; without gain `W x + side(x, *trained) + b`.

    Inputs: x, gain None or (out,), fetch, operation, side, trained tensors. `side` is run again in the backward pass,
    under autograd, which then keeps nothing of it from one pass to the other.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor | None, fetch: Fetch, operation: Operation, side: Side, *trained: Tensor
    ) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        y = operation.output(x, weight, bias if gain is None else None).add_(side(x, *trained))
        if gain is not None:
            y.mul_(operation.per_output(gain))  # near 1: it stays float32
        if gain is not None and bias is not None:
            y.add_(operation.per_output(bias))
        ctx.save_for_backward(x, gain, *trained)
        ctx.fetch, ctx.operation, ctx.side = fetch, operation, side
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x, gain and the trained tensors."""
        (x, gain, *trained), grad, operation = ctx.saved_tensors, grads[0], ctx.operation
        weight, _ = ctx.fetch(x)
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(ctx.needs_input_grad[0]), *_leaves(trained)]
            beside = ctx.side(*inputs)
        grad_gain = None
        if gain is not None:
            grad_gain = operation.summed(grad * (operation.output(x, weight) + beside.detach())).to(gain.dtype)
            grad = (grad * operation.per_output(gain)).to(grad.dtype)
        wanted = [one for one in inputs if one.requires_grad]
        found = list(torch.autograd.grad(beside, wanted, grad))
        grad_x = found.pop(0).add_(operation.to_input(grad, x, weight)) if ctx.needs_input_grad[0] else None
        return grad_x, grad_gain, None, None, None, *found


class Within(torch.autograd.Function):
    """`(W + change(*trained)) x + b`, with the change computed anew in the backward pass.

    Inputs: x, fetch, operation, change, trained tensors. In half precision a small change would be lost in W, so there
    the two products are added instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, fetch: Fetch, operation: Operation, change: Change, *trained: Tensor) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        ctx.save_for_backward(x, *trained)
        ctx.fetch, ctx.operation, ctx.change = fetch, operation, change
        delta = change(*trained).to(x.dtype)
        if _wide(x):
            return operation.output(x, delta.add_(weight), bias)
        return operation.output(x, weight, bias).add_(operation.output(x, delta))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return gradients of x and the trained tensors."""
        (x, *trained), grad, operation = ctx.saved_tensors, grads[0], ctx.operation
        with torch.enable_grad():
            leaves = _leaves(trained)
            delta = ctx.change(*leaves)
        found = torch.autograd.grad(delta, leaves, operation.to_weight(grad, x, delta).to(delta.dtype))
        grad_x = None
        if ctx.needs_input_grad[0]:
            weight, plain = ctx.fetch(x)[0], delta.detach().to(x.dtype)
            if _wide(x):
                grad_x = operation.to_input(grad, x, plain.add_(weight))
            else:
                grad_x = operation.to_input(grad, x, weight).add_(operation.to_input(grad, x, plain))
        return grad_x, None, None, None, *found


class Frozen(torch.autograd.Function):
    """`W x + b` that keeps nothing: the gradient of x needs the weight alone. Inputs: x, fetch, operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fetch: Fetch, operation: Operation) -> Tensor:
        """Compute in the dtype of x."""
        weight, bias = fetch(x)
        ctx.shape, ctx.fetch, ctx.operation = x.shape, fetch, operation
        return operation.output(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient of x."""
        like = grads[0].new_empty(1).expand(ctx.shape)
        return ctx.operation.to_input(grads[0], like, ctx.fetch(like)[0]), None, None


class GatedGelu(torch.autograd.Function):
    """`hidden * gelu(gate)` of `both = (hidden, gate)`, which alone is kept. Input: (..., 2 n). Output: (..., n)."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        """Compute in the dtype of the input."""
        ctx.save_for_backward(both)
        hidden, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Return the gradient of both."""
        (both,) = ctx.saved_tensors
        (hidden, gate), result = both.chunk(2, dim=-1), torch.empty_like(both)
        to_hidden, to_gate = result.chunk(2, dim=-1)
        torch.mul(grads[0], F.gelu(gate), out=to_hidden)
        to_gate.copy_(torch.ops.aten.gelu_backward(grads[0] * hidden, gate))
        return result


def _masked(low: Tensor, mask: Tensor | None) -> Tensor:
    return low if mask is None else low * mask


def _leaves(trained: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in trained]


def _wide(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64)
