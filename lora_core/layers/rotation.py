"""Orthogonal matrices from their parameters, and block-diagonal rotations of a weight's rows or columns.

Sources: OFT, arXiv 2306.07280, section 3.3 (Cayley parametrisation, equation 5, and the constrained variant COFT);
the truncated Neumann series of the inverse: OFTv2, arXiv 2506.19847, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def skew(blocks: Tensor) -> Tensor:
    """Return `B - B^T` of square blocks `(..., b, b)`."""
    return blocks - blocks.transpose(-1, -2)


def identity(blocks: Tensor) -> Tensor:
    """Return the identity `(b, b)` in the blocks' dtype, on their device."""
    return torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)


def cayley(blocks: Tensor) -> Tensor:
    """Return `(I + Q)(I - Q)^-1` of skew-symmetric blocks `(..., b, b)`; of `-Q` it is the inverse rotation.

    On a CPU the blocks are solved one by one: the batched solver of torch 2.13 never ends there with two threads or
    more and a few large blocks (oneMKL rejects an argument of its LASWP).
    """
    one = identity(blocks)
    if blocks.device.type != "cpu":
        solved: Tensor = torch.linalg.solve(one - blocks, one + blocks)  # the two commute
        return solved
    each = blocks.reshape(-1, *blocks.shape[-2:])
    return torch.stack([torch.linalg.solve(one - block, one + block) for block in each]).reshape(blocks.shape)


def towards(rotation: Tensor, strength: float) -> Tensor:
    """Return the point at `strength` on the line from the identity to the rotation: `I + strength * (R - I)`."""
    if strength == 1:
        return rotation
    one = identity(rotation)
    return one + strength * (rotation - one)


def rotate_rows(rotation: Tensor, weight: Tensor) -> Tensor:
    """Return the weight with its k-th row block replaced by `R_k^T` times it, `rotation` being `(n, b, b)`."""
    blocks = weight.reshape(rotation.shape[0], rotation.shape[1], -1)
    return torch.bmm(rotation.transpose(1, 2), blocks).reshape(weight.shape)


def rotate_columns(rotation: Tensor, weight: Tensor) -> Tensor:
    """Return the weight, input and kernel seen as one side, with its k-th column block multiplied by `R_k^T`."""
    blocks = weight.reshape(weight.shape[0], rotation.shape[0], rotation.shape[1])
    return torch.einsum("onk,nck->onc", blocks, rotation).reshape(weight.shape)


def align(factor: Tensor, weight: Tensor) -> Tensor:
    """Return a factor for each row `(out, ...)`, shaped to multiply the weight."""
    return factor.reshape(-1, *(1,) * (weight.dim() - 1))
