"""Frozen layers whose weights are kept small, or wait on the CPU until their turn.

Such a layer's weight is decoded, or fetched, for each product and again for its gradient, and then forgotten. Adapters
get it through `weights`, layers without one through a forward of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadConfig
from .functions import Frozen
from .inject import Replaced, weights_like
from .operations import operation_of
from .quantizing import CODINGS, Coding

_STORED = "stored"  # name under which a module holds its own Stored
_SCALES = "weight_scales"


@dataclass(frozen=True, eq=False)
class Stored:
    """How a module's weight is kept."""

    shape: torch.Size
    coding: Coding | None = None  # None: as it was
    rests: bool = False  # on the CPU


class Storing(Replaced):
    """The forward of a module whose weight is stored otherwise."""


def store(model: nn.Module, blocks: Sequence[nn.Module], quantize: str = "none", swap: int = 0) -> None:
    """Change, in place, how the weights of a model's blocks are kept.

    Args:
        model: the denoiser, frozen and on the CPU.
        blocks: its repeated blocks.
        quantize: how their Linear layers are stored: "none", or a name in `quantizing.CODINGS`. Layers that the model's
            class says to be sensitive (norms, most often) are left alone.
        swap: how many blocks, the last ones, leave their weights on the CPU.

    Raises:
        BadConfig: there are not so many blocks.
    """
    if swap > len(blocks):
        text = f"config: 'swap_blocks' is {swap}, and the model has {len(blocks)} blocks; choose {len(blocks)} or less"
        raise BadConfig(text, key="swap_blocks")
    resting = {part for block in blocks[len(blocks) - swap :] for part in block.modules()}
    spared = re.compile("|".join(getattr(type(model), "_skip_layerwise_casting_patterns", None) or ("$^",)))
    inside = {part for block in blocks for part in block.modules()}
    for name, module in list(model.named_modules()):
        if module in inside and _is_plain(module):
            coding = CODINGS.get(quantize) if isinstance(module, nn.Linear) and not spared.search(name) else None
            _keep(module, coding, module in resting)


def weights(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a module's weight and bias in the dtype and on the device of `like`, however they are kept."""
    stored: Stored | None = module.__dict__.get(_STORED)
    if stored is None:
        return weights_like(module, like)
    kept, bias = module.weight, module.bias
    assert isinstance(kept, Tensor)
    weight = kept.to(like.device, non_blocking=True)  # in order with what computes on it, and its source never changes
    if stored.coding is not None:
        scales = module._buffers[_SCALES]
        assert scales is not None
        weight = stored.coding.decode(weight, scales.to(like.device), like.dtype).view(stored.shape)
    return weight.to(like.dtype), bias.to(like) if isinstance(bias, Tensor) else None


def resting(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules whose weights wait on the CPU."""
    for module in model.modules():
        stored: Stored | None = module.__dict__.get(_STORED)
        if stored is not None and stored.rests:
            yield module


def _is_plain(module: nn.Module) -> bool:
    """Say whether a module is a Linear or ungrouped convolution that computes as torch's own."""
    if type(module).forward not in (nn.Linear.forward, nn.Conv2d.forward) or "forward" in module.__dict__:
        return False
    return getattr(module, "groups", 1) == 1


def _keep(module: nn.Module, coding: Coding | None, rests: bool) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if coding is not None and weight.numel() % coding.multiple:
        coding = None
    if coding is None and not rests:
        return
    module.__dict__[_STORED] = Stored(weight.shape, coding, rests)
    if coding is not None:
        codes, scales = coding.encode(weight.detach())
        module.register_buffer(_SCALES, scales, persistent=False)
        weight = codes
    if rests and torch.cuda.is_available():
        weight = weight.detach().pin_memory()
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    operation, widths, mode = operation_of(module)
    module.__dict__["forward"] = Storing(_frozen, partial(weights, module), operation, widths, mode)


def _frozen(fetch: Any, operation: Any, widths: tuple[int, ...], mode: str, x: Tensor) -> Tensor:
    result: Tensor = Frozen.apply(F.pad(x, widths, mode=mode) if widths else x, fetch, operation)  # type: ignore[no-untyped-call]
    return result
