"""Picture files to pixels: opened as a person sees them, resized, cut to a square."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import BadDataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112  # EXIF tag


def size_of(path: Path) -> tuple[int, int]:
    """Return width and height as displayed, from the file's header; raises BadDataset."""
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


def pixels(path: Path, resolution: int, place: float = 0.5, flip: bool = False) -> Tensor:
    """Return a square cut of a picture, (3, resolution, resolution), float32 in [-1, 1].

    The short side is resized to `resolution`; `place`, from 0 to 1, says where along the long side the square is cut.
    Raises BadDataset for a file that cannot be read.
    """
    image = load(path)
    left, top = corner(image.size, resolution, place)
    image = image.resize(_covering(image.size, resolution), Image.Resampling.LANCZOS)
    image = image.crop((left, top, left + resolution, top + resolution))
    image = ImageOps.mirror(image) if flip else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def corner(size: tuple[int, int], resolution: int, place: float, flip: bool = False) -> tuple[int, int]:
    """Return left and top of the cut in the resized picture, for a picture of the given width and height.

    For a mirrored view, left counts in the mirrored picture.
    """
    width, height = _covering(size, resolution)
    left, top = round((width - resolution) * place), round((height - resolution) * place)
    return (width - resolution - left if flip else left), top


def load(path: Path) -> Image.Image:
    """Return a picture as 8-bit RGB: turned as its EXIF data says, transparency on white; raises BadDataset."""
    with _opened(path) as image:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):  # 16-bit grey, white is 65535 = 255 * 257
            turned = Image.fromarray(((np.asarray(turned).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
            turned = turned.convert("RGBA")
            white = Image.new("RGBA", turned.size, "white")
            turned = Image.alpha_composite(white, turned)
        return turned.convert("RGB")


def _covering(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the size whose short side is `side`, proportions kept."""
    scale = side / min(size)
    return max(side, round(size[0] * scale)), max(side, round(size[1] * scale))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # PNG ends at 16 bits
                what = "holds floats or 32-bit numbers, which do not say what white is"
                raise BadDataset(f"{path}: {what}; save it with 8 or 16 bits", file=path)
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataset(f"{path}: cannot be read as a picture ({error}); repair or remove it", file=path) from error
