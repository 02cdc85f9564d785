"""Latents and text embeddings, computed once and kept under what they are made of: never under a step or a position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import BadValues
from . import rng
from .data import WINDOWS, View
from .pictures import corner, pixels
from .protocols import Backend, Cond, Moments

Key = tuple[str, str, int, int, bool]  # model fingerprint, file digest, resolution, window, mirrored


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward and backward pass needs."""

    latents: Tensor  # (B, C, h, w) float32
    cond: Cond
    weights: Tensor  # (B,): the loss is sum(weights * losses)
    names: Sequence[str]  # file names, for messages


@dataclass(frozen=True, eq=False)
class Cache:
    """In-memory cache over a backend's encoders."""

    backend: Backend
    resolution: int
    remember: bool = True  # False: encode anew each time; the results are the same
    latents: dict[Key, Moments] = field(default_factory=dict)
    texts: dict[tuple[str, str], Cond] = field(default_factory=dict)

    def moments(self, view: View) -> Moments:
        """Return a view's latent distribution; raises BadDataset, and BadValues where the encoder gives NaN."""
        key = (self.backend.fingerprint, view.picture.digest, self.resolution, view.window, view.flip)
        found = self.latents.get(key)
        return found if found is not None else self._encode(key, view)

    def _encode(self, key: Key, view: View) -> Moments:
        path = view.picture.path
        square = pixels(path, self.resolution, _place(view), view.flip)
        made = self.backend.encode_image(square)
        moments = Moments(_kept(made.mean), _kept(made.std))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            raise BadValues(f"{path}: its latents are not finite; set 'precision' to 'fp32' or 'bf16'", file=path)
        if self.remember:
            self.latents[key] = moments
        return moments

    def cond(self, caption: str) -> Cond:
        """Return a caption's conditioning, each tensor with a leading dimension of 1."""
        key = (self.backend.fingerprint, caption)
        found = self.texts.get(key)
        if found is None:
            found = {name: _kept(tensor) for name, tensor in self.backend.encode_text(caption).items()}
            if self.remember:
                self.texts[key] = found
        return found

    def batch(
        self, views: Sequence[View], seed: int, purpose: str, step: int, first: int, prior_weight: float
    ) -> Batch:
        """Assemble a micro-batch; `first` is the position of its first row within the step, which keys the draws.

        The loss is `mean(instance) + prior_weight * mean(class)` (DreamBooth, arXiv 2208.12242, equation 2).
        """
        latents = [self._sample(self.moments(v), seed, purpose, step, first + i) for i, v in enumerate(views)]
        conds = [{**self.cond(view.picture.caption), "time_ids": self._time_ids(view)} for view in views]
        count = sum(not view.prior for view in views)
        weights = [(prior_weight if view.prior else 1.0) / count for view in views]
        return Batch(
            torch.stack(latents),
            {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]},
            torch.tensor(weights),
            [view.picture.path.name for view in views],
        )

    def _time_ids(self, view: View) -> Tensor:
        """Return SDXL's size conditioning, (1, 6): original height, width, crop top, left, target height, width.

        Source: SDXL, arXiv 2307.01952, section 2.2. Other families ignore it.
        """
        (width, height), side = view.picture.size, self.resolution
        left, top = corner(view.picture.size, side, _place(view), view.flip)
        return torch.tensor([[height, width, top, left, side, side]], dtype=torch.float32)

    def _sample(self, moments: Moments, seed: int, purpose: str, step: int, row: int) -> Tensor:
        noise = rng.normal(moments.mean.shape, seed, f"{purpose} latents", step, row)
        return moments.mean + moments.std * noise


def _place(view: View) -> float:
    """Return where along the long side the view's square is cut, from 0 to 1."""
    return view.window / (WINDOWS - 1)


def _kept(tensor: Tensor) -> Tensor:
    """Return a CPU copy that is no inference tensor and part of no graph."""
    with torch.inference_mode(False):
        return tensor.detach().cpu().clone()
