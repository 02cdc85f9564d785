"""Pictures to latents, as each kind of autoencoder scales them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Moments


def scaled(vae: Any, pixels: Tensor) -> Moments:
    """Return `(x - shift) * factor` of AutoencoderKL's distribution."""
    found = vae.encode(pixels).latent_dist
    factor, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    return Moments((found.mean[0] - shift) * factor, found.std[0] * factor)


def scaled_mode(vae: Any, pixels: Tensor) -> Moments:
    """Return the same without its spread: families that are trained on the distribution's mode."""
    mean = scaled(vae, pixels).mean
    return Moments(mean, torch.zeros_like(mean))


def normalized_patches(vae: Any, pixels: Tensor) -> Moments:
    """Return FLUX.2's latents, (4 C, h / 2, w / 2): 2 x 2 patches, normalized by running statistics."""
    found = vae.encode(pixels).latent_dist.mode()
    patches = torch.nn.functional.pixel_unshuffle(found, 2)[0]
    mean, deviation = vae.bn.running_mean, torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
    latents = (patches - mean[:, None, None]) / deviation[:, None, None]
    return Moments(latents, torch.zeros_like(latents))


def video(vae: Any, pixels: Tensor) -> Moments:
    """Return `(x - mean) / std` by channel, (C, frames, h, w), of a video autoencoder; pictures are one frame."""
    frames = pixels if pixels.dim() == 5 else pixels[:, :, None]
    found = vae.encode(frames).latent_dist
    shape = (-1, 1, 1, 1)
    facts = (torch.tensor(vae.config[f"latents_{word}"]) for word in ("mean", "std"))
    mean, deviation = (fact.to(found.mean).view(shape) for fact in facts)
    return Moments((found.mean[0] - mean) / deviation, found.std[0] / deviation)


def picture_of_video(vae: Any, pixels: Tensor) -> Moments:
    """Return the same for models that draw single pictures: (C, h, w)."""
    found = video(vae, pixels)
    return Moments(found.mean[:, 0], found.std[:, 0])


def compressed(vae: Any, pixels: Tensor) -> Moments:
    """Return AutoencoderDC's latents, which have no spread, scaled."""
    latents: Tensor = vae.encode(pixels).latent[0] * vae.config.scaling_factor
    return Moments(latents, torch.zeros_like(latents))
