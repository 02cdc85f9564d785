"""Draws the subjects of the LoRA demo, which the tiny model has never seen: a toadstool and a house."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pictures import PALETTE, SIDE, Canvas, Colour, Point, vary
from PIL import Image

RED: Colour = (215, 35, 40)
CREAM: Colour = (250, 235, 200)
WHITE: Colour = (250, 250, 250)
ORANGE: Colour = (240, 140, 40)
NAVY: Colour = (40, 40, 110)
BROWN: Colour = (110, 60, 30)

DOTS: tuple[Point, ...] = ((-0.56, -0.3), (0.0, -0.62), (0.56, -0.3))  # on the cap, in its half widths


def mushroom(canvas: Canvas, centre: Point, size: float, rng: np.random.Generator) -> None:
    """A cream stem under a red half round cap with white dots; `size` is the cap's half width."""
    x, y = centre[0], centre[1] + size * 0.1
    canvas.polygon(
        [
            (x - size * 0.27, y - 1),
            (x + size * 0.27, y - 1),
            (x + size * 0.36, y + size * 0.85),
            (x - size * 0.36, y + size * 0.85),
        ],
        vary(CREAM, rng, 4),
    )
    canvas.slice((x, y), size, size * 1.05, 180, 360, vary(RED, rng, 6))
    for dx, dy in DOTS:
        canvas.ellipse((x + dx * size, y + dy * size), size * 0.2, size * 0.2, WHITE)


def house(canvas: Canvas, centre: Point, size: float, rng: np.random.Generator) -> None:
    """An orange wall under a navy roof, with a brown door and a white window; `size` is half the roof's width."""
    x, y = centre
    wall, top, bottom = size * 0.78, y - size * 0.15, y + size * 0.9
    canvas.polygon([(x - wall, top), (x + wall, top), (x + wall, bottom), (x - wall, bottom)], vary(ORANGE, rng, 6))
    canvas.polygon([(x - size, top), (x, y - size * 0.95), (x + size, top)], vary(NAVY, rng, 6))
    door, left = size * 0.4, x - size * 0.5
    canvas.polygon(
        [(left, bottom - size * 0.65), (left + door, bottom - size * 0.65), (left + door, bottom), (left, bottom)],
        BROWN,
    )
    right, sill = x + size * 0.1, y + size * 0.55
    canvas.polygon(
        [
            (right, sill - size * 0.42),
            (right + size * 0.45, sill - size * 0.42),
            (right + size * 0.45, sill),
            (right, sill),
        ],
        WHITE,
    )


@dataclass(frozen=True)
class Subject:
    """One folder of captioned pictures."""

    folder: str
    phrase: str  # what the captions call it
    draw: Callable[[Canvas, Point, float, np.random.Generator], None]
    backgrounds: tuple[str, ...]
    count: int
    seed: int


MUSHROOM_BACKGROUNDS = ("blue", "green", "yellow", "gray", "purple", "black")
HOUSE_BACKGROUNDS = ("green", "white", "gray", "yellow", "purple")
SUBJECTS = (
    Subject("subject", "a sks mushroom", mushroom, MUSHROOM_BACKGROUNDS, 12, 1),
    Subject("subject_validation", "a sks mushroom", mushroom, MUSHROOM_BACKGROUNDS, 6, 2),
    Subject("subject_two", "an ohwx house", house, HOUSE_BACKGROUNDS, 10, 3),
)


def pictures(subject: Subject) -> list[tuple[Image.Image, str]]:
    """The subject's pictures with their captions, the same on every call."""
    rng = np.random.default_rng(subject.seed)
    return [_picture(subject, subject.backgrounds[i % len(subject.backgrounds)], rng) for i in range(subject.count)]


def _picture(subject: Subject, background: str, rng: np.random.Generator) -> tuple[Image.Image, str]:
    canvas = Canvas(vary(PALETTE[background], rng))
    size = float(rng.uniform(20, 26))
    slack = SIDE / 2 - size - 2
    centre = (SIDE / 2 + float(rng.uniform(-slack, slack)), SIDE / 2 + float(rng.uniform(-slack, slack)))
    subject.draw(canvas, centre, size, rng)
    return canvas.picture(), f"{subject.phrase} on a {background} background"


def write(root: Path) -> None:
    """Writes every subject's folder of NN.png and NN.txt under `root`."""
    for subject in SUBJECTS:
        folder = root / subject.folder
        folder.mkdir(parents=True, exist_ok=True)
        for number, (picture, caption) in enumerate(pictures(subject), start=1):
            picture.save(folder / f"{number:02d}.png", optimize=True)
            (folder / f"{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")
