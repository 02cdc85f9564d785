"""Random little drawings: what the autoencoder sees beside the scenes."""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from pictures import BACKGROUND_COLOURS, PALETTE, SHAPES, SIDE, Canvas, Colour, Point, draw_shape, vary
from PIL import Image


def doodle(rng: np.random.Generator) -> Image.Image:
    """A random little drawing: a background and up to four things on it."""
    canvas = Canvas(_backdrop(rng))
    for _ in range(int(rng.integers(1, 5))):
        thing = THINGS[int(rng.integers(len(THINGS)))]
        thing(canvas, rng)
    return canvas.picture()


def _any_colour(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.4:
        return vary(PALETTE[str(rng.choice(BACKGROUND_COLOURS))], rng)
    red, green, blue = (int(v) for v in rng.integers(0, 256, 3))
    return red, green, blue


def _backdrop(rng: np.random.Generator) -> Colour | Image.Image:
    """Plain, a gradient, stripes or soft texture."""
    kind = rng.random()
    first, second = np.array(_any_colour(rng)), np.array(_any_colour(rng))
    if kind < 0.7:
        return _any_colour(rng)
    if kind < 0.93:
        y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
        angle = rng.uniform(0, 2 * pi)
        ramp = x * cos(angle) + y * sin(angle) + 0.5
        if kind >= 0.86:
            ramp = (np.sin(ramp * 2 * pi * rng.uniform(1.5, 5)) > 0).astype(float)
        mix = np.clip(ramp, 0, 1)[..., None]
        return Image.fromarray((first * (1 - mix) + second * mix).astype(np.uint8))
    spread = rng.uniform(10, 60)
    coarse = np.clip(first + rng.normal(0, spread, (int(rng.integers(3, 7)),) * 2 + (3,)), 0, 255)
    return Image.fromarray(coarse.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _spot(rng: np.random.Generator) -> tuple[Point, float]:
    """A place and a radius for one thing."""
    x, y, radius = (float(v) for v in rng.uniform((8, 8, 5), (SIDE - 8, SIDE - 8, 24)))
    return (x, y), radius


def _blob_points(centre: Point, radius: float, rng: np.random.Generator) -> list[Point]:
    count = int(rng.integers(3, 10))
    turn, reach = rng.uniform(0, 2 * pi), rng.uniform(0.5, 1.1, count) * radius
    return [
        (centre[0] + r * cos(turn + 2 * pi * i / count), centre[1] + r * sin(turn + 2 * pi * i / count))
        for i, r in enumerate(map(float, reach))
    ]


def _polygon(canvas: Canvas, rng: np.random.Generator) -> None:
    points, fill = _blob_points(*_spot(rng), rng), _any_colour(rng)
    canvas.polygon(points, fill)
    if rng.random() < 0.4:
        canvas.line([*points, points[0]], float(rng.uniform(1, 4)), _any_colour(rng))


def _rectangle(canvas: Canvas, rng: np.random.Generator) -> None:
    (x, y), radius = _spot(rng)
    w, h = radius * float(rng.uniform(0.3, 1.1)), radius * float(rng.uniform(0.3, 1.1))
    corners = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
    canvas.polygon(corners, _any_colour(rng))
    if rng.random() < 0.3:
        canvas.line([*corners, corners[0]], float(rng.uniform(1, 4)), _any_colour(rng))
    if rng.random() < 0.4:
        canvas.polygon(
            [(x - w, y - h), (x, y - h - radius * float(rng.uniform(0.4, 1))), (x + w, y - h)], _any_colour(rng)
        )


def _ellipse(canvas: Canvas, rng: np.random.Generator) -> None:
    centre, radius = _spot(rng)
    rx, ry = radius * float(rng.uniform(0.5, 1.1)), radius * float(rng.uniform(0.5, 1.1))
    canvas.ellipse(centre, rx, ry, _any_colour(rng))
    if rng.random() < 0.5:
        inner = float(rng.uniform(0.3, 0.85))
        canvas.ellipse(centre, rx * inner, ry * inner, _any_colour(rng))


def _dotted(canvas: Canvas, rng: np.random.Generator) -> None:
    """A disc, a half disc or a polygon with round dots on it."""
    (x, y), radius = _spot(rng)
    radius = max(radius, 10.0)
    start = float(rng.choice([0, 90, 180, 270]))
    sweep = float(rng.choice([180, 360]))
    canvas.slice((x, y), radius, radius, start, start + sweep, _any_colour(rng))
    fill = _any_colour(rng)
    for _ in range(int(rng.integers(2, 8))):
        angle, far = (start + float(rng.uniform(0, sweep))) * pi / 180, radius * float(rng.uniform(0.2, 0.8))
        dot = float(rng.uniform(1.5, 4.5))
        canvas.ellipse((x + far * cos(angle), y + far * sin(angle)), dot, dot, fill)


def _scribble(canvas: Canvas, rng: np.random.Generator) -> None:
    centre, radius = _spot(rng)
    steps = rng.normal(0, radius * 0.6, (int(rng.integers(2, 7)), 2)).cumsum(0) * 0.7 + np.array(centre)
    canvas.line([(float(x), float(y)) for x, y in steps], float(rng.uniform(1.5, 5)), _any_colour(rng))


def _arc(canvas: Canvas, rng: np.random.Generator) -> None:
    centre, radius = _spot(rng)
    start, sweep = float(rng.uniform(0, 360)), float(rng.uniform(90, 360))
    canvas.arc(
        centre,
        radius,
        radius * float(rng.uniform(0.5, 1)),
        start,
        start + sweep,
        float(rng.uniform(1.5, 5)),
        _any_colour(rng),
    )


def _scene_shape(canvas: Canvas, rng: np.random.Generator) -> None:
    centre, radius = _spot(rng)
    draw_shape(canvas, str(rng.choice(SHAPES)), centre, radius, _any_colour(rng), _any_colour(rng))


THINGS: tuple[Callable[[Canvas, np.random.Generator], None], ...] = (
    _polygon,
    _rectangle,
    _ellipse,
    _dotted,
    _scribble,
    _arc,
    _scene_shape,
)
