"""CLIP's vocabulary, which no checkpoint file carries: where it is looked for, without a network."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import FileProblem

_HUB = "openai/clip-vit-large-patch14"
_WHOLE = "</w>"


def tokenizer_for(named: str | None, subfolder: str, beside: Path | None = None) -> Any:
    """Return a CLIPTokenizer from `named` (a folder, or a pipeline that has `subfolder`), else from this machine.

    Without `named` these are tried: a folder beside the checkpoint, a ComfyUI that this project or the checkpoint lies
    in, the hub's local cache, the vocabulary inside an installed open_clip or clip package. Raises FileProblem.
    """
    if named is not None and _has_vocabulary(Path(named)):
        return _from_folder(Path(named))
    if named is not None:
        return _clip_tokenizer().from_pretrained(named, subfolder=subfolder)
    for folder in _folders(beside):
        if _has_vocabulary(folder):
            return _from_folder(folder)
    return _cached() or _packaged() or _refuse(beside)


def _clip_tokenizer() -> Any:
    return importlib.import_module("transformers").CLIPTokenizer


def _from_folder(folder: Path) -> Any:
    return _clip_tokenizer().from_pretrained(str(folder), local_files_only=True)


def _has_vocabulary(folder: Path) -> bool:
    return (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()


def _folders(beside: Path | None) -> Iterator[Path]:
    """Yield the places near the checkpoint and near this project."""
    starts = [Path(__file__).resolve(), *([beside.resolve()] if beside else [])]
    if beside:
        yield beside.parent / "tokenizer"
    for start in starts:
        for parent in start.parents:
            yield parent / "comfy" / "sd1_tokenizer"


def _cached() -> Any:
    try:
        return _clip_tokenizer().from_pretrained(_HUB, local_files_only=True)
    except (OSError, ValueError):  # not in the cache
        return None


def _packaged() -> Any:
    """Return the tokenizer built from the vocabulary file of an installed CLIP package; None without one."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            file = Path(place) / "bpe_simple_vocab_16e6.txt.gz"
            if file.is_file():
                return from_merges(file)
    return None


def from_merges(file: Path) -> Any:
    """Build CLIP's tokenizer from OpenAI's merges file.

    The vocabulary is 256 byte letters, the same at a word's end, the 48,894 merges that CLIP uses, and two marks.
    """
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        merges = [line.strip() for line in stream.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder), merges)
        return _from_folder(Path(folder))


def write_vocabulary(folder: Path, merges: Sequence[str]) -> None:
    """Write vocab.json and merges.txt for byte-level merges such as "t h"."""
    letters = byte_letters()
    words = [*letters, *(letter + _WHOLE for letter in letters), *("".join(pair.split()) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def byte_letters() -> list[str]:
    """Return byte-level BPE's letters: printable bytes stand for themselves, the others for letters above 255."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + place) for place in range(len(hidden))]


def _refuse(beside: Path | None) -> Any:
    what = f"{beside}: a checkpoint file holds no tokenizer, and this machine has none"
    way = "set 'tokenizer' to a folder with CLIP's vocab.json and merges.txt (ComfyUI has one: comfy/sd1_tokenizer)"
    raise FileProblem(f"{what}; {way}", file=beside)
