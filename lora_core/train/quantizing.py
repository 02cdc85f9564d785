"""Frozen weights in eight or four bits, and back: plain torch, so that every machine reads them alike.

Sources: int8 and fp8 by row, the field's usual absolute-maximum scaling; nf4, QLoRA (arXiv 2305.14314, section 3), the
sixteen values of its appendix E, blocks of 64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64  # weights that share a scale in nf4
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Coding:
    """A way to store a matrix in fewer bits."""

    encode: Callable[[Tensor], tuple[Tensor, Tensor]]  # weight (out, in) -> codes, scales
    decode: Callable[[Tensor, Tensor, torch.dtype], Tensor]  # codes, scales, dtype -> weight, flat or (out, in)
    multiple: int = 1  # of the number of weights


def _scales(weight: Tensor, largest: float) -> Tensor:
    """Return what each row is divided by, (out, 1) float32, so that its largest value becomes `largest`."""
    return weight.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = _scales(weight, 127.0)
    return (weight.float() / scales).round().to(torch.int8), scales


def _to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = _scales(weight, torch.finfo(torch.float8_e4m3fn).max)
    return (weight.float() / scales).to(torch.float8_e4m3fn), scales


def _by_row(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype) * scales.to(dtype)


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return two codes a byte, the first in its high half, and a scale for each block."""
    blocks = weight.float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    values = torch.tensor(NF4, device=weight.device)
    codes = torch.bucketize(blocks / scales, (values[1:] + values[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales


def _from_nf4(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    values = torch.tensor(NF4, device=codes.device, dtype=dtype)
    halves = torch.stack([codes >> 4, codes & 15], dim=1).int()
    return values[halves].view(-1, BLOCK) * scales.to(dtype)


CODINGS: Mapping[str, Coding] = {
    "int8": Coding(_to_int8, _by_row),
    "fp8": Coding(_to_fp8, _by_row),
    "nf4": Coding(_to_nf4, _from_nf4, BLOCK),
}
