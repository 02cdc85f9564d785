"""Says what a picture shows, from its pixels alone, and counts how often the tiny model draws what it was asked."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from numpy.typing import NDArray
from pictures import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    PALETTE,
    SHAPES,
    SIDE,
    SIZES,
    Canvas,
    Scene,
    draw_scene,
    draw_shape,
    random_scene,
)
from PIL import Image

GRID = 32  # side of a shape's outline when it is compared with the templates
LEAST_OVERLAP = 0.7  # with the best template; below it the picture shows no known shape
STEPS = 20
GUIDANCE = 5.0

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """What a picture shows; `shape` is None where no template fits."""

    shape: str | None
    colour: str
    background: str
    size: str

    def agrees(self, scene: Scene) -> bool:
        """Whether colour and shape are the scene's."""
        return (self.shape, self.colour) == (scene.shape, scene.colour)


def read(picture: Image.Image) -> Reading:
    """Reads background (median of the border), object colour (median of what differs from it), shape and size."""
    pixels = np.asarray(picture.convert("RGB")).astype(float)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    behind = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - behind, axis=2)
    strong = distance > max(30.0, 0.6 * float(np.percentile(distance, 99)))
    colour = np.median(pixels[strong], axis=0) if strong.any() else behind
    along = (pixels - behind) @ (colour - behind) / max(float(np.square(colour - behind).sum()), 1.0)
    shape, extent = _shape(np.clip(along, 0, 1))
    small = extent / 2 < (SIZES["small"][1] + SIZES["large"][0]) / 2
    return Reading(
        shape, _nearest(colour, OBJECT_COLOURS), _nearest(behind, BACKGROUND_COLOURS), "small" if small else "large"
    )


def _nearest(colour: NDArray[np.float64], names: tuple[str, ...]) -> str:
    return min(names, key=lambda name: float(np.linalg.norm(colour - np.array(PALETTE[name]))))


def _shape(cover: NDArray[np.float64]) -> tuple[str | None, float]:
    """The best fitting shape, and the larger side of its bounding box in pixels.

    `cover` is 0 where a pixel has the background's colour and 1 where it has the object's.
    """
    rows, columns = np.flatnonzero((cover > 0.5).any(1)), np.flatnonzero((cover > 0.5).any(0))
    if len(rows) < 4 or len(columns) < 4:
        return None, 0.0
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    found = _fitted(Image.fromarray((cover * 255).astype(np.uint8)), box)
    overlaps = {shape: _overlap(found, template) for shape, template in templates().items()}
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else None, float(max(box[2] - box[0], box[3] - box[1]))


@cache
def templates() -> dict[str, Mask]:
    """Each shape's outline, (GRID, GRID)."""
    found: dict[str, Mask] = {}
    for shape in SHAPES:
        canvas = Canvas((0, 0, 0))
        draw_shape(canvas, shape, (SIDE / 2, SIDE / 2), 24, (255, 255, 255), (0, 0, 0))
        drawn = canvas.picture().convert("L")
        box = drawn.point(lambda value: 255 * (value > 127)).getbbox()
        found[shape] = _fitted(drawn, box or (0, 0, SIDE, SIDE))
    return found


def _fitted(outline: Image.Image, box: tuple[int, int, int, int]) -> Mask:
    scaled = outline.crop(box).resize((GRID, GRID), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127


def _overlap(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


# ---------------------------------------------------------------- figures


def drawn_accuracy(count: int = 1000, seed: int = 100) -> float:
    """How often `read` is right about all four parts of a freshly drawn scene."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    return sum(_all_right(read(draw_scene(scene, rng)), scene) for scene in scenes) / count


def _all_right(reading: Reading, scene: Scene) -> bool:
    return reading.agrees(scene) and (reading.background, reading.size) == (scene.background, scene.size)


def generated(
    pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = 0, batch: int = 50
) -> list[Image.Image]:
    """One picture for each prompt, with DPM-Solver++ and Karras sigmas."""
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, use_karras_sigmas=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        made = pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator)
        pictures += made.images
    return pictures


def report(folder: Path, count: int = 200, seed: int = 0) -> dict[str, float]:
    """The share of generated pictures that show the prompt's colour, shape, both, background and size."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    readings = [read(picture) for picture in generated(pipeline, [scene.prompt() for scene in scenes], seed)]
    pairs = list(zip(readings, scenes, strict=True))
    return {
        "checker on drawn pictures": drawn_accuracy(),
        "colour": sum(r.colour == s.colour for r, s in pairs) / count,
        "shape": sum(r.shape == s.shape for r, s in pairs) / count,
        "colour and shape": sum(r.agrees(s) for r, s in pairs) / count,
        "background": sum(r.background == s.background for r, s in pairs) / count,
        "size": sum(r.size == s.size for r, s in pairs) / count,
        "all four": sum(_all_right(r, s) for r, s in pairs) / count,
    }
