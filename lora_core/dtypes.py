"""What a person may ask for by name: how numbers are stored, and where they are computed."""

from __future__ import annotations

import torch

from .errors import BadConfig

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_named(name: str) -> torch.dtype | None:
    """Return the dtype of that name, None for "keep". Raises BadConfig.

    >>> dtype_named("fp16")
    torch.float16
    """
    if name not in ("keep", *DTYPES):
        raise BadConfig(f"dtype {name!r}: choose keep, {', '.join(DTYPES)}")
    return DTYPES.get(name)


def device_named(name: str) -> torch.device:
    """Return a device that is there: "cpu", "cuda" or "cuda:1". Raises BadConfig."""
    try:
        device = torch.device(name)
        if device.type in ("cpu", "cuda"):  # elsewhere torch lacks some of the decompositions
            torch.empty(1, device=device)
            return device
    except (RuntimeError, AssertionError):  # an unknown word; a torch or a machine without it
        pass
    raise BadConfig(f"device {name!r}: nothing can be computed there; choose cpu, or cuda with an NVIDIA or AMD card")
