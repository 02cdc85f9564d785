"""Settings that a family has no use for: refused, so that none is ignored in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import BadConfig
from ..config import TrainConfig
from .model import Parts


@dataclass(frozen=True)
class Idle:
    """A setting, when it asks for something, what it needs, and whether a model has that."""

    key: str
    asked: Callable[[TrainConfig], bool]
    needs: str
    has: Callable[[Parts], bool]


def _guided(parts: Parts) -> bool:
    return bool(parts.denoiser.config.get("guidance_embeds"))


def _has_clip(parts: Parts) -> bool:
    return any(encoder.clip for encoder in parts.family.encoders)


def _negative(parts: Parts) -> bool:
    return parts.family.preview.negative


def _video(parts: Parts) -> bool:
    return parts.family.video


IDLE = (
    Idle("guidance", lambda config: config.guidance != 1.0, "a guidance embedding", _guided),
    Idle("text_encoder", lambda config: config.text_encoder, "a CLIP", _has_clip),
    Idle("tokenizer", lambda config: config.tokenizer is not None, "a CLIP", _has_clip),
    Idle("negative_prompt", lambda config: bool(config.negative_prompt), "guidance away from a prompt", _negative),
    Idle("frames", lambda config: config.frames > 1, "frames", _video),
)


def refuse_idle(parts: Parts, config: TrainConfig) -> None:
    """Raise BadConfig for a setting that would do nothing to the model, or that does not fit its sizes."""
    for idle in IDLE:
        if idle.asked(config) and not idle.has(parts):
            what = f"config: {idle.key!r} is for models with {idle.needs}, which {parts.family.name} has not"
            raise BadConfig(f"{what}; leave it out", key=idle.key)
    check_side(parts, config.resolution, "'resolution'")
    step = temporal_step(parts.vae) if parts.family.video else 1
    if (config.frames - 1) % step:
        text = f"config: 'frames' is {config.frames}; for {parts.family.name} it must be {step} n + 1"
        raise BadConfig(text, key="frames")


def check_side(parts: Parts, side: int, what: str) -> None:
    """Raise BadConfig for a picture's side that does not fit the family."""
    family = parts.family
    if side % family.multiple:
        text = f"config: {what} is {side}; for {family.name} it must be a multiple of {family.multiple}"
        raise BadConfig(text, key="resolution")


def temporal_step(vae: Any) -> int:
    """Return how many frames one frame of latents stands for, after the first."""
    found: int = 2 ** sum(vae.config["temperal_downsample"])
    return found
