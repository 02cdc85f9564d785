"""Files of `torch.save`, read without running anything that is in them: see `unpickler` for how.

Both layouts are read: the zip archive (torch 1.6 and later) and the older sequence of pickles followed by raw storages.
Source: `torch/serialization.py`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import FileProblem, UnsafeFile
from .unpickler import Record, Storage, Unpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_DEPTH = 8  # of dicts and lists inside one another
_MAX_NAMES = 20_000_000  # characters in all names; a list may hold another one many times over
_BROKEN = (  # what Python's unpickler raises on bytes that are no sound pickle
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True)
class Contents:
    """Everything that was found: tensors by key, and loose numbers and strings beside them."""

    records: Mapping[str, Record]
    texts: Mapping[str, str]


def describe(path: Path) -> Contents:
    """Read a pickle's structure and no weight. Raises UnsafeFile, or FileProblem for a damaged file."""
    return _read(path, weights=False)[0]


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the texts beside them. Raises UnsafeFile, or FileProblem for a damaged file."""
    contents, tensors = _read(path, weights=True)
    return tensors, dict(contents.texts)


@dataclass(frozen=True)
class Place:
    """A tensor of a pickle and where its storage begins, in bytes from the file's start."""

    record: Record
    begin: int

    def read(self, file: BinaryIO) -> Tensor:
        """Read the tensor from the open file; raises EOFError where the file has become shorter."""
        file.seek(self.begin)
        return self.record.view(_values(file.read(self.record.storage.nbytes), self.record.storage))


def places(path: Path) -> dict[str, Place]:
    """Return where each tensor lies, without reading one. Raises as `describe`."""
    finder = _zip_places if zipfile.is_zipfile(path) else _legacy_places
    try:
        contents, begins = finder(path)
        return {key: Place(record, begins[record.storage.key]) for key, record in contents.records.items()}
    except (zipfile.BadZipFile, *_BROKEN):
        raise _ends_early(path) from None


def _zip_places(path: Path) -> tuple[Contents, dict[str, int]]:
    contents, _ = _read_zip(path, weights=False)
    begins = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)  # the local header's lengths of name and extra field
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            begins[info.filename.partition("/")[2].removeprefix("data/")] = info.header_offset + 30 + name + extra
    return contents, begins


def _legacy_places(path: Path) -> tuple[Contents, dict[str, int]]:
    begins = {}
    with path.open("rb") as file:
        reader = _legacy_start(file, path)
        contents = _contents(reader.load(), path)
        for key in Unpickler(file, path).load():
            begins[key] = file.tell() + 8
            file.seek(begins[key] + reader.storages[key].nbytes)
    return contents, begins


def _ends_early(path: Path) -> FileProblem:
    return FileProblem(f"{path.name}: ends early or is damaged: download it again", file=path)


def _read(path: Path, weights: bool) -> tuple[Contents, dict[str, Tensor]]:
    reader = _read_zip if zipfile.is_zipfile(path) else _read_legacy
    try:
        contents, storages = reader(path, weights)
        records = contents.records if weights else {}
        return contents, {key: record.view(storages[record.storage]) for key, record in records.items()}
    except (zipfile.BadZipFile, *_BROKEN):
        raise _ends_early(path) from None


def _read_zip(path: Path, weights: bool) -> tuple[Contents, dict[Storage, Tensor]]:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in entries:
            raise FileProblem(f"{path.name}: is a zip archive and holds no weights itself; unpack it", file=path)
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries.values()):
            raise FileProblem(f"{path.name}: is compressed or encrypted, unlike a file of torch.save", file=path)
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise _big_endian(path)
        with archive.open(entries["data.pkl"]) as file:
            contents = _contents(Unpickler(file, path).load(), path)
        wanted = {record.storage for record in contents.records.values()} if weights else set()
        return contents, {item: _values(archive.read(entries[f"data/{item.key}"]), item) for item in wanted}


def _read_legacy(path: Path, weights: bool) -> tuple[Contents, dict[Storage, Tensor]]:
    with path.open("rb") as file:
        reader = _legacy_start(file, path)
        contents = _contents(reader.load(), path)
        keys = Unpickler(file, path).load() if weights else ()
        return contents, {reader.storages[key]: _legacy_storage(file, reader.storages[key]) for key in keys}


def _legacy_start(file: BinaryIO, path: Path) -> Unpickler:
    """Read what comes before the contents; return the reader of these."""
    if Unpickler(file, path).load() != _LEGACY_MAGIC:
        raise FileProblem(f"{path.name}: is a pickle that torch.save did not write; it is not read", file=path)
    _version, system = Unpickler(file, path).load(), Unpickler(file, path).load()
    if not system["little_endian"]:
        raise _big_endian(path)
    return Unpickler(file, path)


def _legacy_storage(file: BinaryIO, storage: Storage) -> Tensor:
    if int.from_bytes(file.read(8), "little") != storage.count:
        raise EOFError
    return _values(file.read(storage.nbytes), storage)


def _values(data: bytes, storage: Storage) -> Tensor:
    """Return a storage's values `(count,)` in memory of their own."""
    if len(data) < storage.nbytes:
        raise EOFError
    dtype = storage.dtype or torch.uint8
    if not storage.count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=storage.count)


def _big_endian(path: Path) -> FileProblem:
    return FileProblem(f"{path.name}: was written in big-endian byte order; save it as .safetensors there", file=path)


def _contents(value: Any, path: Path) -> Contents:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if isinstance(value, Record):
        value = [value]
    records: dict[str, Record] = {}
    texts: dict[str, str] = {}
    left = _MAX_NAMES
    for at, item in _inside(value, ()):
        name = ".".join(at)
        left -= 1 + len(name)
        if left < 0:
            raise FileProblem(f"{path.name}: lists more entries than any model has; it was not loaded", file=path)
        if isinstance(item, Record):
            records[name] = item
        elif isinstance(item, (str, int, float)):
            texts[name] = str(item)
        elif item is not None and not _opens(item, at):
            what = f"holds {type(item).__name__!r} at {name!r} where weights belong; it was not loaded"
            raise UnsafeFile(f"{path.name}: {what}", file=path)
    return Contents(records, texts)


def _inside(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a value and everything in it, each with its place: keys of dicts, and in lists numbers from 0."""
    yield at, value
    if _opens(value, at):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _inside(item, (*at, str(key)))


def _opens(value: Any, at: tuple[str, ...]) -> bool:
    return isinstance(value, (dict, list, tuple)) and len(at) < _MAX_DEPTH
