"""Where pictures come from: folders with captions beside them, folders of frames, tables of Hugging Face.

Captions, the first that exists: `cat.txt` or `cat.caption` beside `cat.png`; a line of `metadata.jsonl` or
`metadata.csv` in a folder above (columns `file_name` and `text`, or the one that the configuration names); the name
of a folder `N_token` above, as kohya's trainers use it, whose pictures also count N times in each epoch.
Subfolders count, hidden files do not.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import BadDataset
from .huggingface import is_table, rows
from .pictures import SUFFIXES, Clip, Source

ANIMATIONS = (".gif", ".webp")
_REPEATED = re.compile(r"(\d{1,3})_(.+)")  # kohya's folder names; above 999 it is rather a year
_NUMBERED = re.compile(r".*?(\d+)")  # stem of a frame
_CAPTIONS = (".txt", ".caption")
_SHAPE = '{"file_name": "cat.png", "text": "a photo of a cat"}'


@dataclass(frozen=True)
class Reading:
    """How data is looked at."""

    image_column: str = "image"
    caption_column: str = "text"
    frames: int = 1  # above 1: clips instead of pictures
    leave_out: tuple[Path, ...] = ()  # folders inside that hold something else
    most: int = 0  # pictures, the first in order; 0 = all


PLAIN = Reading()


@dataclass(frozen=True)
class Entry:
    """A picture as found, not yet opened."""

    path: Path  # its name for messages
    name: str  # its path in the data, without ending
    source: Source
    captions: tuple[str, ...] = ()  # of which each draw takes one; empty: none found
    repeats: int = 1  # how often it counts in an epoch


def entries(data: str | Path, reading: Reading = PLAIN) -> list[Entry]:
    """Return what a data set holds, in a fixed order; raises BadDataset naming the file at fault."""
    found = _table(data, reading) if is_table(data) else _folder(Path(data), reading)
    return list(islice(found, reading.most or None))


def _table(data: str | Path, reading: Reading) -> Iterator[Entry]:
    for row, captions in rows(data, reading.image_column, reading.caption_column):
        yield Entry(row.path, row.path.with_suffix("").as_posix(), row, captions)


def _folder(folder: Path, reading: Reading) -> Iterator[Entry]:
    if not folder.is_dir():
        raise BadDataset(f"{folder}: no such folder; give a folder of pictures", file=folder)
    listed = _metadata(folder, reading)
    sources = _clips(folder, reading) if reading.frames > 1 else _files(folder, reading)
    if not sources:
        wanted = f"folders of numbered frames, or {' and '.join(ANIMATIONS)} files," if reading.frames > 1 else None
        wanted = wanted or f"{', '.join(SUFFIXES)} files"
        what = "clips" if reading.frames > 1 else "pictures"
        raise BadDataset(f"{folder}: no {what}; put {wanted} in it", file=folder)
    yield from (_entry(folder, source, listed) for source in sources)


def _entry(folder: Path, source: Path | Clip, listed: Mapping[Path, tuple[str, ...]]) -> Entry:
    path = source.path if isinstance(source, Clip) else source
    stem = path.name if isinstance(source, Clip) else path.stem
    beside = next((file for end in _CAPTIONS if (file := path.with_name(stem + end)).is_file()), None)
    repeats, token = _repeated(path.relative_to(folder).parts[:-1])
    captions = (" ".join(_text(beside).split()),) if beside else listed.get(path, (token,) if token else ())
    name = path.relative_to(folder).with_name(stem).as_posix()
    return Entry(path, name, source, captions, repeats)


def _repeated(folders: Sequence[str]) -> tuple[int, str | None]:
    """Return what the nearest folder named `N_token` says."""
    for folder in reversed(folders):
        found = _REPEATED.fullmatch(folder)
        if found:
            return max(int(found[1]), 1), found[2].strip()
    return 1, None


def _inside(folder: Path, pattern: str, reading: Reading) -> Iterator[Path]:
    """Yield the files of a pattern that are shown and not left out."""
    root = folder.resolve()
    found = (other.resolve() for other in reading.leave_out)
    others = [other.relative_to(root) for other in found if root in other.parents]
    for path in folder.rglob(pattern):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and not any(other in inside.parents for other in others) and path.is_file():
            yield path


def _files(folder: Path, reading: Reading) -> list[Path]:
    found = (path for path in _inside(folder, "*", reading) if path.suffix.lower() in SUFFIXES)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _clips(folder: Path, reading: Reading) -> list[Path | Clip]:
    """Return animations, and folders whose pictures are all numbered, by name."""
    together: dict[Path, list[Path]] = {}
    for path in _files(folder, reading):
        together.setdefault(path.parent, []).append(path)
    found: list[Path | Clip] = []
    for parent, files in together.items():
        stills = [path for path in files if path.suffix.lower() not in ANIMATIONS]
        found += [path for path in files if path.suffix.lower() in ANIMATIONS]
        if stills:
            found.append(_clip(folder, parent, stills))
    return sorted(found, key=lambda one: (one.path if isinstance(one, Clip) else one).relative_to(folder).as_posix())


def _clip(folder: Path, parent: Path, stills: Sequence[Path]) -> Clip:
    numbers = {path: _NUMBERED.fullmatch(path.stem) for path in stills}
    for path, number in numbers.items():
        if number is None or parent == folder:
            line = f"{path}: a still, but 'frames' asks for clips; put numbered frames into a subfolder for each clip"
            raise BadDataset(line, file=path)
    return Clip(parent, tuple(sorted(stills, key=lambda path: (int(numbers[path][1]), path.name))))  # type: ignore[index]


def _metadata(folder: Path, reading: Reading) -> dict[Path, tuple[str, ...]]:
    """Return the captions that metadata files in the folder and below give, by picture."""
    found: dict[Path, tuple[str, ...]] = {}
    for source in sorted(_inside(folder, "metadata.*", reading)):
        read = {".jsonl": _json_lines, ".csv": _csv_lines}.get(source.suffix)
        for number, entry in read(source) if read else ():
            path, captions = _listed(source, number, entry, reading.caption_column)
            found[path] = captions
    return found


def _json_lines(source: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(source).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadDataset(f"{source}, line {number}: not JSON ({error})", file=source) from error


def _csv_lines(source: Path) -> Iterator[tuple[int, Any]]:
    table = csv.DictReader(_text(source).splitlines(keepends=True))
    try:
        for entry in table:
            yield table.line_num, entry
    except csv.Error as error:
        raise BadDataset(f"{source}, line {table.line_num}: not CSV ({error})", file=source) from error


def _listed(source: Path, number: int, entry: Any, column: str) -> tuple[Path, tuple[str, ...]]:
    known: dict[str, Any] = entry if isinstance(entry, dict) else {}
    name, captions = known.get("file_name"), captions_in(known.get(column, known.get("text")))
    if not isinstance(name, str) or not captions:
        shape = _SHAPE.replace('"text"', json.dumps(column))
        raise BadDataset(f"{source}, line {number}: a line must look like {shape}", file=source)
    path = source.parent / name
    if not path.exists():
        raise BadDataset(f"{source}, line {number}: {name!r} is not in the folder; remove the line", file=source)
    return path, captions


def captions_in(value: Any) -> tuple[str, ...]:
    """Return a text, or a list of texts, as captions; empty for anything else.

    >>> captions_in("a cat"), captions_in(["a cat", "an animal"]), captions_in(None)
    (('a cat',), ('a cat', 'an animal'), ())
    """
    texts = value if isinstance(value, list) else [value]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{path}: cannot be read as UTF-8 text ({error}); save it as UTF-8", file=path) from error
