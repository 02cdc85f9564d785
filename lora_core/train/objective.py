"""What the model is asked to predict, and how much each timestep counts.

Notation: `a = alphas_cumprod[t]`, `x0` the clean latents, `e` the noise, `SNR = a / (1 - a)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """A discrete-time diffusion objective: noising, target and loss weights."""

    alphas_cumprod: Tensor  # (T,) float32
    prediction: str  # "epsilon" | "v_prediction"
    min_snr_gamma: float | None = None

    @property
    def timesteps(self) -> int:
        """Number of timesteps T; t is drawn uniformly from `[0, T)`."""
        return len(self.alphas_cumprod)

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `x_t = sqrt(a) x0 + sqrt(1 - a) e` (DDPM, arXiv 2006.11239, equation 4)."""
        a = self._a(t, clean)
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `e`, or `v = sqrt(a) e - sqrt(1 - a) x0` (arXiv 2202.00512, section 4)."""
        if self.prediction == "epsilon":
            return noise
        a = self._a(t, clean)
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    def weight(self, t: Tensor) -> Tensor:
        """Return each sample's loss weight, (B,), after min-SNR-gamma (arXiv 2303.09556, section 3.4).

        Epsilon: `min(SNR, g) / SNR`; v: `min(SNR, g) / (SNR + 1)`. A schedule that ends in pure noise has SNR 0,
        where the epsilon weight is its limit, 1.
        """
        if self.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        a = self.alphas_cumprod.to(t.device)[t].double()
        snr = a / (1 - a)
        clipped = snr.clamp(max=self.min_snr_gamma)
        if self.prediction == "v_prediction":
            return (clipped / (snr + 1)).float()
        return torch.where(snr > 0, clipped / snr.clamp(min=1e-30), torch.ones_like(snr)).float()

    def losses(self, predicted: Tensor, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the weighted mean squared error of each sample, (B,) float32."""
        error = (predicted.float() - self.target(clean, noise, t).float()).square()
        return error.flatten(1).mean(1) * self.weight(t)

    def _a(self, t: Tensor, like: Tensor) -> Tensor:
        a = self.alphas_cumprod.to(device=like.device, dtype=like.dtype)[t.to(like.device)]
        return a.reshape(-1, *[1] * (like.dim() - 1))
