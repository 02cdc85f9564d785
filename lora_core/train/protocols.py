"""The seam to models: what a host or a library provides so that the loop can train on it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from ..adapter import Target

if TYPE_CHECKING:
    from PIL.Image import Image

Cond = Mapping[
    str, Tensor
]  # conditioning by name, each (B, ...): embeddings, or token ids when the text encoder trains


@dataclass(frozen=True, eq=False)
class Moments:
    """The autoencoder's distribution over one picture's latents, already in the denoiser's scale."""

    mean: Tensor  # (C, h, w) float32, CPU
    std: Tensor  # (C, h, w); zeros where an encoder gives no distribution


class Denoiser(Protocol):
    """The network under training, with or without its text encoders."""

    def modules(self) -> Mapping[Target, nn.Module]:
        """Return what is to be adapted."""

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the raw prediction (B, C, h, w) in the model's own parametrisation, differentiable."""


class Backend(Protocol):
    """A loaded model: the denoiser and what prepares its inputs."""

    @property
    def denoiser(self) -> Denoiser:
        """The network under training."""

    @property
    def architecture(self) -> str:
        """Family id, as adapters carry it."""

    @property
    def fingerprint(self) -> str:
        """A hash that differs between models; part of cache keys and of what a resumed run must match."""

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes, and so where the factors live; its weights may rest elsewhere."""

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in; its weights may be stored narrower."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """The noise schedule, (T,) float32."""

    @property
    def prediction(self) -> str:
        """What the model predicts: "epsilon" or "v_prediction"."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the start event tells: device, precision and so on."""

    def encode_image(self, pixels: Tensor) -> Moments:
        """Encode one picture, (3, H, W) in [-1, 1]."""

    def encode_text(self, caption: str) -> Cond:
        """Encode one caption; each tensor has a leading dimension of 1."""

    def sample(self, prompt: str, seed: int) -> Image:
        """Draw a picture with the model as it is now, from private randomness."""

    def training(self) -> AbstractContextManager[None]:
        """Hold the model where training needs it; entered once around a run, left in any case."""
