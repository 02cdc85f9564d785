"""Data sets of Hugging Face: a name on the hub, a folder of `save_to_disk`, arrow and parquet files.

They are read through the package `datasets`, which is not required for anything else. Pictures stay in their files,
undecoded, until they are asked for.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BadConfig, BadDataset
from .pictures import SUFFIXES

_TABLES = (".arrow", ".parquet")
_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves beside its tables
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # OWNER/NAME
_OLDEST = 4  # major version of `datasets`; earlier ones run code that comes with the data


@dataclass(frozen=True, eq=False)
class Row:
    """One cell of a table's picture column."""

    path: Path  # the picture's own name, or its place in the table
    table: Any  # datasets.Dataset with undecoded pictures
    column: str
    index: int

    def read(self) -> bytes:
        """Return the picture's file; raises BadDataset."""
        cell = self.table[self.index][self.column]
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        if isinstance(cell, str):
            cell = _file(cell)
        if not isinstance(cell, bytes):
            line = f"{self.path}: column {self.column!r} holds neither a picture nor the path of one"
            raise BadDataset(f"{line}; set 'image_column'", file=self.path)
        return cell


def _file(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError):
        return None


def is_table(data: str | Path) -> bool:
    """Say whether data is to be read through `datasets`."""
    path = Path(data)
    if path.is_file():
        return path.suffix in _TABLES
    if path.is_dir():
        inside = {file.suffix.lower() for file in path.rglob("*")}
        return not inside.isdisjoint(_TABLES) and inside.isdisjoint(SUFFIXES)
    return _HUB.fullmatch(str(data)) is not None and not str(data).startswith((".", "~"))


def rows(data: str | Path, image_column: str, caption_column: str) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """Yield the pictures and their captions; raises BadDataset, and BadConfig where `datasets` is missing."""
    datasets = _package(str(data))
    table = _opened(datasets, str(data))
    for column, setting in ((image_column, "image_column"), (caption_column, "caption_column")):
        if column not in table.column_names and (setting == "image_column" or column != "text"):
            there = ", ".join(table.column_names)
            raise BadDataset(f"{data}: no column {column!r}; set {setting!r} to one of {there}", file=str(data))
    pictures = table.select_columns([image_column])
    if isinstance(table.features[image_column], datasets.Image):
        pictures = pictures.cast_column(image_column, datasets.Image(decode=False))
    texts = table[caption_column] if caption_column in table.column_names else [None] * len(table)
    for index, caption in enumerate(texts):
        yield Row(Path(f"{Path(data).name}-{index:06d}"), pictures, image_column, index), _captions(caption)


def _captions(value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return tuple(text for text in texts if isinstance(text, str))


def _opened(datasets: ModuleType, data: str) -> Any:
    """Return the data set's "train" split, or its only one."""
    try:
        table = _loaded(datasets, data)
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        what = "cannot be read" if Path(data).exists() else "no such folder, and no data set of that name can be loaded"
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadDataset(f"{data}: {what} ({first[:200]}); give a folder of pictures", file=data) from error
    if not isinstance(table, dict):
        return table
    if "train" not in table and len(table) != 1:
        raise BadDataset(f"{data}: has no split 'train' among {', '.join(table)}; save that one alone", file=data)
    return table["train"] if "train" in table else next(iter(table.values()))


def _loaded(datasets: ModuleType, data: str) -> Any:
    path = Path(data)
    if not path.exists():
        return datasets.load_dataset(data)
    if any((path / name).is_file() for name in _SAVED):
        return datasets.load_from_disk(data)
    files = [path] if path.is_file() else _files(path)
    if files[0].suffix == ".arrow":
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    return datasets.Dataset.from_parquet([str(file) for file in files])


def _files(folder: Path) -> list[Path]:
    """Return a folder's tables, of one kind; split "train" alone where files are named by splits."""
    found = sorted(path for path in folder.rglob("*") if path.suffix in _TABLES and path.is_file())
    kind = [path for path in found if path.suffix == found[0].suffix]
    train = [path for path in kind if path.name.startswith("train")]
    return train or kind


def _package(data: str) -> ModuleType:
    """Import `datasets`; raises BadConfig with the command that installs it."""
    command = f'{Path(sys.executable).name} -m pip install "datasets>={_OLDEST}"'
    what = f"{data}: a table" if Path(data).exists() else f"{data}: no such folder, and a data set"
    line = f"{what} of Hugging Face needs a package; run '{command}', or give a folder of pictures"
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise BadConfig(line, key="data") from error
    if int(datasets.__version__.partition(".")[0]) < _OLDEST:
        raise BadConfig(line, key="data")
    return datasets
