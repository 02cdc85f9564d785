"""A figure as a file, drawn with matplotlib: PNG, SVG or PDF by the name's ending."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lora_core.errors import BadConfig, FileProblem

if TYPE_CHECKING:
    from ..convert.figure import Figure, Shape

ENDINGS = (".png", ".svg", ".pdf")
DPI = 100  # pixels of the figure to an inch
SHARP = 2  # pixels of a PNG to one of the figure


def check(path: str | Path) -> None:
    """Raise BadConfig for a name that no picture can have, or where matplotlib is not installed."""
    if Path(path).suffix.lower() not in ENDINGS:
        raise BadConfig(f"{path}: a picture is a {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}; give it such a name")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        command = f"{Path(sys.executable).name} -m pip install matplotlib"
        raise BadConfig(f"--plot: matplotlib is not installed in {sys.executable}; run '{command}'") from None


def plot(figure: Figure, path: str | Path, overwrite: bool = False) -> Path:
    """Draw a figure into a file, whole or not at all; raises FileProblem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    from ..lora_core.store import refuse_existing

    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    canvas = Canvas(figsize=(figure.width / DPI, figure.height / DPI), dpi=DPI)
    FigureCanvasAgg(canvas)
    axes = canvas.add_axes((0, 0, 1, 1), xlim=(0, figure.width), ylim=(figure.height, 0))
    axes.set_axis_off()
    for order, shape in enumerate(figure.shapes):
        _draw(axes, shape, order)
    part = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
    try:
        canvas.savefig(part, dpi=DPI * SHARP)
        os.replace(part, path)
    except OSError as error:
        why = f"cannot be written ({error.strerror or error})"
        raise FileProblem(f"{path}: {why}; choose another folder", file=path) from None
    finally:
        with suppress(OSError):
            part.unlink()
    return path


def _draw(axes: Any, shape: Shape, order: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    from ..convert.figure import Box, Line

    color = tuple(part / 255 for part in shape.color)
    if isinstance(shape, Line):
        across, down = zip(*shape.points, strict=True)
        axes.add_line(Line2D(across, down, color=color, linewidth=shape.width * 72 / DPI, zorder=order))
    elif isinstance(shape, Box):
        axes.add_patch(Rectangle((shape.x, shape.y), shape.width, shape.height, color=color, linewidth=0, zorder=order))
    else:
        axes.text(
            shape.x,
            shape.y,
            shape.words,
            fontsize=shape.size * 72 / DPI,
            color=color,
            fontweight="bold" if shape.bold else "normal",
            rotation=90 if shape.upright else 0,
            ha="center" if shape.upright else shape.align,
            va="bottom" if shape.upright else "center_baseline",
            parse_math=False,
            zorder=order,
        )
