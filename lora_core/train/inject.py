"""Trained layers on a live model: attached to module instances, and taken off again without a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Target
from .dropout import Dropout
from .kinds import Site, Trained
from .operations import operation_of

Weights = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]  # (module, input) -> (weight, bias)


def weights_like(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a module's weight and bias in the dtype and on the device of `like`; no copy where they already are."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return weight.to(like), bias.to(like) if isinstance(bias, Tensor) else None


@contextmanager
def attached(
    modules: Mapping[Target, nn.Module],
    factors: Mapping[Target, Trained],
    weights: Weights = weights_like,
    dropout: Dropout | None = None,
) -> Iterator[None]:
    """Let the modules compute with their trained layers inside the block, and as before after it.

    Only the instances' `forward` is replaced: classes, parameters and module tree stay as they are. `weights` says
    where a module's weight comes from; a host that casts, dequantises or streams weights passes its own. Raises
    RuntimeError when a module is adapted already.
    """
    with ExitStack() as stack:
        for target, trained in factors.items():
            module = modules[target]
            operation, widths, mode = operation_of(module)
            site = Site(target, operation, partial(weights, module), dropout or Dropout())
            stack.enter_context(replaced_forward(module, _Adapted(_adapted, trained, site, widths, mode)))
        yield


class Replaced(partial[Tensor]):
    """A replaced forward, told apart from a host's own by its type."""

    before: Any = None  # the instance's own forward that it stands for, if there was one


class _Adapted(Replaced):
    """The forward of an adapted module."""


@contextmanager
def replaced_forward(module: nn.Module, forward: Replaced) -> Iterator[None]:
    """Let one module instance compute with another forward in the block; raises RuntimeError when it does already."""
    forward.before = module.__dict__.get("forward")
    if isinstance(forward.before, type(forward)):
        raise RuntimeError("this module is adapted already; leave the first such block before entering another")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if forward.before is not None:
            module.__dict__["forward"] = forward.before


@contextmanager
def switched_off(modules: Mapping[Target, nn.Module]) -> Iterator[None]:
    """Let adapted modules compute as if they were not adapted inside the block, and as adapted again after it."""
    adapted = [module for module in modules.values() if isinstance(module.__dict__.get("forward"), _Adapted)]
    forwards = [module.__dict__.pop("forward") for module in adapted]
    for module, forward in zip(adapted, forwards, strict=True):
        if forward.before is not None:
            module.__dict__["forward"] = forward.before
    try:
        yield
    finally:
        for module, forward in zip(adapted, forwards, strict=True):
            module.__dict__["forward"] = forward


def _adapted(trained: Trained, site: Site, widths: tuple[int, ...], mode: str, x: Tensor) -> Tensor:
    return trained.output(site, F.pad(x, widths, mode=mode) if widths else x)


@contextmanager
def trainable_through(*modules: nn.Module) -> Iterator[None]:
    """Let gradients flow through frozen modules inside the block, even when their weights are inference tensors.

    Every parameter and buffer that autograd would refuse (inference tensors) or needlessly differentiate (those that
    require a gradient) is exchanged for a plain tensor over the SAME memory, and put back afterwards: nothing is
    copied. Tensor subclasses, such as quantised weights, are left alone. The forward pass must run outside inference
    mode: in a fresh thread or under `torch.inference_mode(False)`.
    """
    exchanged: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    twins: dict[int, Tensor] = {}  # tied weights stay tied
    try:
        for table in (table for module in modules for part in module.modules() for table in _tables(part)):
            for name, tensor in list(table.items()):
                if tensor is not None and _in_the_way(tensor):
                    exchanged.append((table, name, tensor))
                    table[name] = twins.setdefault(id(tensor), _twin(tensor))
        yield
    finally:
        for table, name, tensor in exchanged:
            table[name] = tensor


def _tables(module: nn.Module) -> tuple[dict[str, Tensor | None], ...]:
    return module._parameters, module._buffers  # type: ignore[return-value]


def _in_the_way(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and (tensor.is_inference() or tensor.requires_grad)


def _twin(tensor: Tensor) -> Tensor:
    """Return a frozen plain tensor over the same memory; an inference tensor's own views would be inference tensors."""
    with torch.inference_mode(False):
        plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain
