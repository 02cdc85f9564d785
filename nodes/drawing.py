"""A figure as the host's IMAGE, drawn with Pillow, which every ComfyUI has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..convert.figure import Box, Figure, Line, Text

if TYPE_CHECKING:
    from PIL import Image

SHARP = 2  # pixels of the picture to one of the figure


def image(figure: Figure) -> Tensor:
    """Return a figure as a picture `(1, height, width, 3)`, float32 from 0 to 1."""
    return torch.from_numpy(np.asarray(drawn(figure), dtype=np.float32) / 255)[None]


def drawn(figure: Figure) -> Image.Image:
    """Return a figure as Pillow's picture, with smooth edges."""
    from PIL import Image, ImageDraw

    fine = 2 * SHARP  # drawn larger and made smaller, for smooth lines; texts are drawn afterwards
    picture = Image.new("RGB", (figure.width * fine, figure.height * fine), "white")
    pen = ImageDraw.Draw(picture)
    for shape in figure.shapes:
        if isinstance(shape, Line):
            points = [(x * fine, y * fine) for x, y in shape.points]
            pen.line(points, shape.color, max(1, round(shape.width * fine)), joint="curve")
        elif isinstance(shape, Box):
            sides = (shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            pen.rectangle([round(side * fine) for side in sides], shape.color)
    picture = picture.resize((figure.width * SHARP, figure.height * SHARP), Image.Resampling.LANCZOS)
    for shape in figure.shapes:
        if isinstance(shape, Text):
            _write(picture, shape)
    return picture


def _write(picture: Image.Image, text: Text) -> None:
    from PIL import Image, ImageDraw

    font = _font(text.size * SHARP)
    left, top, right, bottom = (round(side) for side in font.getbbox(text.words or " "))
    across, down = text.x * SHARP, text.y * SHARP
    if not text.upright:
        start = across - {"left": 0, "center": (right - left) / 2, "right": right - left}[text.align]
        for shift in (0, 1) if text.bold else (0,):
            place = (start - left + shift, down - _middle(font))
            ImageDraw.Draw(picture).text(place, text.words, text.color, font)
        return
    mask = Image.new("L", (right + 4, bottom + 4))
    ImageDraw.Draw(mask).text((2 - left, 2), text.words, 255, font)
    mask = mask.rotate(90, expand=True)
    place = (round(across - _middle(font) - 2), round(down - mask.height + 2))
    picture.paste(text.color, (*place, place[0] + mask.width, place[1] + mask.height), mask)


def _middle(font: Any) -> float:
    """Return how far below a text's top its middle lies: that of a small letter and a large one."""
    top, bottom = font.getbbox("Xx")[1::2]
    return float((top + bottom) / 2)


def _font(size: float) -> Any:
    """Return Pillow's own font; before Pillow 10.1 it has but one size."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()
