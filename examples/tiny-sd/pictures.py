"""Draws the 64x64 pictures that the tiny model learns from, and their captions.

A `Scene` is what the model's prompts can name. The pictures beside it: `doodles` (only the autoencoder sees them,
so that it can show more than scenes) and `subjects` (for the LoRA demo; the model never sees them).
"""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SIDE = 64  # pixels
ZOOM = 4  # drawn this much larger, then averaged down: smooth edges

PALETTE: dict[str, Colour] = {
    "red": (220, 40, 40),
    "green": (40, 165, 70),
    "blue": (45, 85, 220),
    "yellow": (245, 210, 45),
    "purple": (150, 60, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
    "gray": (135, 135, 135),
}
OBJECT_COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
BACKGROUND_COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (11.5, 14.0), "large": (20.0, 25.0)}  # range of the radius, in pixels


@dataclass(frozen=True)
class Scene:
    """One shape on a plain background."""

    shape: str
    colour: str
    background: str
    size: str

    def prompt(self) -> str:
        """The caption that names every part.

        >>> Scene("star", "red", "blue", "small").prompt()
        'a small red star on a blue background'
        """
        return f"a {self.size} {self.colour} {self.shape} on a {self.background} background"


class Canvas:
    """A picture drawn at ZOOM times its size; all coordinates and widths are in final pixels."""

    def __init__(self, fill: Colour | Image.Image) -> None:
        side = SIDE * ZOOM
        is_picture = isinstance(fill, Image.Image)
        self._image = fill.resize((side, side)) if is_picture else Image.new("RGB", (side, side), fill)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: list[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon([(x * ZOOM, y * ZOOM) for x, y in points], fill=fill)

    def ellipse(self, centre: Point, rx: float, ry: float, fill: Colour) -> None:
        """A filled ellipse with the radii `rx` and `ry`."""
        self._draw.ellipse(_box(centre, rx, ry), fill=fill)

    def slice(self, centre: Point, rx: float, ry: float, start: float, end: float, fill: Colour) -> None:
        """A pie slice; angles in degrees, clockwise from three o'clock."""
        self._draw.pieslice(_box(centre, rx, ry), start, end, fill=fill)

    def arc(self, centre: Point, rx: float, ry: float, start: float, end: float, width: float, fill: Colour) -> None:
        """A part of an ellipse's outline; angles as in `slice`."""
        self._draw.arc(_box(centre, rx, ry), start, end, fill=fill, width=round(width * ZOOM))

    def line(self, points: list[Point], width: float, fill: Colour) -> None:
        """A line through all the points."""
        scaled = [(x * ZOOM, y * ZOOM) for x, y in points]
        self._draw.line(scaled, fill=fill, width=round(width * ZOOM), joint="curve")

    def picture(self) -> Image.Image:
        """What was drawn, SIDE pixels wide and high."""
        return self._image.reduce(ZOOM)


def _box(centre: Point, rx: float, ry: float) -> tuple[float, float, float, float]:
    x, y = centre
    return ((x - rx) * ZOOM, (y - ry) * ZOOM, (x + rx) * ZOOM, (y + ry) * ZOOM)


def draw_shape(canvas: Canvas, shape: str, centre: Point, radius: float, fill: Colour, behind: Colour) -> None:
    """Draws one of SHAPES; `behind` is what shows through the ring."""
    x, y = centre
    if shape == "circle":
        canvas.ellipse(centre, radius, radius, fill)
    elif shape == "ring":
        canvas.ellipse(centre, radius, radius, fill)
        canvas.ellipse(centre, radius * 0.5, radius * 0.5, behind)
    elif shape == "cross":
        arm = radius * 0.36
        canvas.polygon(
            [(x - radius, y - arm), (x + radius, y - arm), (x + radius, y + arm), (x - radius, y + arm)], fill
        )
        canvas.polygon(
            [(x - arm, y - radius), (x + arm, y - radius), (x + arm, y + radius), (x - arm, y + radius)], fill
        )
    else:
        canvas.polygon([(x + radius * px, y + radius * py) for px, py in OUTLINES[shape]], fill)


def _turn(count: int, radii: tuple[float, ...]) -> list[Point]:
    """`count` points around the origin, the first on top, their distances cycling through `radii`."""
    angles = [2 * pi * i / count for i in range(count)]
    return [(radii[i % len(radii)] * sin(a), -radii[i % len(radii)] * cos(a)) for i, a in enumerate(angles)]


OUTLINES: dict[str, list[Point]] = {  # in units of the radius
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _turn(10, (1.05, 0.45)),
}


def random_scene(rng: np.random.Generator) -> Scene:
    """Any of the scenes; the object never has its background's colour."""
    colour = str(rng.choice(OBJECT_COLOURS))
    background = str(rng.choice([name for name in BACKGROUND_COLOURS if name != colour]))
    return Scene(str(rng.choice(SHAPES)), colour, background, str(rng.choice(list(SIZES))))


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draws a scene at a random place, its size and colours varied a little."""
    radius = float(rng.uniform(*SIZES[scene.size]))
    slack = (SIDE / 2 - radius - 3) * 0.7
    centre = (SIDE / 2 + float(rng.uniform(-slack, slack)), SIDE / 2 + float(rng.uniform(-slack, slack)))
    behind = vary(PALETTE[scene.background], rng)
    canvas = Canvas(behind)
    draw_shape(canvas, scene.shape, centre, radius, vary(PALETTE[scene.colour], rng), behind)
    return canvas.picture()


def vary(colour: Colour, rng: np.random.Generator, by: int = 8) -> Colour:
    """A colour near `colour`."""
    red, green, blue = (int(v) for v in np.clip(np.array(colour) + rng.integers(-by, by + 1, 3), 0, 255))
    return red, green, blue


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that may leave out the size, the colour or the background; every tenth is empty."""
    if rng.random() < 0.1:
        return ""
    words = [scene.size] if rng.random() < 0.65 else []
    words += [scene.colour] if rng.random() < 0.9 else []
    thing = " ".join([*words, scene.shape])
    if rng.random() < 0.15:
        return f"{thing}, {scene.background} background"
    place = f" on a {scene.background} background" if rng.random() < 0.8 else ""
    return f"a {thing}{place}"
