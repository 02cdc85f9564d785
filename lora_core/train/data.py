"""From a configuration to data: what there is (the manifest), and which step sees what (the plan)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import BadConfig, BadDataset
from .captions import captions_of
from .config import TrainConfig
from .huggingface import Row
from .masks import Masks, open_masks
from .pictures import Clip, Measure, measure
from .shapes import Shapes, shapes_of
from .sources import PLAIN, Entry, Reading, entries
from .views import CENTER, WINDOWS, Picture, Plan, View, left_out, usable

__all__ = ["CENTER", "WINDOWS", "Picture", "Plan", "View", "manifest", "plan", "tag_counts", "unseen", "usable"]

THREADS = 4  # that read and hash files


@dataclass(frozen=True)
class Manifest:
    """The pictures of a data set, and what was left out of it."""

    pictures: list[Picture]
    warnings: tuple[str, ...] = ()


def plan(config: TrainConfig) -> Plan:
    """Read the data that a configuration names.

    Raises BadDataset naming the file at fault, and BadConfig for settings that do not go together.
    """
    if config.masks is not None and config.frames > 1:
        raise BadConfig("config: 'masks' are for pictures; leave them out where 'frames' is above 1", key="masks")
    shapes = shapes_of(config)
    own = listed(
        config.data,
        config.instance_prompt,
        reading=replace(_reading(config), most=config.max_pictures),
        masks=open_masks(config.masks),
        shapes=shapes,
        skip=config.skip_broken,
    )
    priors = _priors(config, shapes)
    return Plan(
        own.pictures,
        priors.pictures,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        seed=config.seed,
        center_crop=config.center_crop,
        random_flip=config.random_flip,
        shapes=shapes,
        captions=captions_of(config),
        frames=config.frames,
        warnings=(*own.warnings, *priors.warnings),
    )


def unseen(config: TrainConfig) -> list[Picture]:
    """Return the pictures of `validation_data`, with the trigger word in each caption; empty without any.

    A picture without a file in the folder of masks counts as a whole. Raises BadDataset.
    """
    if config.validation_data is None:
        return []
    found = listed(
        config.validation_data,
        config.instance_prompt,
        reading=_reading(config, config.validation_data),
        masks=open_masks(config.masks, required=False),
        shapes=shapes_of(config),
        skip=config.skip_broken,
        trigger=captions_of(config).whole,
    )
    return found.pictures


def _priors(config: TrainConfig, shapes: Shapes) -> Manifest:
    if config.class_data is None:
        return Manifest([])
    reading = Reading(config.image_column, config.caption_column, config.frames)
    skip = config.skip_broken
    return listed(config.class_data, config.class_prompt, "class_prompt", reading, shapes=shapes, skip=skip)


def _reading(config: TrainConfig, data: str | None = None) -> Reading:
    """Return how a folder is read: without the folders inside it that hold something else."""
    others = (config.out, config.class_data, config.validation_data, config.masks, config.data)
    out = tuple(Path(other) for other in others if other is not None and other != (data or config.data))
    return Reading(config.image_column, config.caption_column, config.frames, out)


def manifest(data: str | Path, fallback: str | None = None, key: str = "instance_prompt") -> list[Picture]:
    """Return the pictures of a data set as `listed` does with its defaults."""
    return listed(data, fallback, key).pictures


def listed(
    data: str | Path,
    fallback: str | None = None,
    key: str = "instance_prompt",
    reading: Reading = PLAIN,
    masks: Masks | None = None,
    shapes: Shapes | None = None,
    skip: bool = False,
    trigger: Callable[[str], str] = str,
) -> Manifest:
    """Return the pictures of a data set, by path, with their captions, sizes and hashes.

    Args:
        data: what `sources.entries` reads.
        fallback: caption of pictures that have none.
        key: the setting that `fallback` comes from, for messages.
        reading: columns, frames and folders to leave out.
        masks: where their masks are.
        shapes: what they will be cut to, for refusing those that are too small.
        skip: leave out pictures whose file cannot be read, and say so in the warnings, instead of raising.
        trigger: what each caption passes through.

    Raises BadDataset naming the file: no pictures, a picture without caption or mask, an unreadable one, a wrong line
    of metadata.
    """
    found = entries(data, reading)
    captions = [tuple(map(trigger, _captions(entry, fallback, key))) for entry in found]
    with ThreadPoolExecutor(THREADS) as pool:
        facts = list(pool.map(partial(_measured, reading=reading, shapes=shapes, skip=skip), found))
    broken = [fact for fact in facts if isinstance(fact, BadDataset)]
    pictures = [
        _picture(entry, texts, fact, masks, reading.frames)
        for entry, texts, fact in zip(found, captions, facts, strict=True)
        if not isinstance(fact, BadDataset)
    ]
    if not pictures:
        raise broken[0]
    return Manifest(pictures, tuple(left_out(error.message) for error in broken))


def _measured(entry: Entry, reading: Reading, shapes: Shapes | None, skip: bool) -> Measure | BadDataset:
    """Return what a file says of itself; with `skip` the error, for one that cannot be used."""
    try:
        found = measure(entry.source)
        _refuse_small(entry, found.size, shapes)
        if found.length < reading.frames:
            line = f"{entry.path}: has {found.length} frames, but 'frames' is {reading.frames}; give a longer clip"
            raise BadDataset(line, file=entry.path)
    except BadDataset as error:
        if skip:
            return error
        raise
    return found


def _refuse_small(entry: Entry, size: tuple[int, int], shapes: Shapes | None) -> None:
    if shapes is not None and shapes.buckets and not shapes.upscale and min(size) < shapes.step:
        what = f"{size[0]} x {size[1]} is smaller than 'bucket_step' {shapes.step}"
        raise BadDataset(f"{entry.path}: {what}; set 'bucket_upscale', or remove it", file=entry.path)


def _picture(entry: Entry, captions: Sequence[str], facts: Measure, masks: Masks | None, frames: int) -> Picture:
    return Picture(
        entry.path,
        captions[0],
        facts.digest,
        facts.size,
        further=tuple(captions[1:]),
        repeats=entry.repeats,
        mask=None if masks is None else masks.find(entry.source, entry.name),
        length=facts.length if frames > 1 else 1,
        inside=None if isinstance(entry.source, Path) else entry.source,
    )


def _captions(entry: Entry, fallback: str | None, key: str) -> tuple[str, ...]:
    if entry.captions:
        return entry.captions
    if fallback is None:
        stem = entry.path.name if isinstance(entry.source, Clip) else entry.path.stem
        ways = f"write {stem}.txt beside it, list it in metadata.jsonl, or set {key!r}"
        ways = f"set 'caption_column', or {key!r}" if isinstance(entry.source, Row) else ways
        raise BadDataset(f"{entry.path}: no caption; {ways}", file=entry.path)
    return (fallback,)


def tag_counts(captions: Iterable[str], separator: str = ",") -> dict[str, int]:
    """Return how often each part of the captions occurs between separators, the most frequent first.

    >>> tag_counts(["cat, red", "cat"])
    {'cat': 2, 'red': 1}
    """
    tags = (tag.strip() for caption in captions for tag in caption.split(separator))
    return dict(Counter(tag for tag in tags if tag).most_common())
