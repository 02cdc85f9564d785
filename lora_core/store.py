"""Weight files in and out: safetensors read and written, `torch.save` files read as data, nothing half-written.

What a file is, its bytes say: a safetensors file loads under any name. Only a pickle that calls itself .safetensors,
the name of files that cannot carry code, is refused.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import pickle_reader
from .errors import FileProblem
from .hashes import autov2, autov3, legacy_hash, model_hash, sha256, with_hashes
from .header import (
    MAX_HEADER,
    Header,
    Layout,
    dtype_name,
    layout,
    map_tensors,
    opened,
    raw_bytes,
    read_header,
    read_tensor,
    read_tensors,
    torch_dtype,
    usable,
)

__all__ = [
    "Header",
    "Stored",
    "TensorFile",
    "autov2",
    "autov3",
    "dtype_name",
    "header",
    "legacy_hash",
    "load",
    "model_hash",
    "refuse_existing",
    "save",
    "save_pieces",
    "sha256",
    "tensor_file",
    "with_hashes",
]


@dataclass(frozen=True, eq=False)
class Stored:
    """A file in memory: tensors under the file's own keys, and its metadata."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class TensorFile:
    """A weight file whose tensors are read one at a time, each into memory of its own; nothing stays open."""

    path: Path
    header: Header
    _places: Mapping[str, pickle_reader.Place]  # of a pickle's tensors; empty for safetensors

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read one tensor, or its rows from `start` to `stop`. Raises FileProblem."""
        with opened(self.path) as file:
            if not self._places:
                return read_tensor(file, self.header, key, self.path, start, stop)
            try:
                whole = self._places[key].read(file)
            except EOFError:
                raise FileProblem(f"{self.path.name}: became shorter while it was read", file=self.path) from None
        return whole if (start, stop) == (0, None) else whole[start:stop].clone()

    def dtype(self, key: str) -> torch.dtype:
        """Return a tensor's dtype. Raises FileProblem where this torch lacks it."""
        return torch_dtype(self.header, key, self.path)


def tensor_file(path: str | Path) -> TensorFile:
    """Return a file to read tensors from one by one. Raises as `load` does."""
    found = header(path)
    return TensorFile(Path(path), found, {} if found.spans or not found.shapes else pickle_reader.places(Path(path)))


# How files begin that are often taken for weights (lower case), and what to say of them.
_FOREIGN = (
    (b"<!doctype", "is a web page: the download asked for a login or failed; download it again"),
    (b"<html", "is a web page: the download asked for a login or failed; download it again"),
    (b"<?xml", "is an XML answer of a server and holds no weights: download it again"),
    (b'{"', "is a JSON text and holds no weights; if it is a server's answer, download the file again"),
    (b"version https://git-lfs", "is a git-lfs pointer and holds no weights: run 'git lfs pull'"),
    (b"gguf", "is a GGUF model, not a safetensors file"),
)

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def load(path: str | Path, mapped: bool = False) -> Stored:
    """Read a safetensors file, or a `.pt`, `.bin`, `.ckpt` or `.pth` of `torch.save` without running any of its code.

    Of a pickled dict "state_dict" is taken where there is one, further dicts are joined by dots, a bare list gets the
    keys "0", "1", ...; numbers and strings beside the tensors become metadata. Every tensor has memory of its own; with
    `mapped`, for a process that soon ends, those of a safetensors file stay in it until they are used (see
    `header.map_tensors`).
    Raises FileProblem (missing, truncated, something else) and UnsafeFile (a pickle that asks for code).
    """
    path = Path(path)
    with opened(path) as file:
        if _is_safetensors(file.read(512), path):
            found = read_header(file, path)
            read = map_tensors if mapped else read_tensors
            return Stored(read(file, found, path), found.metadata)
        return Stored(*pickle_reader.load(path))


def header(path: str | Path) -> Header:
    """Read shapes, dtypes and metadata alone, whatever the file's size. Raises as `load` does."""
    path = Path(path)
    with opened(path) as file:
        if _is_safetensors(file.read(512), path):
            return read_header(file, path)
        contents = pickle_reader.describe(path)
    return Header(
        shapes={key: record.shape for key, record in contents.records.items()},
        dtypes={key: dtype_name(record.dtype) for key, record in contents.records.items()},
        metadata=contents.texts,
        spans={},
    )


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    late: Callable[[], Mapping[str, str]] | None = None,
) -> Path:
    """Write a safetensors file whole or not at all, and return its path as it was given.

    The bytes go to a temporary file in the same folder (made when missing), are flushed to the disk and then take the
    name in one step; without `overwrite` a file that came to be meanwhile is left alone. Whatever interrupts the
    writing, the temporary file is removed. Tensors may share memory or lie in any order or place. `late` is asked once
    the tensors are written for metadata that was not known before; entries of the same lengths hold their places.
    Raises FileProblem, BadConfig (metadata that is not text) and UnsupportedLayer (a dtype that the format lacks).
    """
    return save_pieces(path, tensors, tensors.__getitem__, metadata, overwrite, late)


