"""Several previews as one labelled picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

BAND, MARGIN = 22, 6  # pixels: height of a label, space between pictures


def grid(rows: Sequence[tuple[str, Sequence[Image]]]) -> Image:
    """Return rows of pictures of equal size, each row below its label.

    Args:
        rows: label and pictures of each row.
    """
    from PIL import Image, ImageDraw

    width, height = (max(picture.size[side] for _, pictures in rows for picture in pictures) for side in (0, 1))
    columns = max(len(pictures) for _, pictures in rows)
    step = height + BAND + MARGIN
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, len(rows) * step + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows):
        top = MARGIN + row * step
        draw.text((MARGIN, top + 4), _fitted(draw, label, sheet.width - 2 * MARGIN), fill="black")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (MARGIN + column * (width + MARGIN), top + BAND))
    return sheet


def _fitted(draw: Any, label: str, width: int) -> str:
    """Return a label cut to a width; letters that the font may lack are left to it."""
    text = label.encode("latin-1", "replace").decode("latin-1")
    while text and draw.textlength(text) > width:
        text = text[: -max(4, len(text) // 10)] + "..." if len(text) > 4 else ""
    return text
