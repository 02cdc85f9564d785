"""A folder of pictures as data: what there is (the manifest), and which step sees what (the plan).

Captions, the first that exists: `cat.txt` beside `cat.png`; the line of `metadata.jsonl` in the folder
(`{"file_name": "cat.png", "text": "..."}`); `instance_prompt`. Subfolders count, hidden files do not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..errors import BadDataset
from . import rng
from .config import TrainConfig
from .pictures import SUFFIXES, size_of

WINDOWS = 5  # places of a random crop along the long side, ends included: few enough to cache them all
CENTER = WINDOWS // 2


@dataclass(frozen=True)
class Picture:
    """One file of the data set with its caption."""

    path: Path
    caption: str
    digest: str  # of the file's bytes
    size: tuple[int, int]  # width and height in pixels, as displayed


@dataclass(frozen=True)
class View:
    """One way to look at a picture: where the square is cut along the long side, and whether it is mirrored."""

    picture: Picture
    window: int = CENTER
    flip: bool = False
    prior: bool = False  # a class picture, for prior preservation


@dataclass(frozen=True)
class Plan:
    """Which views each step sees: a pure function of the step, so that nothing has to be replayed.

    Position p of the endless sequence shows picture `permutation(seed, p // n)[p % n]`. A batch that an epoch's end
    cuts goes on with the next epoch, so all batches are full and every picture is shown equally often.
    """

    pictures: Sequence[Picture]
    priors: Sequence[Picture] = ()
    batch_size: int = 1
    accumulate: int = 1
    seed: int = 0
    center_crop: bool = True
    random_flip: bool = False

    @property
    def rows(self) -> int:
        """Pictures in one micro-batch, class pictures included."""
        return self.batch_size * (2 if self.priors else 1)

    def views(self, step: int) -> list[list[View]]:
        """Return the micro-batches of a step (0-based); class pictures follow the instance pictures in each."""
        return [self._micro_batch(step * self.accumulate + micro) for micro in range(self.accumulate)]

    def _micro_batch(self, batch: int) -> list[View]:
        places = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        shown = [self._view(self.pictures, place, "instance") for place in places]
        return shown + [self._view(self.priors, place, "class") for place in places if self.priors]

    def _view(self, pictures: Sequence[Picture], place: int, kind: str) -> View:
        epoch, index = divmod(place, len(pictures))
        picture = pictures[rng.permutation(len(pictures), self.seed, f"{kind} order", epoch)[index]]
        fixed = self.center_crop or picture.size[0] == picture.size[1]
        window = CENTER if fixed else rng.integer(WINDOWS, self.seed, f"{kind} crop", place)
        flip = self.random_flip and rng.integer(2, self.seed, f"{kind} flip", place) == 1
        return View(picture, window, flip, kind == "class")

    def digest(self) -> str:
        """Return a hash of all pictures and captions, in order."""
        rows = [(p.digest, p.caption) for group in (self.pictures, self.priors) for p in group]
        return blake2b(json.dumps([len(self.pictures), rows]).encode(), digest_size=16).hexdigest()


def plan(config: TrainConfig) -> Plan:
    """Read the folders that a configuration names; raises BadDataset."""
    pictures = manifest(config.data, config.instance_prompt)
    priors = [] if config.class_data is None else manifest(config.class_data, config.class_prompt, "class_prompt")
    return Plan(
        pictures,
        priors,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        seed=config.seed,
        center_crop=config.center_crop,
        random_flip=config.random_flip,
    )


def manifest(folder: str | Path, fallback: str | None = None, key: str = "instance_prompt") -> list[Picture]:
    """Return the pictures of a folder, by path, with their captions; `fallback` is for those that have none.

    `key` is the setting that `fallback` comes from, for messages.

    Raises BadDataset naming the file: no pictures, a picture without caption, an unreadable one, a wrong metadata line.
    """
    listed = _metadata(Path(folder))
    return [_picture(path, _caption(path, listed.get(path), fallback, key)) for path in _files(Path(folder))]


def tag_counts(captions: Iterable[str]) -> dict[str, int]:
    """Return how often each comma-separated part of the captions occurs, the most frequent first.

    >>> tag_counts(["cat, red", "cat"])
    {'cat': 2, 'red': 1}
    """
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()).most_common())


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadDataset(f"{folder}: no such folder; give a folder of pictures", file=folder)
    inside = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    shown = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not shown:
        raise BadDataset(f"{folder}: no pictures; put {', '.join(SUFFIXES)} files in it", file=folder)
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def _picture(path: Path, caption: str) -> Picture:
    size = size_of(path)
    return Picture(path, caption, blake2b(path.read_bytes(), digest_size=16).hexdigest(), size)


def _caption(path: Path, listed: str | None, fallback: str | None, key: str) -> str:
    beside = path.with_suffix(".txt")
    if beside.is_file():
        return " ".join(_text(beside).split())
    caption = fallback if listed is None else listed
    if caption is None:
        ways = f"write {beside.name} beside it, list it in metadata.jsonl, or set {key!r}"
        raise BadDataset(f"{path}: no caption; {ways}", file=path)
    return caption


def _metadata(folder: Path) -> Mapping[Path, str]:
    """Return the captions of `metadata.jsonl` by picture; empty without that file."""
    source = folder / "metadata.jsonl"
    lines = _text(source).splitlines() if source.is_file() else []
    return dict(_entry(source, number, line) for number, line in enumerate(lines, 1) if line.strip())


def _entry(source: Path, number: int, line: str) -> tuple[Path, str]:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadDataset(f"{source}, line {number}: not JSON ({error})", file=source) from error
    name, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "text"))
    if not isinstance(name, str) or not isinstance(text, str):
        shape = '{"file_name": "cat.png", "text": "a photo of a cat"}'
        raise BadDataset(f"{source}, line {number}: a line must look like {shape}", file=source)
    path = source.parent / name
    if not path.is_file():
        raise BadDataset(f"{source}, line {number}: {name!r} is not in the folder; remove the line", file=source)
    return path, text


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8", file=path) from error
