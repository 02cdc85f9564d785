"""What the model is asked to predict, and how much each error counts.

Notation: `x0` the clean latents, `e` the noise. Discrete diffusion: `a = alphas_cumprod[t]`, `SNR = a / (1 - a)`. Flow
matching: `s = t / 1000`, from 0 (clean) to 1 (noise).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..errors import BadConfig
from .config import TrainConfig
from .protocols import Schedule

FLOW_STEPS = 1000.0  # timesteps of flow models per unit of s
HIGHEST_SNR = 1000.0  # that the debiased weight tells apart, as in sd-scripts


@dataclass(frozen=True, eq=False)
class Objective:
    """Noising, target, loss and weights of one run. Raises BadConfig for settings that the schedule has no use for."""

    schedule: Schedule
    config: TrainConfig

    def __post_init__(self) -> None:
        """Refuse settings that would do nothing, or nothing good."""
        flow, config = self.flow, self.config
        for kind, names in _USELESS.items():
            for name, idle in names.items():
                if (kind == "flow") == flow and getattr(config, name) not in idle:
                    what = "a flow model" if flow else "a model with discrete timesteps"
                    raise BadConfig(f"config: {name!r} has no meaning for {what}; leave it out", key=name)
        if config.zero_terminal_snr and self.schedule.prediction != "v_prediction":
            why = "pure noise holds no noise to be told from it"
            raise BadConfig(f"config: 'zero_terminal_snr' needs a v-prediction model: {why}", key="zero_terminal_snr")

    @property
    def flow(self) -> bool:
        """Whether the schedule is that of a flow model."""
        return self.schedule.alphas_cumprod is None

    @property
    def prediction(self) -> str:
        """What the model predicts."""
        return self.schedule.prediction

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The discrete schedule, (T,) float32; ends in 0 where the configuration asks for a zero terminal SNR.

        Source: arXiv 2305.08891, algorithm 1.
        """
        found = self.schedule.alphas_cumprod
        if found is None:
            raise TypeError("a flow model has no discrete schedule")
        if not self.config.zero_terminal_snr:
            return found.float()
        root = found.double().sqrt()
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square().float()

    def noisy(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `sqrt(a) x0 + sqrt(1 - a) e` (DDPM, arXiv 2006.11239, equation 4), or `(1 - s) x0 + s e`.

        Source of the second: Flow Matching, arXiv 2210.02747, with straight paths (rectified flow, arXiv 2209.03003).
        """
        if self.flow:
            s = self._wide(t / FLOW_STEPS, clean)
            return (1 - s) * clean + s * noise
        a = self._a(t, clean)
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return `e`, `v = sqrt(a) e - sqrt(1 - a) x0` (arXiv 2202.00512, section 4), or the velocity `e - x0`."""
        if self.prediction == "epsilon":
            return noise
        if self.flow:
            return noise - clean
        a = self._a(t, clean)
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    def weight(self, t: Tensor) -> Tensor:
        """Return each sample's loss weight, (B,) float32."""
        if self.flow:
            return self._flow_weight(t)
        weight = torch.ones_like(t, dtype=torch.float64)
        if self.config.min_snr_gamma is not None:
            weight = weight * self._min_snr(t, self.config.min_snr_gamma)
        if self.config.weighting == "debiased":
            weight = weight * self._debiased(t)
        return weight.float()

    def losses(self, predicted: Tensor, clean: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the weighted loss of each sample, (B,) float32: a mean over all values, masked ones included.

        Args:
            predicted: the model's output, in the shape of `clean`.
            clean: latents (B, C, ..., h, w).
            noise: the noise that the target is made of.
            t: timesteps (B,).
            mask: (B, 1, h, w), what each place counts; None counts all as 1.
        """
        error = self.errors(predicted.float(), self.target(clean, noise, t).float(), t)
        if mask is not None:
            error = error * (mask[:, :, None] if error.dim() == 5 else mask)
        return error.flatten(1).mean(1) * self.weight(t)

    def errors(self, predicted: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Return the loss of each value: squares, or pseudo-Huber losses.

        With `d` the difference: `2 c (sqrt(d^2 + c^2) - c)` (huber), and the same divided by c (smooth_l1); near 0 they
        are `d^2` and `d^2 / c`. Source: arXiv 2403.16728; sd-scripts and diffusers use the same constants.
        """
        squares = (predicted - target).square()
        if self.config.loss == "mse":
            return squares
        c = self._wide(self.huber_c(t), squares)
        distance = (squares + c * c).sqrt() - c
        return 2 * c * distance if self.config.loss == "huber" else 2 * distance

    def huber_c(self, t: Tensor) -> Tensor:
        """Return where the Huber loss turns, (B,): constant, `c^(t / T)`, or `(1 - c) / (1 + sigma)^2 + c`.

        `sigma` is the ratio of noise to signal. Source: arXiv 2403.16728, section 4.
        """
        c, share = self.config.huber_c, self._share(t)
        if self.config.huber_schedule == "constant":
            return torch.full_like(share, c)
        if self.config.huber_schedule == "exponential":
            return torch.exp(math.log(c) * share)
        return (1 - c) / (1 + self._sigma(t)).square() + c

    def _share(self, t: Tensor) -> Tensor:
        """Return how far each timestep lies in the schedule, (B,) float32."""
        return t.float() / (FLOW_STEPS if self.flow else len(self.alphas_cumprod))

    def _sigma(self, t: Tensor) -> Tensor:
        """Return the ratio of noise to signal, (B,)."""
        if self.flow:
            s = t.float() / FLOW_STEPS
            return s / (1 - s).clamp(min=1e-6)
        a = self.alphas_cumprod.to(t.device)[t]
        return ((1 - a) / a.clamp(min=1e-12)).sqrt()

    def _snr(self, t: Tensor) -> Tensor:
        a = self.alphas_cumprod.to(t.device)[t].double()
        return a / (1 - a)

    def _min_snr(self, t: Tensor, gamma: float) -> Tensor:
        """Return min-SNR-gamma weights (arXiv 2303.09556, section 3.4).

        Epsilon: `min(SNR, g) / SNR`; v: `min(SNR, g) / (SNR + 1)`. A schedule that ends in pure noise has SNR 0,
        where the epsilon weight is its limit, 1.
        """
        snr = self._snr(t)
        clipped = snr.clamp(max=gamma)
        if self.prediction == "v_prediction":
            return clipped / (snr + 1)
        return torch.where(snr > 0, clipped / snr.clamp(min=1e-30), torch.ones_like(snr))

    def _debiased(self, t: Tensor) -> Tensor:
        """Return debiased weights `1 / sqrt(SNR)` (arXiv 2310.08442); for v `1 / (SNR + 1)`, as sd-scripts has it."""
        snr = self._snr(t).clamp(max=HIGHEST_SNR)
        return 1 / (snr + 1) if self.prediction == "v_prediction" else snr.clamp(min=1e-12).rsqrt()

    def _flow_weight(self, t: Tensor) -> Tensor:
        """Return `s^-2` (sigma_sqrt), `2 / (pi (1 - 2 s + 2 s^2))` (cosmap; arXiv 2403.03206, section 3.1), or 1."""
        s = t.float() / FLOW_STEPS
        if self.config.weighting == "sigma_sqrt":
            return s.clamp(min=1e-4) ** -2.0
        if self.config.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * s + 2 * s * s))
        return torch.ones_like(s)

    def _a(self, t: Tensor, like: Tensor) -> Tensor:
        return self._wide(self.alphas_cumprod.to(device=like.device, dtype=like.dtype)[t.to(like.device)], like)

    def _wide(self, values: Tensor, like: Tensor) -> Tensor:
        """Return one value per sample in a shape that meets `like`."""
        return values.to(like).reshape(-1, *[1] * (like.dim() - 1))


_USELESS: dict[str, dict[str, tuple[object, ...]]] = {  # kind of schedule -> setting -> the values that ask for nothing
    "flow": {"min_snr_gamma": (None,), "weighting": ("none", "sigma_sqrt", "cosmap"), "zero_terminal_snr": (False,)},
    "discrete": {"weighting": ("none", "debiased"), "shift": ("auto",), "guidance": (1.0,)},
}
