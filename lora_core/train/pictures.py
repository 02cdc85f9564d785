"""Picture files to pixels: opened as a person sees them, resized to cover a size, cut, mirrored."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import BadDataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112  # EXIF tag
_PNG_ORIENTED = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks and texts that may hold it
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError)

Size = tuple[int, int]  # width and height in pixels


class Inside(Protocol):
    """A picture that is part of another file, such as a cell of a table."""

    @property
    def path(self) -> Path:
        """A name for messages."""

    def read(self) -> bytes:
        """Return the picture's own file, whole; raises BadDataset."""


@dataclass(frozen=True)
class Clip:
    """A video as a folder of numbered frames."""

    path: Path  # the folder
    frames: tuple[Path, ...]


Source = Path | Inside | Clip  # a path is a still or an animation


@dataclass(frozen=True)
class Cut:
    """How a picture becomes pixels of one size: resized to cover it, proportions kept, then cut, then mirrored.

    `place`, from 0 to 1, says where the cut lies along the side that is left over.
    """

    width: int
    height: int
    place: float = 0.5
    flip: bool = False

    def covering(self, size: Size) -> Size:
        """Return the size that a picture of the given size is resized to."""
        scale = max(self.width / size[0], self.height / size[1])
        return max(self.width, round(size[0] * scale)), max(self.height, round(size[1] * scale))

    def corner(self, size: Size) -> tuple[int, int]:
        """Return left and top of the cut in the resized picture; in the mirrored one where `flip` is set."""
        left, top = self._corner(size)
        return (self.covering(size)[0] - self.width - left if self.flip else left), top

    def of(self, image: Image.Image, size: Size, smoothing: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """Return the cut of an image that shows a picture of the given size, maybe in another resolution."""
        left, top = self._corner(size)
        image = image.resize(self.covering(size), smoothing)
        image = image.crop((left, top, left + self.width, top + self.height))
        return ImageOps.mirror(image) if self.flip else image

    def _corner(self, size: Size) -> tuple[int, int]:
        width, height = self.covering(size)
        return round((width - self.width) * self.place), round((height - self.height) * self.place)


def size_of(source: Source) -> Size:
    """Return width and height as displayed, from the file's header; raises BadDataset."""
    return measure(source).size


@dataclass(frozen=True)
class Measure:
    """What a file says of its picture, undecoded."""

    size: Size  # as displayed
    digest: str  # hash of all bytes
    length: int  # frames of a clip or an animation, 1 for a still


def measure(source: Source) -> Measure:
    """Read a picture's file, or a clip's files, once each; raises BadDataset."""
    parts = source.frames if isinstance(source, Clip) else (source,)
    total, first = blake2b(digest_size=16), _bytes(parts[0])
    for part in parts:
        total.update(first if part is parts[0] else _bytes(part))
    with _image(parts[0], first) as image:
        width, height = image.size
        sideways = _orientation(image, first) in _SIDEWAYS
        length = len(parts) if isinstance(source, Clip) else int(getattr(image, "n_frames", 1))
    return Measure((height, width) if sideways else (width, height), total.hexdigest(), length)


def _orientation(image: Image.Image, content: bytes) -> int | None:
    """Return the EXIF orientation; Pillow decodes a whole PNG to look for it, so first look whether it is there."""
    if image.format == "PNG" and not any(mark in content for mark in _PNG_ORIENTED):
        return None
    found: int | None = image.getexif().get(_ORIENTATION)
    return found


def pixels(source: Source, cut: Cut, frames: int = 1) -> Tensor:
    """Return a picture's pixels, (3, height, width), float32 in [-1, 1]; of a clip (3, frames, height, width).

    A longer clip is cut in time as in space: `frames` in a row, at the cut's place. Raises BadDataset for a file that
    cannot be read.
    """
    if frames == 1:
        return _scaled(load(source), cut)
    start = round((_length(source) - frames) * cut.place)
    return torch.stack([_scaled(load(source, index), cut) for index in range(start, start + frames)], dim=1)


def load(source: Source, frame: int = 0) -> Image.Image:
    """Return a picture as 8-bit RGB: turned as its EXIF data says, transparency on white; raises BadDataset."""
    with _opened(source, frame) as image:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I"):  # 16-bit grey, white is 65535 = 255 * 257
            turned = Image.fromarray(((np.asarray(turned).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if _is_transparent(turned):
            turned = turned.convert("RGBA")
            white = Image.new("RGBA", turned.size, "white")
            turned = Image.alpha_composite(white, turned)
        return turned.convert("RGB")


def alpha(source: Source) -> Image.Image | None:
    """Return a picture's alpha channel as 8-bit grey, turned as displayed; None for one that has none."""
    with _opened(source) as image:
        turned = ImageOps.exif_transpose(image)
        return turned.convert("RGBA").getchannel("A") if _is_transparent(turned) else None


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _scaled(image: Image.Image, cut: Cut) -> Tensor:
    return torch.from_numpy(np.array(cut.of(image, image.size))).permute(2, 0, 1).float() / 127.5 - 1


def _length(source: Source) -> int:
    if isinstance(source, Clip):
        return len(source.frames)
    with _opened(source) as image:
        return int(getattr(image, "n_frames", 1))


@contextmanager
def _opened(source: Source, frame: int = 0) -> Iterator[Image.Image]:
    """Open a picture, or a frame of one."""
    part = source.frames[frame] if isinstance(source, Clip) else source
    with _image(part, None if isinstance(part, Path) else part.read()) as image:
        if frame and not isinstance(source, Clip):
            image.seek(frame)
        yield image


@contextmanager
def _image(source: Path | Inside, content: bytes | None) -> Iterator[Image.Image]:
    """Open a picture from its file's content, or from its path; what its decoder raises becomes BadDataset."""
    path = source if isinstance(source, Path) else source.path
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # PNG ends at 16 bits
                what = "holds floats or 32-bit numbers, which do not say what white is"
                raise BadDataset(f"{path}: {what}; save it with 8 or 16 bits", file=path)
            yield image
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise BadDataset(f"{path}: cannot be read as a picture ({reason}); repair or remove it", file=path) from error


def _bytes(source: Path | Inside) -> bytes:
    try:
        return source.read_bytes() if isinstance(source, Path) else source.read()
    except OSError as error:
        path = source if isinstance(source, Path) else source.path
        raise BadDataset(f"{path}: cannot be read ({error.strerror}); repair or remove it", file=path) from error
