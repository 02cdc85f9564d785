"""The safetensors container: its header, read and checked, and the order in which a file's bytes are laid out.

Read and written here and not through the safetensors package: nothing stays memory-mapped unless that is asked for
(under Windows, where a mapped file cannot be replaced, not even then), a damaged file is described by its byte counts,
and saving and hashing share one layout.
Source: the format's description in the safetensors repository (8 bytes of header length, little endian; a JSON header
padded with spaces; the tensors' bytes without holes), and its writer's order: wide dtypes first, then by name.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import BadConfig, FileProblem, UnsupportedLayer

MAX_HEADER = 100_000_000  # bytes; the safetensors package refuses longer headers
MAX_DIMENSIONS = 64  # torch computes with no more
MAX_VALUES = 1 << 48  # of one tensor, its sizes of 0 aside; far beyond any file, and far inside torch's own numbers


@dataclass(frozen=True)
class DType:
    """One row of the dtype table."""

    name: str  # what the header says
    bits: int
    torch_name: str  # attribute of torch; an old torch may lack it


# In the writer's order, narrow first: files list the last ones first.
DTYPES = (
    DType("BOOL", 8, "bool"),
    DType("U8", 8, "uint8"),
    DType("I8", 8, "int8"),
    DType("F8_E5M2", 8, "float8_e5m2"),
    DType("F8_E4M3", 8, "float8_e4m3fn"),
    DType("F8_E8M0", 8, "float8_e8m0fnu"),
    DType("I16", 16, "int16"),
    DType("U16", 16, "uint16"),
    DType("F16", 16, "float16"),
    DType("BF16", 16, "bfloat16"),
    DType("I32", 32, "int32"),
    DType("U32", 32, "uint32"),
    DType("F32", 32, "float32"),
    DType("F64", 64, "float64"),
    DType("I64", 64, "int64"),
    DType("U64", 64, "uint64"),
)
_BY_NAME = {row.name: row for row in DTYPES}
TORCH_DTYPES: Mapping[str, torch.dtype] = {  # by torch's own name, as far as this torch has them
    row.torch_name: getattr(torch, row.torch_name) for row in DTYPES if hasattr(torch, row.torch_name)
}
_BY_TORCH = {TORCH_DTYPES[row.torch_name]: row for row in DTYPES if row.torch_name in TORCH_DTYPES}


def dtype_name(dtype: torch.dtype) -> str:
    """Return the header's word for a torch dtype, or torch's own where the format has none.

    >>> dtype_name(torch.float16)
    'F16'
    """
    return _BY_TORCH[dtype].name if dtype in _BY_TORCH else str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Header:
    """What a file says of itself before any weight is read."""

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # safetensors words: "F16", "BF16", ...
    metadata: Mapping[str, str]
    spans: Mapping[str, tuple[int, int]]  # where each tensor lies, in bytes from the file's start; empty for a pickle

    @property
    def parameters(self) -> int:
        """Number of values in all tensors together."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def usable(path: str | Path) -> Path:
    """Return the path; raises FileProblem for a text that no system takes for one."""
    try:
        if b"\0" not in os.fsencode(path):
            return Path(path)
    except UnicodeEncodeError:  # half a character
        pass
    raise FileProblem(f"{str(path)!r}: no file can have such a name; choose another one", file=path)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading; what the system refuses, now or while it is read, is raised as FileProblem."""
    usable(path)
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise FileProblem(f"{path}: no such file", file=path) from None
    except OSError as error:
        why = "is a folder; name the file inside it" if path.is_dir() else f"cannot be read ({error.strerror})"
        raise FileProblem(f"{path}: {why}", file=path) from None


def read_header(file: BinaryIO, path: Path) -> Header:
    """Read and check the header of an open safetensors file.

    Raises FileProblem when the file ends early, has bytes too many, or its header contradicts itself.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 + length:
        raise _truncated(path, size, f"more than {8 + length}")
    table, metadata = _parse(file.read(length), path)
    header = _entries(table, metadata, 8 + length, path)
    end = _tiled(header.spans, 8 + length, path)
    if size < end:
        raise _truncated(path, size, str(end))
    if size > end:
        raise _damaged(path, f"has {size - end} bytes more than its header describes")
    return header


def read_tensors(file: BinaryIO, header: Header, path: Path) -> dict[str, Tensor]:
    """Read every tensor that the header lists, each into memory of its own, in the order of its bytes."""
    order = sorted(header.spans, key=lambda key: header.spans[key])
    return {key: read_tensor(file, header, key, path) for key in order}


def map_tensors(file: BinaryIO, header: Header, path: Path) -> dict[str, Tensor]:
    """Return every tensor that the header lists where it lies in the file: nothing is read before it is used.

    What is changed in place stays this process's own, and a file that gets another one's name does no harm; one that is
    cut short meanwhile ends the process. Read as by `read_tensors` is what lies askew, and all where files cannot be
    mapped, or not without keeping others from replacing them (Windows).
    """
    try:
        memory = None if os.name == "nt" else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        memory = None
    if memory is None:
        return read_tensors(file, header, path)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    tensors = {}
    for key in sorted(header.spans, key=lambda key: header.spans[key]):
        (begin, end), dtype = header.spans[key], torch_dtype(header, key, path)
        fits = end > begin and begin % dtype.itemsize == 0
        tensors[key] = (
            whole[begin:end].view(dtype).view(header.shapes[key]) if fits else read_tensor(file, header, key, path)
        )
    return tensors


