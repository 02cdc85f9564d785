"""A pickle taken apart as data: it may describe tensors, and none of its code runs.

Python's unpickler builds the structure, with every global that a pickle can name replaced by an inert stand-in of ours;
a global outside the tables is refused by name. `torch.load` takes no part, so a host that patched it changes nothing.
Source: `torch/_utils.py` and `torch/serialization.py`.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UnsafeFile
from .header import MAX_VALUES, TORCH_DTYPES, fits_torch


class _Inert:
    """What a pickle may hold a reference to: nothing in it can be set or run from there."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("takes no state")


@dataclass(frozen=True)
class Storage(_Inert):
    """A flat array that tensors are views of, named but not read."""

    key: str
    dtype: torch.dtype | None  # None: bytes whose dtype the tensor knows
    count: int

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return self.count * (self.dtype or torch.uint8).itemsize


@dataclass(frozen=True)
class Record(_Inert):
    """A tensor as the pickle describes it; it lies inside its storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def view(self, data: Tensor) -> Tensor:
        """Return the tensor, given its storage's values `(count,)`; contiguous, with no more memory than it needs."""
        values = torch.as_strided(data.view(self.dtype), self.shape, self.stride, self.offset)
        return values if values.is_contiguous() and values.nbytes == data.nbytes else values.clone().contiguous()


class _Call(_Inert):
    """A function of ours that a pickle may call; it has no attribute that the pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


@dataclass(frozen=True)
class _StorageType(_Inert):
    dtype: torch.dtype | None


class Unpickler(pickle.Unpickler):
    """Python's unpickler with nothing to call but stand-ins."""

    def __init__(self, file: Any, path: Path):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return the inert stand-in for a global, or refuse by name."""
        if (module, name) in _CALLS:
            return _Call(_CALLS[module, name])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise UnsafeFile(
            f"{self._path.name}: asks for '{module}.{name}', which is code and not weights; none of it was run. "
            "Get the file as .safetensors",
            file=self._path,
            asks_for=f"{module}.{name}",
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Turn `("storage", type, key, device, count[, view])` into a description."""
        kind, storage, key, _device, count, *view = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or any(view) or not _natural(count):
            raise pickle.UnpicklingError("not a storage")
        return self.storages.setdefault(str(key), Storage(str(key), storage.dtype, count))


def _natural(*values: Any) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _tensor_v2(storage: Any, offset: Any, shape: Any, stride: Any, *_flags: Any) -> Record:
    return _record(storage, getattr(storage, "dtype", None), offset, shape, stride)


def _tensor_v3(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Record:
    _grad, _hooks, dtype, *_metadata = rest
    return _record(storage, dtype, offset, shape, stride)


def _record(storage: Any, dtype: Any, offset: Any, shape: Any, stride: Any) -> Record:
    """Describe a view, after checking that it stays inside its storage and is no larger."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype) or storage.dtype not in (None, dtype):
        raise pickle.UnpicklingError("a tensor without storage or dtype")
    if not _natural(offset, *shape, *stride) or len(shape) != len(stride) or storage.nbytes % dtype.itemsize:
        raise pickle.UnpicklingError("a tensor without shape")
    if not fits_torch(shape) or max(offset, *stride, 0) > MAX_VALUES:
        raise pickle.UnpicklingError("a tensor of a shape that torch cannot hold")
    count, size = storage.nbytes // dtype.itemsize, math.prod(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if size and (last >= count or size > count):
        raise pickle.UnpicklingError("a tensor that reaches outside its storage")
    return Record(storage, dtype, offset, tuple(shape), tuple(stride))


def _parameter(data: Any, *_flags: Any) -> Any:
    return data


_CALLS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}

_STORAGES: Mapping[str, torch.dtype | None] = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "UntypedStorage": None,
}
