"""Latents as rows of tokens, and where each token stands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def packed(latents: Tensor) -> Tensor:
    """Return (B, C, h, w) as tokens of 2 x 2 patches, (B, h / 2 * w / 2, 4 C), channels outermost in a token."""
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """Return tokens of 2 x 2 patches in the shape of `like`, (B, C, h, w)."""
    height, width = like.shape[-2:]
    patches = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return F.pixel_shuffle(patches, 2)


def places(latents: Tensor, patch: int = 2) -> Tensor:
    """Return the tokens' places, (tokens, 3): zero, row, column; float32, exact for any size."""
    rows, columns = (torch.arange(side // patch, device=latents.device) for side in latents.shape[-2:])
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    return F.pad(grid, (1, 0)).float()
