"""Class pictures that the model makes itself before a run: for prior preservation where none were collected."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadConfig, FileProblem
from . import rng
from .config import TrainConfig
from .pictures import SUFFIXES

if TYPE_CHECKING:
    from PIL.Image import Image

Sample = Callable[[str, int], "Image"]  # prompt and seed to picture: a backend's sampler


@dataclass(frozen=True)
class ClassPicture:
    """One picture that is still to be made."""

    path: Path
    prompt: str
    seed: int


def missing(config: TrainConfig) -> list[ClassPicture]:
    """Return the class pictures that a configuration asks for beyond those that are in the folder.

    They are named `class-00000.png` and so on. A picture's seed follows from the run's seed and its name alone, so it
    does not matter how often the making was interrupted. Raises BadConfig where clips are asked for.
    """
    if config.class_data is None or config.class_prompt is None or not config.class_pictures:
        return []
    if config.frames > 1:
        raise BadConfig("config: 'class_pictures' makes no clips; put some into 'class_data'", key="class_pictures")
    folder = Path(config.class_data)
    there = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    free = (name for index in range(config.class_pictures) if not (name := folder / f"class-{index:05d}.png").exists())
    wanted = config.class_pictures - len(there)
    return [_planned(config, path, config.class_prompt) for path, _ in zip(free, range(wanted), strict=False)]


def make(config: TrainConfig, sample: Sample) -> Iterator[Path]:
    """Make the class pictures that are missing, one per turn, and yield their paths.

    Each file is there whole or not at all. Raises FileProblem where the folder cannot be written, and what `sample`
    raises.
    """
    for picture in missing(config):
        _save(sample(picture.prompt, picture.seed), picture.path)
        yield picture.path


def _planned(config: TrainConfig, path: Path, prompt: str) -> ClassPicture:
    return ClassPicture(path, prompt, rng.integer(2**31, config.seed, "class picture", path.stem))


def _save(image: Image, path: Path) -> None:
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(draft, "PNG")
        os.replace(draft, path)
    except OSError as error:
        line = f"{path}: cannot be written ({error.strerror}); free some space, or choose another 'class_data'"
        raise FileProblem(line, file=path) from error
    finally:
        with suppress(OSError):
            draft.unlink()
