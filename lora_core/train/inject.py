"""LoRA layers on a live model: made, attached to module instances, and taken off again without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapter import Target
from ..errors import BadConfig
from ..layers import LoRA
from . import rng
from .functions import AdaptedConv2d, AdaptedLinear, Geometry

Weights = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor | None]]  # (module, input) -> (weight, bias)


@dataclass(frozen=True, eq=False)
class Factors:
    """The trainable half of one adapted module; the effect is `alpha / rank * up @ down`."""

    down: nn.Parameter  # (rank, in, *kernel) float32
    up: nn.Parameter  # (out, rank, *ones) float32
    alpha: float

    @property
    def scale(self) -> float:
        """The factor `alpha / rank`."""
        return self.alpha / self.down.shape[0]

    def layer(self) -> LoRA:
        """Return a copy on the CPU that training does not change any more."""
        down, up = (tensor.detach().cpu().clone() for tensor in (self.down, self.up))
        return LoRA(down, up, self.alpha)


def create(
    modules: Mapping[Target, nn.Module], rank: int, alpha: float, seed: int, device: torch.device | None = None
) -> dict[Target, Factors]:
    """Return fresh factors for every module: down uniform in `+-1/sqrt(fan in)`, up zero, so the effect starts at none.

    The values are what `kaiming_uniform_(a=sqrt(5))` draws from, keyed by seed and target: adding or removing targets
    leaves the others' start as it was. Raises BadConfig for a module that cannot be adapted.
    """
    return {target: _factors(target, module, rank, alpha, seed, device) for target, module in modules.items()}


def _factors(
    target: Target, module: nn.Module, rank: int, alpha: float, seed: int, device: torch.device | None
) -> Factors:
    inner, outer = _shapes(target, module, rank)
    place = device or next(module.parameters()).device
    noise = torch.rand(inner, generator=rng.generator(seed, "init", target.component, target.module))
    bound = 1 / math.sqrt(math.prod(inner[1:]))
    with torch.inference_mode(False):
        down = nn.Parameter(((2 * noise - 1) * bound).to(place))
        up = nn.Parameter(torch.zeros(outer, device=place))
    return Factors(down, up, alpha)


def _shapes(target: Target, module: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of down and up."""
    if isinstance(module, nn.Linear):
        return (rank, module.in_features), (module.out_features, rank)
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
    kind = type(module).__name__
    raise BadConfig(f"{target.module}: a {kind} cannot take a LoRA; choose targets that are Linear or plain Conv2d")


def weights_like(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a module's weight and bias in the dtype and on the device of `like`; no copy where they already are."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return weight.to(like), bias.to(like) if isinstance(bias, Tensor) else None


@contextmanager
def attached(
    modules: Mapping[Target, nn.Module], factors: Mapping[Target, Factors], weights: Weights = weights_like
) -> Iterator[None]:
    """Let the modules compute `base(x) + scale * up(down(x))` inside the block, and as before after it.

    Only the instances' `forward` is replaced: classes, parameters and module tree stay as they are. `weights` says
    where a module's weight comes from; a host that casts, dequantises or streams weights passes its own. Raises
    RuntimeError when a module is adapted already.
    """
    with ExitStack() as stack:
        for target, pair in factors.items():
            stack.enter_context(_replaced_forward(modules[target], pair, weights))
        yield


class _Adapted(partial[Tensor]):
    """A replaced forward, told apart from a host's own by its type."""


@contextmanager
def _replaced_forward(module: nn.Module, pair: Factors, weights: Weights) -> Iterator[None]:
    before = module.__dict__.get("forward")
    if isinstance(before, _Adapted):
        raise RuntimeError("this module is adapted already; leave the first 'attached' block before entering another")
    forward = _conv_forward if isinstance(module, nn.Conv2d) else _linear_forward
    module.__dict__["forward"] = _Adapted(forward, module, pair, partial(weights, module))
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


def _linear_forward(module: nn.Module, pair: Factors, fetch: Any, x: Tensor) -> Tensor:
    result: Tensor = AdaptedLinear.apply(x, pair.down, pair.up, pair.scale, fetch)  # type: ignore[no-untyped-call]
    return result


def _conv_forward(module: nn.Conv2d, pair: Factors, fetch: Any, x: Tensor) -> Tensor:
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0, 0)
    how = Geometry(module.stride, padding, module.dilation)  # type: ignore[arg-type]
    result: Tensor = AdaptedConv2d.apply(x, pair.down, pair.up, pair.scale, fetch, how)  # type: ignore[no-untyped-call]
    return result


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
