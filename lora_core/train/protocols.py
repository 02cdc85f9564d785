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

    mean: Tensor  # (C, h, w) float32, CPU; of video (C, frames, h, w)
    std: Tensor  # the same shape; zeros where an encoder gives no distribution


@dataclass(frozen=True, eq=False)
class Schedule:
    """How a model family adds noise, and how its timesteps are drawn where the configuration does not say.

    Two kinds. Discrete diffusion: `alphas_cumprod` holds T values, a timestep is a whole number in `[0, T)`. Flow
    matching: `alphas_cumprod` is None, `x_t = (1 - s) x0 + s e` for s in (0, 1], and the timestep is `1000 s`.
    """

    prediction: str  # "epsilon" | "v_prediction" | "flow" (the velocity e - x0)
    alphas_cumprod: Tensor | None = None  # (T,) float32
    timesteps: str = "uniform"  # density: one of the configuration's words for 'timesteps' but "auto"
    shift: float = 1.0  # of flow models: s becomes shift s / (1 + (shift - 1) s)
    tokens: Mapping[str, float] | None = None  # shift by resolution: base_seq_len, max_seq_len, base_shift, max_shift
    patch: int = 1  # latent pixels along a token's side, for counting tokens


class Denoiser(Protocol):
    """The network under training, with or without its text encoders."""

    def modules(self) -> Mapping[Target, nn.Module]:
        """Return what is to be adapted."""

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the raw prediction, in noisy's shape and the model's own parametrisation, differentiable.

        `t` is (B,): the timesteps as `Schedule` counts them, whole numbers or float32.
        """


class Backend(Protocol):
    """A loaded model: the denoiser and what prepares its inputs."""

    @property
    def denoiser(self) -> Denoiser:
        """The network under training."""

    @property
    def architecture(self) -> str:
        """Family id, as adapters carry it."""

    @property
    def names(self) -> Mapping[Target, str]:
        """The adapted modules' names as the configuration's patterns mean them, where they are not the targets' own."""

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
    def schedule(self) -> Schedule:
        """How noise is added, and what the model predicts."""

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
