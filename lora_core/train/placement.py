"""Where a model lies and in what precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .storage import resting


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change a model's weights to a dtype, in place and one by one.

    Buffers that no checkpoint holds, such as rotary frequencies, are left as they are. In half precision, what the
    model's class keeps in float32 becomes float32: diffusers' classes mean fp16 and bf16, transformers' fp16 alone.
    """
    whole = dtype == torch.float32 or (dtype == torch.bfloat16 and type(model).__module__.startswith("transformers."))
    kept = () if whole else tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if any(part in name.split(".") for part in kept) else dtype)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device unless it lies there; weights that rest on the CPU stay there."""
    first = next(model.parameters(), None)
    if first is None or first.device == device:
        return
    held = [(module, module._parameters.pop("weight")) for module in resting(model)]
    model.to(device)
    for module, weight in held:
        module._parameters["weight"] = weight


def move_all(models: Iterable[nn.Module], device: torch.device) -> None:
    """Move several models to a device."""
    for model in models:
        move(model, device)
