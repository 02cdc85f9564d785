"""The recipe of a written file: what it was made of and how, as JSON in its metadata.

No full path is in it: an input is known by its name, its size and its SHA-256. What is hashed must be what was read,
so a file that has changed in between gets no hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import BadConfig, FileProblem
from ..hashes import sha256

VERSION = "0.1.0"  # of Lorasmith
RECIPE = "lorasmith.recipe"
LAYOUT = 1  # of the JSON; a reader refuses a higher one
DEEPEST = 64  # operations above one another that a recipe may hold
SHOWN = 6  # of a list, in words
WEIGHED = (".safetensors", ".bin", ".json", ".ckpt", ".pt", ".pth")  # files of a folder that make its hash
CONFIG = "adapter_config.json"  # PEFT's, which belongs to the weights beside it

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A file or folder as it was when it was read."""

    path: Path
    stamps: tuple[tuple[str, int, int], ...]  # of each file: name below the folder, bytes, time of change in ns

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """Return what lies at a path now; nothing, where nothing can be read."""
        path = Path(path)
        try:
            return cls(path, tuple(_stamp(path, file) for file in _files(path)))
        except OSError:
            return cls(path, ())

    @property
    def name(self) -> str:
        """Name of the file or folder, without its place."""
        return Path(os.path.abspath(self.path)).name

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for _, size, _ in self.stamps)

    def digest(self) -> str | None:
        """Return the SHA-256 of the file; of several files that of their listing; None when they are not as read."""
        try:
            hashes = [sha256(file) for file in _files(self.path)]
        except (OSError, FileProblem):
            return None
        if not hashes or Source.of(self.path).stamps != self.stamps:
            return None
        if len(hashes) == 1:
            return hashes[0]
        lines = [f"{found}  {name}\n" for found, (name, _, _) in zip(hashes, self.stamps, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """How a file came to be; `json` is what its metadata hold."""

    tree: Tree  # operations above files, see `provenance`
    format: str | None = None  # the dialect that it was written in; None: as the input of number `like` is spelled
    like: int | None = None
    dtype: str = "keep"
    tensors: str | None = None  # SHA-256 of the tensors' bytes, `sshs_model_hash`
    lorasmith: str = VERSION
    torch: str = str(torch.__version__)  # another version may round in another way

    def data(self) -> dict[str, Any]:
        """Return the recipe as JSON-ready data."""
        return {"recipe": LAYOUT, **{item.name: getattr(self, item.name) for item in fields(self)}}

    def json(self) -> str:
        """Return the recipe as one line of JSON."""
        return json.dumps(self.data())

    @classmethod
    def of(cls, text: str, file: str | Path) -> Recipe:
        """Read a recipe; raises BadConfig, which names `file`, for anything that is none."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
        layout = data.get("recipe") if isinstance(data, dict) else None
        if not isinstance(layout, int) or layout < 1:
            raise _refusal(file, "is no recipe; 'info --recipe FILE' prints that of a result")
        if layout > LAYOUT:
            raise _refusal(file, "its recipe is of a later Lorasmith; update and run it again")
        known = {item.name: data[item.name] for item in fields(cls) if item.name in data}
        recipe = cls(**{"tree": None, **known})
        if not recipe._sound():
            raise _refusal(file, "its recipe is damaged; get another copy of it")
        return recipe

    def _sound(self) -> bool:
        texts = (self.dtype, self.lorasmith, self.torch, self.format or "", self.tensors or "")
        if not all(isinstance(one, str) for one in texts) or not _is_tree(self.tree, DEEPEST):
            return False
        return self.like is None or (isinstance(self.like, int) and 0 <= self.like < len(list(leaves(self.tree))))


def recorded(origin: Tree, digests: Mapping[Source, str | None]) -> dict[str, Any]:
    """Return a tree as a file may hold it: a leaf's place and what else stays in memory is left out."""
    if "inputs" in origin:
        return {**origin, "inputs": [recorded(one, digests) for one in origin["inputs"]]}
    if "source" not in origin:
        return dict(origin)
    source = origin["source"]
    return {"file": origin["file"], "bytes": source.size, "sha256": digests[source]}


def leaves(tree: Tree) -> Iterator[Tree]:
    """Yield what a tree begins with, from left to right."""
    if "inputs" not in tree:
        yield tree
    for one in tree.get("inputs", ()):
        yield from leaves(one)


def told(text: str) -> str:
    """Return a recipe's JSON in words, for a person; never raises."""
    try:
        recipe = Recipe.of(text, "recipe")
    except BadConfig as error:
        return error.message
    if "inputs" in recipe.tree:
        return words(recipe.tree)
    return f"{words(recipe.tree)}, written anew{'' if recipe.dtype == 'keep' else ' as ' + recipe.dtype}"


def words(tree: Tree) -> str:
    """Return a tree as people say it.

    >>> parts = [{"source": "a", "strength": 0.8}, {"source": "b", "strength": 1}]
    >>> words({"operation": {"method": "ties", "parts": parts}, "inputs": [{"file": "A"}, {"file": "B"}]})
    'ties of A@0.8 and B@1'
    """
    if "inputs" not in tree:
        return str(tree.get("file") or f"an adapter {tree['made']}")
    operation = dict(tree["operation"])
    method, parts = operation.pop("method"), operation.pop("parts", None)
    names = [f"({words(one)})" if "inputs" in one else words(one) for one in tree["inputs"]]
    if isinstance(parts, list):
        ahead = 0 if operation.pop("base", None) is not None else len(names) - len(parts)  # the model of a bake
        names = [*names[:ahead], *map(str.__add__, names[ahead:], [*map(_strengths, parts), *[""] * len(names)])]
    said = [_setting(name.replace("_", " "), value) for name, value in operation.items() if not _unset(value)]
    return f"{method}{' (' + ', '.join(said) + ')' if said else ''} of {_together(names)}"


def _strengths(part: Any) -> str:
    if not isinstance(part, Mapping):
        return ""
    found = (part.get("strength", 1), part.get("text_encoder"))
    return "".join(f"@{_value(one)}" for one in found if one is not None)


def _unset(value: Any) -> bool:
    return value is None or value is False or value == []


def _setting(name: str, value: Any) -> str:
    return name if value is True else f"{name} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{key}={_value(one)}" for key, one in value.items()]
    if isinstance(value, list):
        return " ".join(map(_value, value[:SHOWN])) + (" ..." if len(value) > SHOWN else "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _together(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _is_tree(tree: Any, deepest: int) -> bool:
    """Tell whether a value has a tree's form, and no more levels than that."""
    if not isinstance(tree, dict) or not deepest:
        return False
    if "inputs" not in tree:
        known = isinstance(tree.get("made"), str) or (isinstance(tree.get("file"), str) and bool(_plain(tree["file"])))
        return known and isinstance(tree.get("sha256"), (str, type(None)))
    operation, inputs = tree.get("operation"), tree["inputs"]
    if not isinstance(operation, dict) or not isinstance(operation.get("method"), str) or not isinstance(inputs, list):
        return False
    return bool(inputs) and all(_is_tree(one, deepest - 1) for one in inputs)


def _plain(name: str) -> bool:
    """Tell whether a name is that of a file and leads nowhere else."""
    return name not in ("", ".", "..") and not any(letter in "/\\\0" or ord(letter) < 32 for letter in name)


def _files(path: Path) -> list[Path]:
    """Return what is read for a path: the file and PEFT's configuration beside it, or a folder's weights and JSON."""
    if not path.is_dir():
        config = path.with_name(CONFIG)
        return [path, config] if path.name.startswith("adapter_model.") and config.is_file() else [path]
    inside = (*path.glob("*"), *path.glob("*/*"))
    return sorted(file for file in inside if file.suffix in WEIGHED and file.is_file())


def _stamp(path: Path, file: Path) -> tuple[str, int, int]:
    status = file.stat()
    name = file.relative_to(path).as_posix() if path.is_dir() else file.name
    return name, status.st_size, status.st_mtime_ns


def _refusal(file: str | Path, what: str) -> BadConfig:
    return BadConfig(f"{file}: {what}", file=file)
