"""A baked checkpoint on disk: a single file, or a Diffusers folder with everything that was beside the weights."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lora_core import store
from ..lora_core.errors import FileProblem, UnsupportedLayer
from ..lora_core.ops.merge import Weighted
from ..lora_core.ops.provenance import STALE, file_origin, operated
from ..lora_core.ops.recipe import RECIPE
from ..lora_core.ops.report import Report
from .baking import Edits, Oven, Seen, edits_of
from .checkpoint import Checkpoint
from .parameters import SHARD
from .recording import Recording

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5", ".gguf")
PLAIN = {"pytorch_model": "model"}  # what safetensors files are called where pickles have another name


@dataclass(frozen=True, eq=False)
class Baked:
    """What was written."""

    path: Path
    report: Report  # the stored change against the wanted one
    edits: Edits


def bake(
    checkpoint: Checkpoint,
    parts: Sequence[Weighted],
    out: str | Path,
    *,
    files: Sequence[str | Path] = (),
    dtype: str = "keep",
    unbake: bool = False,
    allow_partial: bool = False,
    overwrite: bool = False,
    seen: Seen | None = None,
) -> Baked:
    """Write a checkpoint with adapters in it, or, with `unbake`, without them; whole or not at all.

    Args:
        checkpoint: a single file (the result is a safetensors file) or a Diffusers folder (the result is a new one).
        parts: adapters with their strengths.
        out: the result.
        files: the adapters' files, which the result must not replace.
        dtype: "keep", or what all floating-point tensors are stored as.
        unbake: subtract what was baked.
        allow_partial: leave out layers that find no weight.
        overwrite: replace a file that is there.
        seen: told the progress.

    Raises:
        FileProblem: the result would replace an input, is there already, or cannot be written.
        LorasmithError: as `edits_of`.
    """
    out = Path(out)
    _refuse_output(out, [checkpoint.path, *files], checkpoint.path.is_dir(), overwrite)
    oven = Oven(checkpoint, edits_of(checkpoint, parts, unbake, allow_partial), dtype)
    operation = _operation(parts, dtype, unbake, allow_partial)
    tree = operated([file_origin(checkpoint.path), *(part.adapter.origin for part in parts)], operation)
    metadata = {RECIPE: Recording(tree, None, None, dtype).recipe().json()}
    counted = _counter(len(checkpoint.entries), seen)
    if checkpoint.path.is_dir():
        _write_folder(oven, out, metadata, counted)
    else:
        _write_file(oven, checkpoint.path, out, metadata, counted, overwrite)
    return Baked(out, oven.report, oven.edits)


def _refuse_output(out: Path, inputs: Sequence[str | Path], folder: bool, overwrite: bool) -> None:
    store.refuse_inputs(out, inputs)
    if folder and out.exists():
        raise FileProblem(f"{out}: already exists; name a new folder for the model", file=out)
    if not overwrite:
        store.refuse_existing(out)


def _operation(parts: Sequence[Weighted], dtype: str, unbake: bool, allow_partial: bool) -> dict[str, Any]:
    """Return what was done, for the recipe."""
    return {
        "method": "unbake" if unbake else "bake",
        "dtype": dtype,
        "allow_partial": allow_partial,
        "parts": [
            {"source": part.name, "strength": part.strength, "text_encoder": part.text_encoder} for part in parts
        ],
    }


def _counter(total: int, seen: Seen | None) -> Callable[[], None]:
    steps = iter(range(1, total + 1))

    def count() -> None:
        done = next(steps, total)
        if seen:
            seen(done, total)

    return count


def _write_file(
    oven: Oven, file: Path, out: Path, metadata: Mapping[str, str], counted: Callable[[], None], overwrite: bool = False
) -> None:
    """Write one of the checkpoint's files with what is baked into it."""
    before = oven.checkpoint.files[file]
    entries = oven.checkpoint.entries
    keys = {entry.key: key for key, entry in entries.items() if entry.file.path == file and key.startswith(before)}
    kept = store.header(file).metadata

    def piece(name: str) -> Any:
        counted()
        return oven.baked(keys[name])

    outlines = {name: oven.outline(key) for name, key in keys.items()}
    texts = {key: text for key, text in kept.items() if key not in STALE}
    store.save_pieces(out, outlines, piece, {**texts, **metadata}, overwrite)


def _write_folder(oven: Oven, out: Path, metadata: Mapping[str, str], counted: Callable[[], None]) -> None:
    """Write a Diffusers folder beside its name, and give it the name when it is whole."""
    source = oven.checkpoint.path
    changed = {file for file in oven.checkpoint.files if oven.touches(_keys(oven.checkpoint, file))}
    _refuse_pickled_shards(changed)
    temporary = out.absolute().with_name(f".{secrets.token_hex(8)}.part")
    try:
        for file in _beside(source, changed):
            (temporary / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, temporary / file.relative_to(source))
        for file in changed:
            _write_file(oven, file, temporary / _safe_name(file).relative_to(source), metadata, counted)
        os.rename(temporary, out)
    except OSError as error:
        raise FileProblem(f"{out}: cannot be written ({error.strerror}); choose another place", file=out) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keys(checkpoint: Checkpoint, file: Path) -> list[str]:
    return [key for key, entry in checkpoint.entries.items() if entry.file.path == file]


def _beside(source: Path, changed: set[Path]) -> Iterator[Path]:
    """Yield the files to copy: all but other variants of the weights that change, which would hold the old ones."""
    folders = {file.parent for file in changed}
    for file in sorted(source.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
        stale = file.parent in folders and file.suffix in WEIGHTS and not _sibling(file, changed)
        if file.is_file() and not hidden and not stale and file not in changed:
            yield file


def _sibling(file: Path, changed: set[Path]) -> bool:
    """Tell whether a file is a shard of a model of which another shard changes."""
    plain = SHARD.sub("", file.name)
    return any(one.parent == file.parent and SHARD.sub("", one.name) == plain for one in changed)


def _refuse_pickled_shards(changed: set[Path]) -> None:
    for file in changed:
        if file.suffix != ".safetensors" and SHARD.search(file.name):
            raise UnsupportedLayer(
                f"{file.name}: is a part of a pickled model, which cannot be written; convert it to safetensors first",
                file=file,
            )


def _safe_name(file: Path) -> Path:
    """Return what a weight file is called when it is a safetensors file."""
    if file.suffix == ".safetensors":
        return file
    return file.with_name(f"{PLAIN.get(file.stem, file.stem)}.safetensors")
