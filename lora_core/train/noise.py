"""The noise that latents are mixed with: plain, with an offset per channel, or with coarser copies of itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import rng
from .config import TrainConfig


def draw(shape: torch.Size, config: TrainConfig, purpose: str, step: int, row: int) -> Tensor:
    """Return one sample's noise, (C, ..., h, w) float32; `purpose`, `step` and `row` (its position) key the draw.

    `noise_offset` adds a constant to each channel (N. Guttenberg, "Diffusion with offset noise", 2023).
    """
    noise = rng.normal(shape, config.seed, f"{purpose} noise", step, row)
    if config.noise_offset:
        strength = config.noise_offset
        if config.noise_offset_random:
            generator = rng.generator(config.seed, f"{purpose} offset strength", step, row)
            strength *= float(torch.rand(1, generator=generator))
        constant = (shape[0], *[1] * (len(shape) - 1))
        noise += strength * rng.normal(constant, config.seed, f"{purpose} offset", step, row)
    if config.pyramid_noise:
        noise = _pyramid(noise, config, purpose, step, row)
    return noise


def perturbed(noise: Tensor, config: TrainConfig, purpose: str, step: int, row: int) -> Tensor:
    """Return the noise for the model's input: with further noise that the target does not have.

    Source: input perturbation, arXiv 2301.11706, algorithm 1.
    """
    if not config.input_perturbation:
        return noise
    return noise + config.input_perturbation * rng.normal(
        noise.shape, config.seed, f"{purpose} perturbation", step, row
    )


def _pyramid(noise: Tensor, config: TrainConfig, purpose: str, step: int, row: int) -> Tensor:
    """Return the noise plus ever coarser noise, `discount^i` strong, brought back to a deviation of 1.

    Each coarser side is the one before divided by 2 to 4, drawn anew. Source: J. Whitaker, "Multi-resolution noise for
    diffusion model training" (2023); sd-scripts' multires_noise.
    """
    generator = rng.generator(config.seed, f"{purpose} pyramid", step, row)
    flat = noise.reshape(-1, 1, *noise.shape[-2:])
    total = flat.clone()
    for level in range(config.pyramid_noise):
        ratio = (2 + 2 * float(torch.rand(1, generator=generator))) ** level
        sides = [max(1, int(side / ratio)) for side in noise.shape[-2:]]
        coarse = torch.randn(flat.shape[0], 1, *sides, generator=generator)
        fine = functional.interpolate(coarse, noise.shape[-2:], mode="bilinear")
        total += config.pyramid_discount**level * fine
        if 1 in sides:
            break
    return (total / total.std()).reshape(noise.shape)
