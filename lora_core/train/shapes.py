"""Sizes that pictures are cut to: one square, or buckets of about the same area that keep aspect ratios."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from ..errors import BadConfig
from .config import TrainConfig
from .pictures import Size


@dataclass(frozen=True)
class Shapes:
    """The rule from a picture's size to the size it is shown in.

    Source of the buckets: `make_bucket_resolutions` and `BucketManager.select_bucket` of kohya-ss/sd-scripts, but for
    two points: pictures that are not enlarged are shrunk until they just cover their bucket, so that one side loses
    nothing, and no bucket has a larger area than the resolution's square.
    """

    resolution: int = 512
    buckets: bool = False
    step: int = 64  # sides of buckets are multiples of this
    low: int = 256  # smallest side
    high: int = 2048  # largest side
    upscale: bool = True  # pictures smaller than their bucket are enlarged

    def __post_init__(self) -> None:
        """Refuse a step that no bucket can have; raises BadConfig."""
        if self.buckets and self.resolution < self.step:
            line = f"config: 'bucket_step' {self.step} is above 'resolution' {self.resolution}; lower it"
            raise BadConfig(line, key="bucket_step")

    def of(self, size: Size) -> Size:
        """Return the width and height that a picture of the given size is cut to.

        >>> Shapes(512, buckets=True).of((1200, 800)), Shapes(512).of((1200, 800))
        ((640, 384), (512, 512))
        """
        if not self.buckets:
            return self.resolution, self.resolution
        return self._nearest(size) if self.upscale else self._own(size)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """All buckets for pictures that may be enlarged, ascending."""
        area, side = self.resolution**2, self.resolution // self.step * self.step
        lowest = math.ceil(self.low / self.step) * self.step
        pairs = [(w, min(self._highest, area // w // self.step * self.step)) for w in self._sides(lowest)]
        fitting = [pair for pair in pairs if pair[1] >= lowest]
        return tuple(sorted({(side, side), *fitting, *((h, w) for w, h in fitting)}))

    @property
    def _highest(self) -> int:
        return max(self.high // self.step, 1) * self.step

    def _sides(self, lowest: int) -> range:
        return range(lowest, self._highest + 1, self.step)

    def _nearest(self, size: Size) -> Size:
        """Return the bucket whose aspect ratio is nearest."""
        ratio = size[0] / size[1]
        return min(self.sizes, key=lambda bucket: abs(bucket[0] / bucket[1] - ratio))

    def _own(self, size: Size) -> Size:
        """Return the largest bucket inside the picture, after shrinking it to the area where it is larger.

        Of the two ways to round, width first or height first, the one that is nearer to the picture's aspect ratio.
        """
        width, height = size
        ratio, scale = width / height, min(1.0, self.resolution / math.sqrt(width * height))
        w, h = self._down(width * scale), self._down(height * scale)
        ways = [(w, h)] if scale == 1 else [(w, self._down(w / ratio)), (self._down(h * ratio), h)]
        w, h = min(ways, key=lambda way: abs(way[0] / way[1] - ratio))
        area = self.resolution**2
        return (min(w, self._down(area / h)), h) if w > h else (w, min(h, self._down(area / w)))

    def _down(self, side: float) -> int:
        """Return the multiple of the step at or below a side, at least one and at most the largest side."""
        return min(max(int((side + 1e-6) // self.step), 1) * self.step, self._highest)


def shapes_of(config: TrainConfig) -> Shapes:
    """Return the rule that a configuration asks for; raises BadConfig."""
    return Shapes(
        config.resolution,
        config.buckets,
        step=config.bucket_step,
        low=config.bucket_min,
        high=config.bucket_max,
        upscale=config.bucket_upscale,
    )
