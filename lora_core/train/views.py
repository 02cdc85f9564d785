"""Which step sees what: pictures as they are shown, and the plan that orders them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path

import torch

from ..errors import BadDataset
from . import rng
from .captions import Captions
from .masks import Mask
from .pictures import Cut, Size, Source
from .shapes import Shapes

WINDOWS = 5  # places of a random crop along the long side, ends included: few enough to cache them all
CENTER = WINDOWS // 2


@dataclass(frozen=True)
class Picture:
    """One picture, or clip, of the data set with its caption."""

    path: Path  # its file, or a name for messages
    caption: str
    digest: str  # of the file's bytes
    size: Size  # width and height in pixels, as displayed
    further: tuple[str, ...] = ()  # captions of which a draw may get one instead
    repeats: int = 1  # how often it counts in an epoch
    mask: Mask | None = None
    length: int = 1  # frames
    inside: Source | None = None  # where it is read from, if that is not `path`

    @property
    def source(self) -> Source:
        """Where the picture is read from."""
        return self.path if self.inside is None else self.inside

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions."""
        return (self.caption, *self.further)


@dataclass(frozen=True)
class View:
    """One way to look at a picture: where it is cut, whether it is mirrored, what is said of it."""

    picture: Picture
    window: int = CENTER  # place of the cut along the side, and the time, that is left over
    flip: bool = False
    prior: bool = False  # a class picture, for prior preservation
    size: Size | None = None  # that it is cut to; None = as its proportions want
    said: str | None = None  # this draw's caption; None = the picture's own

    @property
    def caption(self) -> str:
        """The caption that the model is given."""
        return self.picture.caption if self.said is None else self.said

    def cut(self, shapes: Shapes) -> Cut:
        """Return how the picture becomes pixels."""
        width, height = self.size or shapes.of(self.picture.size)
        return Cut(width, height, self.window / (WINDOWS - 1), self.flip)


@dataclass(frozen=True)
class Broken:
    """A picture that cannot be trained on, and why."""

    picture: Picture
    message: str


def left_out(reason: str) -> str:
    """Return the warning for a picture that is left out."""
    return f"left out: {reason}"


def usable(pictures: Sequence[Picture], broken: Iterable[Broken]) -> list[Picture]:
    """Return the pictures that are not broken; raises BadDataset where none of them is left."""
    out = {one.picture.digest for one in broken}
    found = [picture for picture in pictures if picture.digest not in out]
    if pictures and not found:
        path = pictures[0].path.parent
        raise BadDataset(f"{path}: no picture is left that can be used; repair them", file=path)
    return found


