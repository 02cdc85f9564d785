"""Where the cache keeps tensors: in memory, on disk, or for a while."""

from __future__ import annotations

import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import FileProblem

Tensors = Mapping[str, Tensor]
_DIGEST = 16  # bytes of the hash at a file's end
_BLOCK, _ALIGNED = 2**26, 64  # bytes


class Store(Protocol):
    """Tensors by key; what is put in may be gone later, but never another than was put in."""

    def get(self, key: str) -> Tensors | None:
        """Return what was put under a key, or None."""

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep CPU tensors under a key."""


@dataclass
class _Room:
    """Large blocks that tensors are copied into one behind the other.

    Kept apart they would lie between the decoded pictures that come and go, and leave holes that no picture fits in:
    three times as much memory as what is kept.
    """

    block: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    used: int = 0

    def copied(self, tensor: Tensor) -> Tensor:
        """Return a copy of a CPU tensor."""
        if self.used + tensor.nbytes > len(self.block):
            self.block, self.used = torch.empty(max(_BLOCK, tensor.nbytes), dtype=torch.uint8), 0
        place = self.block[self.used : self.used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.used += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        return place.copy_(tensor)


@dataclass(frozen=True)
class Memory:
    """Keeps everything."""

    kept: dict[str, Tensors] = field(default_factory=dict)
    room: _Room = field(default_factory=_Room, repr=False)

    def get(self, key: str) -> Tensors | None:
        """Return what was put under a key, or None."""
        return self.kept.get(key)

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep tensors under a key."""
        with torch.inference_mode(False):
            self.kept[key] = {name: self.room.copied(tensor) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Recent:
    """Keeps what was asked for last, up to a number of bytes."""

    limit: int
    kept: OrderedDict[str, Tensors] = field(default_factory=OrderedDict)

    def get(self, key: str) -> Tensors | None:
        """Return what was put under a key, or None."""
        if key in self.kept:
            self.kept.move_to_end(key)
        return self.kept.get(key)

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep tensors under a key, and drop those that were asked for longest ago."""
        self.kept[key] = tensors
        self.kept.move_to_end(key)
        total = sum(map(_bytes, self.kept.values()))
        while self.kept and total > self.limit:
            total -= _bytes(self.kept.popitem(last=False)[1])


@dataclass(frozen=True)
class Disk:
    """Keeps one safetensors file per key, with a hash behind it; a file that is not whole counts as not there."""

    folder: Path

    def get(self, key: str) -> Tensors | None:
        """Return what was put under a key, or None."""
        try:
            content = self._file(key).read_bytes()
        except OSError:
            return None
        body, digest = content[:-_DIGEST], content[-_DIGEST:]
        if digest != _digest(key, body):
            return None
        try:
            found: Tensors = safetensors.torch.load(body)
        except SafetensorError:
            return None
        return found

    def put(self, key: str, tensors: Tensors) -> None:
        """Keep tensors under a key, all or nothing; raises FileProblem where the disk refuses."""
        file = self._file(key)
        draft = file.with_name(f".{secrets.token_hex(8)}.part")
        body = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(body + _digest(key, body))
            os.replace(draft, file)
        except OSError as error:
            line = f"{file}: cannot be written ({error.strerror}); free some space, or set 'cache' to 'memory'"
            raise FileProblem(line, file=file) from error
        finally:
            with suppress(OSError):
                draft.unlink()

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def key_of(*parts: object) -> str:
    """Return a key for what something is made of: texts, numbers and lists of them."""
    return blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()


def _digest(key: str, body: bytes) -> bytes:
    return blake2b(body, digest_size=_DIGEST, key=key.encode()).digest()


def _bytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
