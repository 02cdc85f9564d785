"""Masks: which parts of a picture count in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import BadDataset
from .pictures import SUFFIXES, Cut, Size, Source, alpha, load, measure

ALPHA = "alpha"  # the setting that takes the pictures' own alpha channels


@dataclass(frozen=True)
class Mask:
    """One picture's mask: white counts, black does not."""

    source: Source  # the mask's file; the picture itself for its alpha channel
    digest: str

    def cover(self, cut: Cut, size: Size) -> Tensor:
        """Return the mask as the cut shows it, (height, width) float32 in [0, 1]; `size` is the picture's.

        Smoothed without overshoot where it is resized. Raises BadDataset for a mask that is black all over, or of
        other proportions than its picture.
        """
        shades = self._shades()
        if shades is None:
            return torch.ones(cut.height, cut.width)
        path = name_of(self.source)
        if not shades.getextrema()[1]:
            raise BadDataset(f"{path}: the mask is black all over; paint white what counts, or remove it", file=path)
        width, height = shades.size
        if abs(width / height * size[1] / size[0] - 1) > 0.02:
            sizes = f"{width} x {height}, but its picture is {size[0]} x {size[1]}"
            raise BadDataset(f"{path}: the mask is {sizes}; give it the picture's proportions", file=path)
        shown = cut.of(shades, size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(shown)).float() / 255

    def _shades(self) -> Image.Image | None:
        """Return the mask as 8-bit grey; None where all counts."""
        return alpha(self.source) if self.digest == ALPHA else load(self.source).convert("L")


def averaged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask (H, W) in the latents' size (h, w): each value the mean of the area that it stands for."""
    return adaptive_avg_pool2d(mask[None], size)[0]


@dataclass(frozen=True)
class Masks:
    """Where masks are found: the pictures' alpha channels, or a folder of files of the pictures' names."""

    folder: Path | None  # None = alpha channels
    files: Mapping[str, Path]  # by their path in the folder, without ending
    required: bool = True

    def find(self, source: Source, name: str) -> Mask | None:
        """Return the mask of a picture, whose path in its folder is `name`, without ending.

        A mask in the same subfolder comes before one at the top. Raises BadDataset where none is found.
        """
        if self.folder is None:
            return Mask(source, ALPHA)
        file = self.files.get(name) or self.files.get(Path(name).name)
        if file is not None:
            return Mask(file, measure(file).digest)
        if not self.required:
            return None
        path, wanted = name_of(source), self.folder / Path(name).name
        line = f"{path}: no mask; put one as {wanted}.png, all white where everything counts"
        raise BadDataset(line, file=path)


def open_masks(setting: str | None, required: bool = True) -> Masks | None:
    """Return where a configuration's masks are found; raises BadDataset where there is no such folder."""
    if setting is None or setting == ALPHA:
        return None if setting is None else Masks(None, {})
    folder = Path(setting)
    if not folder.is_dir():
        raise BadDataset(f"{folder}: no such folder; give a folder of masks, or 'alpha'", file=folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return Masks(folder, {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}, required)


def name_of(source: Source) -> Path:
    """Return a source's name for messages."""
    return source if isinstance(source, Path) else source.path
