"""Frozen models that keep less for the backward pass: the same numbers, about a fifth less memory on a UNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .functions import Frozen, GatedGelu
from .inject import Replaced, Weights, replaced_forward, weights_like
from .operations import operation_of


class Lean(Replaced):
    """The forward of a module that keeps less."""


@contextmanager
def lean(*models: nn.Module, weights: Weights = weights_like) -> Iterator[None]:
    """Let frozen convolutions and gated feed-forward layers keep less inside the block; enter it before `attached`.

    Autograd keeps a convolution's input for the gradient of its weight, wanted or not, and of `hidden * gelu(gate)` all
    three. Convolutions that need a gradient of their weight, have hooks or a forward of their own are left alone.
    """
    with ExitStack() as stack:
        for module in (part for model in models for part in model.modules()):
            if _is_frozen_convolution(module):
                operation, widths, mode = operation_of(module)
                forward = Lean(_frozen, partial(weights, module), operation, widths, mode)
                stack.enter_context(replaced_forward(module, forward))
            elif _is_geglu(module):
                stack.enter_context(replaced_forward(module, Lean(_gated, module)))
        yield


def _is_frozen_convolution(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or type(module).forward is not nn.Conv2d.forward or module.groups != 1:
        return False
    return _is_untouched(module) and not any(parameter.requires_grad for parameter in module.parameters())


def _is_geglu(module: nn.Module) -> bool:
    """Say whether a module is the GEGLU (arXiv 2002.05202) of diffusers, or of the original models, by its name."""
    named = type(module).__name__ == "GEGLU" and isinstance(getattr(module, "proj", None), nn.Linear)
    return named and _is_untouched(module)


def _is_untouched(module: nn.Module) -> bool:
    hooked = any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks))
    return not hooked and "forward" not in module.__dict__


def _frozen(fetch: Any, operation: Any, widths: tuple[int, ...], mode: str, x: Tensor) -> Tensor:
    result: Tensor = Frozen.apply(F.pad(x, widths, mode=mode) if widths else x, fetch, operation)  # type: ignore[no-untyped-call]
    return result


def _gated(module: Any, x: Tensor, *_others: Any, **_more: Any) -> Tensor:
    result: Tensor = GatedGelu.apply(module.proj(x))  # type: ignore[no-untyped-call]
    return result
