"""The loss on unseen pictures: the same noise and timesteps each time, so that two numbers can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .cache import Cache
from .config import TrainConfig
from .data import Picture, View
from .loop import batch_loss
from .objective import Objective
from .protocols import Denoiser

DRAWS = 4  # noises and timesteps per picture


@dataclass(frozen=True, eq=False)
class Validation:
    """Pictures that training never sees, and what is needed to measure on them."""

    pictures: Sequence[Picture]
    cache: Cache
    denoiser: Denoiser
    objective: Objective
    config: TrainConfig

    def loss(self, device: torch.device) -> float:
        """Return the mean loss of the model as it is now; draws depend on the seed and the picture's place alone."""
        total = 0.0
        with torch.inference_mode(False), torch.no_grad():
            for place, picture in enumerate(self.pictures):
                views = [View(picture)] * DRAWS
                batch = self.cache.batch(views, self.config.seed, "validation", place, 0, 1.0)
                loss = batch_loss(self.denoiser, batch, self.objective, self.config, device, "validation", place, 0)
                total += float(loss)
        return total / len(self.pictures)
