"""An adapter made to fit a file size in the dialect that it will be written in."""

from __future__ import annotations

from pathlib import Path

from ..lora_core.adapter import Adapter
from ..lora_core.errors import BadConfig
from ..lora_core.layers import LoRA
from ..lora_core.ops.ranks import MEGABYTE, SIZE
from ..lora_core.ops.resize import factor_bytes, ranks_of, resize
from .detect import Match
from .files import Loaded, file_bytes, plan
from .formats import WRITABLE

ATTEMPTS = 4  # the first fits nearly always, and leaves little room where the file is large
ROOM = 0.01  # share of the size that may stay unused


def dialect_for(source: Loaded, to: str | None) -> str | Match:
    """Return what to write a resized file as: `to`, else as the source is spelled where that has words for all LoRA."""
    if to is not None:
        return to
    if all(isinstance(layer, LoRA) or len(layer.shape) < 2 for layer in source.adapter.layers.values()):
        return source.match
    return source.match.format if source.match.format in WRITABLE else "kohya"


def resized_to_fit(
    adapter: Adapter,
    megabytes: float,
    path: str | Path,
    format: str | Match,
    conv_rank: int | None = None,
    dtype: str = "keep",
    device: str = "cpu",
) -> Adapter:
    """Return `resize(adapter, "size", megabytes, ...)`, with the bytes set aside that this dialect's file takes.

    A dialect that splits fused weights writes `down` once for each part; one that puts parts together adds up ranks.

    Raises:
        BadConfig: no ranks give a file that small, see `resize`.
    """
    limit, beside = int(megabytes * MEGABYTE), None
    found: Adapter | None = None
    ranks: list[int] = []
    for _ in range(ATTEMPTS):
        try:
            result = resize(adapter, SIZE, megabytes, conv_rank, dtype, device, beside)
        except BadConfig:
            if beside is not None:
                raise
            least = resize(adapter, "rank", 1, conv_rank, dtype, device)  # the estimate was too large, perhaps
            beside = file_bytes(plan(least, path, format, dtype)) - factor_bytes(least, dtype)
            continue
        size = file_bytes(plan(result, path, format, dtype))
        found = result if size <= limit else found
        snug = size <= limit and (size >= (1 - ROOM) * limit or ranks_of(result) == ranks_of(adapter))
        if snug or ranks_of(result) == ranks:
            break
        ranks, beside = ranks_of(result), size - factor_bytes(result, dtype)
    if found is None:
        name = f"size {megabytes:g} MB"
        raise BadConfig(f"{name}: this dialect's file comes out larger; name a smaller size, or another --to")
    return found
