"""Which timesteps a run draws: a density on (0, 1), the flow models' shift, and the range that is left.

Densities (arXiv 2403.03206, section 3.1), `u` uniform and `n` normal: logit_normal `sigmoid(mean + std n)`; mode
`1 - u - k (cos^2(pi u / 2) - 1 + u)`; cosmap `1 - 1 / (tan(pi u / 2) + 1)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import rng
from .config import TrainConfig
from .objective import FLOW_STEPS, Objective

LEAST = 1e-4  # the smallest s that flow models are shown


def draw(objective: Objective, shape: torch.Size, purpose: str, step: int, row: int) -> Tensor:
    """Return one sample's timestep as the schedule counts them: 0-d, whole for discrete models, else float32.

    Args:
        objective: the run's.
        shape: of the latents, (C, ..., h, w), which tells how many tokens a shift by resolution counts.
        purpose: kind of draw; with `step` and `row`, the position in the step, it keys the randomness.
        step: 0-based.
        row: position in the step.
    """
    config = objective.config
    words = (config.seed, f"{purpose} timestep", step, row)
    low, high = config.min_timestep, config.max_timestep
    if objective.flow:
        s = shifted(_density(objective, words), shift(objective, shape))
        return torch.tensor(max(LEAST, low + (high - low) * s) * FLOW_STEPS, dtype=torch.float32)
    count = len(objective.alphas_cumprod)
    first, end = math.floor(low * count), math.ceil(high * count)
    if _word(objective) == "uniform":
        return torch.tensor(first + rng.integer(end - first, *words))
    return torch.tensor(min(end - 1, first + int(_density(objective, words) * (end - first))))


def shift(objective: Objective, shape: torch.Size) -> float:
    """Return the factor that pushes a flow model's timesteps towards noise; 1 leaves them.

    "resolution", and "auto" for families that shift by size: `exp(mu)`, mu linear in the number of tokens (FLUX.1:
    0.5 at 256 tokens to 1.15 at 4096).
    """
    asked, schedule = objective.config.shift, objective.schedule
    if not isinstance(asked, str):
        return asked
    tokens = schedule.tokens
    if tokens is None and asked == "resolution":
        tokens = FLUX_TOKENS
    if tokens is None:
        return schedule.shift
    sides = [side // schedule.patch for side in shape[-2:]]
    count = math.prod((*sides, *shape[1:-2]))
    slope = (tokens["max_shift"] - tokens["base_shift"]) / (tokens["max_seq_len"] - tokens["base_seq_len"])
    return math.exp(tokens["base_shift"] + slope * (count - tokens["base_seq_len"]))


def shifted(s: float, factor: float) -> float:
    """Return `f s / (1 + (f - 1) s)` (arXiv 2403.03206, section 5.3.2).

    >>> shifted(0.5, 3.0)
    0.75
    """
    return factor * s / (1 + (factor - 1) * s)


FLUX_TOKENS = {"base_seq_len": 256, "max_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def _word(objective: Objective) -> str:
    asked = objective.config.timesteps
    return objective.schedule.timesteps if asked == "auto" else asked


def _density(objective: Objective, words: tuple[int, str, int, int]) -> float:
    """Return a draw from the density, in (0, 1)."""
    config: TrainConfig = objective.config
    generator = rng.generator(*words)
    word = _word(objective)
    if word == "logit_normal":
        normal = float(torch.randn(1, generator=generator, dtype=torch.float64))
        return 1 / (1 + math.exp(-(config.logit_mean + config.logit_std * normal)))
    u = float(torch.rand(1, generator=generator, dtype=torch.float64))
    if word == "mode":
        return min(1.0, max(0.0, 1 - u - config.mode_scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u)))
    if word == "cosmap":
        return 1 - 1 / (math.tan(math.pi * u / 2) + 1)
    return u