def read_tensor(
    file: BinaryIO, header: Header, key: str, path: Path, start: int = 0, stop: int | None = None
) -> Tensor:
    """Read one tensor, or its rows from `start` to `stop` alone: no byte beside them."""
    shape, (begin, end) = header.shapes[key], header.spans[key]
    if shape and (start, stop) != (0, None):
        row, stop = (end - begin) // max(shape[0], 1), shape[0] if stop is None else stop
        shape, begin, end = (stop - start, *shape[1:]), begin + start * row, begin + stop * row
    tensor = torch.empty(shape, dtype=torch_dtype(header, key, path))
    file.seek(begin)
    if end > begin and file.readinto(raw_bytes(tensor)) != end - begin:  # type: ignore[attr-defined]
        raise FileProblem(f"{path.name}: became shorter while it was read; try again", file=path)
    return tensor


def torch_dtype(header: Header, key: str, path: Path) -> torch.dtype:
    """Return a tensor's dtype; raises FileProblem where this torch lacks it."""
    dtype = TORCH_DTYPES.get(_BY_NAME[header.dtypes[key]].torch_name)
    if dtype is None:
        raise FileProblem(f"{path.name}: {key!r} is {header.dtypes[key]}, which needs a newer torch", file=path)
    return dtype


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes in row-major order; of a contiguous CPU tensor the memory itself, else a copy."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Layout:
    """How a file will look: its first bytes and the order of its tensors."""

    prefix: bytes  # length word and header
    names: tuple[str, ...]


def layout(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Layout:
    """Plan a file: the same header length and the same order as the safetensors package writes.

    Raises BadConfig for metadata that is not text, UnsupportedLayer for a dtype that the format lacks.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise BadConfig(f"metadata {key!r} is {type(value).__name__}: a safetensors file holds only text there")
    unfit = [key for key, tensor in tensors.items() if tensor.dtype not in _BY_TORCH]
    if unfit:
        raise UnsupportedLayer(f"{unfit[0]!r} is {tensors[unfit[0]].dtype}, which a safetensors file cannot hold")
    names = sorted(tensors, key=lambda key: (-DTYPES.index(_BY_TORCH[tensors[key].dtype]), key))
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        dtype = dtype_name(tensors[name].dtype)
        table[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return Layout(len(text).to_bytes(8, "little") + text, tuple(names))


def tensor_bytes(tensors: Mapping[str, Tensor], plan: Layout) -> Iterator[memoryview]:
    """Yield what follows the header, one tensor at a time."""
    return (raw_bytes(tensors[name]) for name in plan.names)


def _parse(text: bytes, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(path, "has a header that is not JSON") from None
    if not isinstance(table, dict):
        raise _damaged(path, "has a header that is not a table")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _damaged(path, "has metadata that is not a table")
    return table, {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _entries(table: Mapping[str, Any], metadata: Mapping[str, str], start: int, path: Path) -> Header:
    """Return the table with every entry checked; `start` is where the first tensor lies. Files repeat few kinds."""
    kinds: dict[tuple[str, tuple[Any, ...]], tuple[tuple[int, ...], int]] = {}  # dtype, shape -> shape, bytes
    shapes, dtypes, spans = {}, {}, {}
    for key, row in table.items():
        try:
            dtype, listed, (begin, end) = row["dtype"], tuple(row["shape"]), row["data_offsets"]
            kind = kinds.get((dtype, listed))
        except (TypeError, KeyError, ValueError):
            raise _undescribed(key, path) from None
        if kind is None:
            kind = kinds[dtype, listed] = _kind(key, dtype, row["shape"], path)
        if type(begin) is not int or type(end) is not int or begin < 0:
            raise _undescribed(key, path)
        if end - begin != kind[1]:
            raise _damaged(path, f"gives {key!r} a place that does not fit its shape")
        shapes[key], dtypes[key], spans[key] = kind[0], dtype, (start + begin, start + end)
    return Header(shapes, dtypes, metadata, spans)


def _kind(key: str, dtype: Any, listed: Any, path: Path) -> tuple[tuple[int, ...], int]:
    """Return the shape and the number of bytes of the tensors of one dtype and shape."""
    shape = _sizes(listed)
    if shape is None or not fits_torch(shape):
        raise _undescribed(key, path)
    if not isinstance(dtype, str) or dtype not in _BY_NAME:
        raise FileProblem(f"{path.name}: {key!r} has the unknown dtype {dtype!r}", file=path)
    return shape, math.prod(shape) * _BY_NAME[dtype].bits // 8


def _sizes(value: Any) -> tuple[int, ...] | None:
    fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return tuple(value) if fits else None


def fits_torch(shape: Sequence[int]) -> bool:
    """Tell whether torch can hold a shape of whole numbers from 0; it multiplies the sizes even where one is 0.

    >>> fits_torch((2**40, 2**40, 0))
    False
    """
    small = len(shape) <= MAX_DIMENSIONS and max(shape, default=0) <= MAX_VALUES
    return small and math.prod(size or 1 for size in shape) <= MAX_VALUES


def _tiled(spans: Mapping[str, tuple[int, int]], start: int, path: Path) -> int:
    """Check that the places follow one another without hole or overlap; return where the last one ends."""
    for key, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != start:
            raise _damaged(path, f"has a hole or an overlap before {key!r}")
        start = end
    return start


def _truncated(path: Path, size: int, whole: str) -> FileProblem:
    return FileProblem(f"{path.name}: ends after {size} of {whole} bytes: download it again", file=path)


def _undescribed(key: str, path: Path) -> FileProblem:
    return _damaged(path, f"describes {key!r} without a shape and a place")


def _damaged(path: Path, what: str) -> FileProblem:
    return FileProblem(f"{path.name}: {what}: it is damaged, get it again", file=path)
