"""The hashes by which the field knows a LoRA file.

Sources: sha256 and AutoV2 are CivitAI's and A1111's (`modules/hashes.py`). AutoV3 is the first 12 digits of the hash
that sd-scripts stores as `sshs_model_hash` (`precalculate_safetensors_hashes`, `addnet_hash_safetensors` and
`addnet_hash_legacy` in `library/train_util.py`): the bytes after the header. A1111 takes the plain sha256 of a pickle
instead (`extensions-builtin/Lora/network.py`), and so does `autov3`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .header import MAX_HEADER, layout, opened, tensor_bytes

_CHUNK = 1 << 23  # bytes hashed at once, while other threads run
_LEGACY_BEGIN, _LEGACY_END = 0x100000, 0x110000  # the bytes of a file that the legacy hash looks at


def sha256(path: str | Path, skip: int = 0) -> str:
    """Return the SHA-256 of a file's bytes from position `skip` on, in hexadecimal."""
    digest = hashlib.sha256()
    with opened(Path(path)) as file:
        file.seek(skip)
        size = os.fstat(file.fileno()).st_size
        buffer = memoryview(bytearray(min(_CHUNK, max(1, size - skip))))
        while length := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:length])
    return digest.hexdigest()


def autov2(path: str | Path) -> str:
    """Return the first 10 digits of the file's SHA-256."""
    return sha256(path)[:10]


def autov3(path: str | Path) -> str:
    """Return the first 12 digits of the SHA-256 of what follows the safetensors header; of a pickle, of all."""
    with opened(Path(path)) as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    is_safetensors = start[8:] == b"{" and length <= MAX_HEADER
    return sha256(path, skip=8 + length if is_safetensors else 0)[:12]


def model_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return `sshs_model_hash`: the SHA-256 of the tensors' bytes in a file's order, whatever the metadata."""
    digest = hashlib.sha256()
    for piece in tensor_bytes(tensors, layout(tensors, {})):
        digest.update(piece)
    return digest.hexdigest()


def legacy_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Return `sshs_legacy_hash`: 8 digits over 64 KiB at 1 MiB of a file that has the `ss_` metadata alone.

    A file shorter than 1 MiB gives the hash of nothing, as sd-scripts does.
    """
    kept = {key: value for key, value in (metadata or {}).items() if key.startswith("ss_")}
    plan = layout(tensors, kept)
    digest = hashlib.sha256(plan.prefix[_LEGACY_BEGIN:_LEGACY_END])
    position = len(plan.prefix)
    for piece in tensor_bytes(tensors, plan):
        if position >= _LEGACY_END:
            break
        digest.update(piece[max(_LEGACY_BEGIN - position, 0) : max(_LEGACY_END - position, 0)])
        position += len(piece)
    return digest.hexdigest()[:8]


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata with both `sshs_` hashes brought up to date for these tensors; call it last before saving."""
    return {
        **metadata,
        "sshs_model_hash": model_hash(tensors, metadata),
        "sshs_legacy_hash": legacy_hash(tensors, metadata),
    }