def save_pieces(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    piece: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    late: Callable[[], Mapping[str, str]] | None = None,
) -> Path:
    """Write a safetensors file as `save` does, one tensor in memory at a time.

    Args:
        path: the file.
        tensors: shapes and dtypes; tensors of the "meta" device will do.
        piece: returns a tensor by its name, in that shape and dtype. It is asked once for each, in the file's order.
        metadata: of the file.
        overwrite: replace a file that is there.
        late: as in `save`.
    """
    path = usable(path)
    target = Path(os.path.realpath(path))  # a link stays a link
    known = {**(metadata or {}), "format": "pt"}
    plan = layout(tensors, known)
    if not tensors:
        raise FileProblem(f"{target.name}: not written, there is no tensor to put into it", file=target)
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        _refuse(target, overwrite)
        _write(temporary, plan, piece, late and (lambda: layout(tensors, {**known, **late()}).prefix))
        _publish(temporary, target, overwrite)
    except OSError as error:
        raise _unwritten(target, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    _flush_folder(target.parent)
    return path


def refuse_existing(path: str | Path) -> None:
    """Raise FileProblem where something has that name; before long work, for `save` looks again in its last step."""
    if os.path.isdir(path):
        raise FileProblem(f"{path}: already exists and is a folder; name a file inside it, or a new folder", file=path)
    if os.path.exists(path):
        raise _exists(Path(path))


def refuse_inputs(out: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise FileProblem where a result would take the place of one of its own inputs, overwriting allowed or not."""
    for one in inputs:
        if os.path.exists(out) and os.path.exists(one) and os.path.samefile(out, one):
            raise FileProblem(f"{out}: is one of the inputs; give the result another name", file=out)


def _is_safetensors(start: bytes, path: Path) -> bool:
    """Tell safetensors (True) from a `torch.save` file (False) by the first bytes; raises FileProblem for the rest."""
    if not start:
        raise FileProblem(f"{path.name}: is empty: download it again", file=path)
    if len(start) >= 8 and int.from_bytes(start[:8], "little") <= MAX_HEADER and start[8:9] in (b"{", b""):
        return True
    if start.startswith((b"PK\x03\x04", b"\x80")):
        if path.suffix.lower() == ".safetensors":
            what = "is a zip or pickle and no safetensors file; where that is expected, name it .pt"
            raise FileProblem(f"{path.name}: {what}", file=path)
        return False
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, what in _FOREIGN:
        if text.startswith(beginning):
            raise FileProblem(f"{path.name}: {what}", file=path)
    if len(start) < 9:
        raise FileProblem(f"{path.name}: ends after {len(start)} bytes: download it again", file=path)
    raise FileProblem(f"{path.name}: is neither a safetensors file nor one of torch.save", file=path)


def _refuse(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise FileProblem(f"{target}: is a folder; name a file inside it", file=target)
    if not overwrite:
        refuse_existing(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(f"{target.parent}: cannot be made a folder ({error.strerror})", file=target) from None


def _write(temporary: Path, plan: Layout, piece: Callable[[str], Tensor], prefix: Callable[[], bytes] | None) -> None:
    """Write a planned file and flush it to the disk; `prefix` gives its first bytes in the end, in the same length."""
    with temporary.open("xb") as file:
        file.write(plan.prefix)
        for name in plan.names:
            file.write(raw_bytes(piece(name)))
        file.flush()
        os.fsync(file.fileno())
        if prefix is None:
            return
        beginning = prefix()
        if len(beginning) != len(plan.prefix):
            raise ValueError("metadata that come late must have the lengths of those that hold their places")
        file.seek(0)
        file.write(beginning)
        file.flush()
        os.fsync(file.fileno())


def _publish(temporary: Path, target: Path, overwrite: bool) -> None:
    """Give the finished file its name in one step; without `overwrite` raise FileExistsError if it is taken."""
    if overwrite:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: hold the name with an empty file, then replace that
        target.open("xb").close()
        try:
            os.replace(temporary, target)
        except BaseException:
            target.unlink()
            raise


def _flush_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the system lets a folder be flushed (Windows does not)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists(target: Path) -> FileProblem:
    return FileProblem(
        f"{target}: already exists; choose another name or allow overwriting (--force on the command line)", file=target
    )


def _unwritten(target: Path, error: OSError) -> FileProblem:
    """Say in one line why a file could not be written; nothing of it was left behind."""
    if error.errno == errno.EEXIST:
        return _exists(target)
    if error.errno in _FULL:
        return FileProblem(f"{target}: no space left on the disk; nothing was written", file=target)
    if error.errno in _FORBIDDEN:
        why = "the folder is read-only or another program holds the file"
        return FileProblem(f"{target}: cannot be written, {why}; choose another folder", file=target)
    return FileProblem(f"{target}: cannot be written ({error.strerror})", file=target)