@dataclass(frozen=True)
class _Bucket:
    """The pictures of one size, each as often as it repeats."""

    size: Size
    pictures: tuple[Picture, ...]

    @property
    def label(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


@dataclass(frozen=True)
class Plan:
    """Which views each step sees: a pure function of the step, so that nothing has to be replayed.

    Each bucket is an endless sequence, whose place p shows picture `permutation(seed, p // n)[p % n]`. Batches are cut
    from these sequences one after the other, so all of them are full, and a batch that an epoch's end cuts goes on with
    the next epoch. Which bucket comes next: in a round, the fewest epochs that give every bucket a whole number of
    batches, a bucket's j-th batch of m comes at `(j + u) / m`, u drawn from [0, 1). So every picture is shown equally
    often over each round, and nearly so at any time. Without buckets all is one sequence.

    Class pictures are one such sequence too, cut to the size of the batch that they are in.
    """

    pictures: Sequence[Picture]
    priors: Sequence[Picture] = ()
    batch_size: int = 1
    accumulate: int = 1
    seed: int = 0
    center_crop: bool = True
    random_flip: bool = False
    shapes: Shapes = Shapes()
    captions: Captions = Captions()
    frames: int = 1
    warnings: tuple[str, ...] = ()  # what was left out, or is worth a look
    made_from: str = field(default="", repr=False)  # digest of the plan that pictures were taken out of

    @property
    def rows(self) -> int:
        """Pictures in one micro-batch, class pictures included."""
        return self.batch_size * (2 if self.priors else 1)

    def views(self, step: int) -> list[list[View]]:
        """Return the micro-batches of a step (0-based); class pictures follow the instance pictures in each."""
        return [self._micro_batch(step * self.accumulate + micro) for micro in range(self.accumulate)]

    def drawn(self, steps: Iterable[int]) -> Iterator[View]:
        """Yield all views of some steps."""
        return (view for step in steps for views in self.views(step) for view in views)

    def epoch(self, first: int, end: int) -> range:
        """Return the steps from `first`, before `end`, in which every picture is shown at least once."""
        missing = {id(picture) for picture in (*self.pictures, *self.priors)}
        for step in range(first, end):
            missing -= {id(view.picture) for view in self.drawn([step])}
            if not missing:
                return range(first, step + 1)
        return range(first, end)

    def texts(self) -> list[str]:
        """Return every text that a draw may have, each once; where there is no end of them, those without change."""
        own = self.captions.every(caption for picture in self.pictures for caption in picture.captions)
        return list(dict.fromkeys([*own, *(caption for picture in self.priors for caption in picture.captions)]))

    def spoken(self) -> list[str]:
        """Return each picture's caption with the trigger word, for counting tags."""
        return [self.captions.whole(picture.caption) for picture in self.pictures]

    def enlarged(self) -> list[Picture]:
        """Return the pictures that are smaller than what they are cut to."""
        return [picture for picture in self.pictures if self._is_enlarged(picture.size)]

    def _is_enlarged(self, size: Size) -> bool:
        width, height = self.shapes.of(size)
        return width > size[0] or height > size[1]

    def without(self, broken: Iterable[Broken]) -> Plan:
        """Return the plan of the other pictures; its digest stays that of all, so that a resumed run finds its own.

        Raises BadDataset where none would be left.
        """
        found = list(broken)
        if not found:
            return self
        return replace(
            self,
            pictures=usable(self.pictures, found),
            priors=usable(self.priors, found),
            warnings=(*self.warnings, *(left_out(one.message) for one in found)),
            made_from=self.digest(),
        )

    def digest(self) -> str:
        """Return a hash of all pictures, masks and captions, in order."""
        if self.made_from:
            return self.made_from
        rows = [
            [p.digest, p.captions, p.repeats, p.mask.digest if p.mask else None]
            for group in (self.pictures, self.priors)
            for p in group
        ]
        return blake2b(json.dumps([len(self.pictures), rows]).encode(), digest_size=16).hexdigest()

    def _micro_batch(self, number: int) -> list[View]:
        bucket, turn = self._turn(number)
        shown = [self._instance(bucket, turn * self.batch_size + row) for row in range(self.batch_size)]
        places = range(number * self.batch_size, (number + 1) * self.batch_size) if self.priors else ()
        return shown + [self._class(place, bucket.size) for place in places]

    def _turn(self, number: int) -> tuple[_Bucket, int]:
        """Return which bucket's batch comes at a place in the sequence of batches, and the batch's number there."""
        if len(self._buckets) == 1:
            return self._buckets[0], number
        rounds, place = divmod(number, sum(self._shares))
        index, turn = self._round(rounds)[place]
        return self._buckets[index], rounds * self._shares[index] + turn

    def _instance(self, bucket: _Bucket, place: int) -> View:
        epoch, index = divmod(place, len(bucket.pictures))
        picture = bucket.pictures[self._order("instance", bucket.label, len(bucket.pictures), epoch)[index]]
        said = self.captions.draw(picture.captions, self.seed, "instance", bucket.label, place)
        return self._view(View(picture, size=bucket.size, said=said), "instance", bucket.label, place)

    def _class(self, place: int, size: Size) -> View:
        epoch, index = divmod(place, len(self._reserve))
        picture = self._reserve[self._order("class", "", len(self._reserve), epoch)[index]]
        return self._view(View(picture, prior=True, size=size), "class", "", place)

    def _view(self, view: View, *place: rng.Place) -> View:
        cut, picture = view.cut(self.shapes), view.picture
        whole = cut.covering(picture.size) == (cut.width, cut.height) and picture.length == self.frames
        fixed = self.center_crop or whole
        window = CENTER if fixed else rng.integer(WINDOWS, self.seed, "crop", *place)
        flip = self.random_flip and rng.integer(2, self.seed, "flip", *place) == 1
        return replace(view, window=window, flip=flip)

    @cached_property
    def _buckets(self) -> tuple[_Bucket, ...]:
        found: dict[Size, list[Picture]] = {}
        for picture in self.pictures:
            found.setdefault(self.shapes.of(picture.size), []).extend([picture] * picture.repeats)
        return tuple(_Bucket(size, tuple(found[size])) for size in sorted(found))

    @cached_property
    def _reserve(self) -> tuple[Picture, ...]:
        """The class pictures, each as often as it repeats."""
        return tuple(picture for picture in self.priors for _ in range(picture.repeats))

    @cached_property
    def _shares(self) -> tuple[int, ...]:
        """Each bucket's batches in a round."""
        counts = [len(bucket.pictures) for bucket in self._buckets]
        shared = math.gcd(self.batch_size, *counts)
        return tuple(count // shared for count in counts)

    @cached_property
    def _round(self) -> Callable[[int], list[tuple[int, int]]]:
        """A round's batches in order: (bucket's index, the batch's number in the round); the last two are kept."""

        def batches(number: int) -> list[tuple[int, int]]:
            timed = []
            for index, share in enumerate(self._shares):
                source = rng.generator(self.seed, "round", number, self._buckets[index].label)
                times = (torch.arange(share) + torch.rand(share, generator=source, dtype=torch.float64)) / share
                timed += [(time, index, turn) for turn, time in enumerate(times.tolist())]
            return [(index, turn) for _, index, turn in sorted(timed)]

        return lru_cache(2)(batches)

    @cached_property
    def _order(self) -> Callable[[str, str, int, int], list[int]]:
        """Permutations of (kind, bucket's label, count, epoch); the last ones are kept."""

        def permuted(kind: str, label: str, count: int, epoch: int) -> list[int]:
            return rng.permutation(count, self.seed, f"{kind} order", label, epoch)

        return lru_cache(64)(permuted)
