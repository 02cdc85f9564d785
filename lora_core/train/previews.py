"""Pictures drawn on the way, in diffusers' own pipelines, from embeddings that the backend has made."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import rng
from .config import TrainConfig
from .diffusers_load import class_of, libraries
from .families import Parts, Preview
from .protocols import Cond, Schedule

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(parts: Parts, config: TrainConfig, schedule: Schedule, given: Cond, without: Cond, seed: int) -> Image:
    """Return a picture of the conditioning `given`, away from `without`; of a video, its first frame.

    The randomness is the seed's own, on the CPU. Steps, guidance and size are the configuration's; guidance, where it
    does not say, is the family's.
    """
    preview, side = parts.family.preview, config.resolution
    guidance = preview.guidance if config.sample_guidance is None else config.sample_guidance
    arguments = _embeddings(preview, given)
    if preview.negative and guidance > 1:
        arguments.update({f"negative_{name}": value for name, value in _embeddings(preview, without).items()})
    arguments.update({"num_frames": config.frames} if parts.family.video else {})
    with torch.no_grad(), _decodes_anything(parts.vae):
        found = _pipeline(parts, config, schedule)(
            **{**arguments, **preview.options, preview.scale: guidance},
            **{"height": side, "width": side, "num_inference_steps": config.sample_steps, "output_type": "pil"},
            generator=rng.generator(seed, "preview"),
        )
    picture: Image = found.frames[0][0] if parts.family.video else found.images[0]
    return picture


def _embeddings(preview: Preview, cond: Cond) -> dict[str, Any]:
    found = {argument: cond[name] for name, argument in preview.embeddings.items() if name in cond}
    return {argument: list(value) if preview.rows else value for argument, value in found.items()}


def _pipeline(parts: Parts, config: TrainConfig, schedule: Schedule) -> Any:
    """Build the family's pipeline from the loaded parts, without text encoders."""
    diffusers, _ = libraries()
    kind = class_of(diffusers, parts.family.preview.pipeline)
    own = {parts.family.folder: parts.denoiser, "vae": parts.vae, "scheduler": _sampler(parts, config, schedule)}
    given = {**parts.settings, "requires_safety_checker": False, **own}
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    empty = inspect.Parameter.empty
    pipeline = kind(**{p.name: given.get(p.name, None if p.default is empty else p.default) for p in wanted})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sampler(parts: Parts, config: TrainConfig, schedule: Schedule) -> Any:
    """Return the sampler, told what is predicted where the configuration changes that."""
    scheduler, choose = parts.scheduler, parts.family.preview.scheduler
    if schedule.alphas_cumprod is not None:
        changed = {"prediction_type": schedule.prediction, "rescale_betas_zero_snr": config.zero_terminal_snr}
        scheduler = type(scheduler).from_config(scheduler.config, **changed)
    if choose is None:
        return type(scheduler).from_config(scheduler.config)
    return choose(libraries()[0], scheduler)


@contextmanager
def _decodes_anything(vae: Any) -> Iterator[None]:
    """Let the autoencoder's `decode` take latents of any dtype inside the block: it computes in its own."""

    def decode(latents: Tensor, *more: Any, **options: Any) -> Any:
        return type(vae).decode(vae, latents.to(vae.dtype), *more, **options)

    vae.__dict__["decode"] = decode
    try:
        yield
    finally:
        del vae.__dict__["decode"]
