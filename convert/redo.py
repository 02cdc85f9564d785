"""A result rebuilt from its recipe: inputs found by name and hash, operations done again in the same order."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from ..lora_core import store
from ..lora_core.adapter import Adapter
from ..lora_core.errors import BadConfig, FileProblem
from ..lora_core.ops.recipe import RECIPE, WEIGHED, Recipe, Source, Tree, leaves
from .detect import Match
from .files import Loaded, load
from .operations import OPERATIONS, Operation, Unwritten

LARGEST = 16 << 20  # bytes of a recipe's file


@dataclass(frozen=True)
class Redone:
    """A rebuilt adapter, or a model that is written on the way, and how the first result was written."""

    adapter: Adapter | Unwritten
    format: str | Match
    dtype: str
    inputs: tuple[Path, ...]  # where they were found


def read_recipe(path: str | Path) -> Recipe:
    """Return the recipe of a result file, or of a JSON file as `info --recipe` prints it.

    Raises:
        FileProblem: the file cannot be read.
        BadConfig: there is no recipe in it, or a damaged one.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        text = store.header(path).metadata.get(RECIPE)
        if text is None:
            raise BadConfig(f"{path}: has no recipe; it was not made by Lorasmith from other files", file=path)
        return Recipe.of(text, path)
    try:
        with path.open("rb") as file:
            return Recipe.of(file.read(LARGEST).decode("utf-8-sig"), path)
    except UnicodeDecodeError:
        raise BadConfig(f"{path}: is no recipe; 'info --recipe FILE' prints that of a result", file=path) from None
    except OSError as error:
        raise FileProblem(f"{path}: cannot be read ({error.strerror}); name a result or recipe", file=path) from None


def redo(recipe: Recipe, folders: Sequence[str | Path]) -> Redone:
    """Rebuild a result from the inputs that lie in these folders; nothing is computed before all are found.

    Raises:
        BadConfig: an input is missing or another one than the recipe names, or the recipe holds an operation or a
            parameter that is not known.
        LorasmithError: an input cannot be read, or an operation refuses it.
    """
    check(recipe.tree)
    digest: Callable[[Path], str | None] = cache(lambda path: Source.of(path).digest())
    kitchen = _Kitchen([found(leaf, folders, digest) for leaf in leaves(recipe.tree)])
    inputs = tuple(kitchen.paths)
    result = kitchen.grown(recipe.tree, iter(inputs))
    adapter = kitchen.loaded(result).adapter if isinstance(result, Path) else result
    if not isinstance(adapter, Adapter):
        return Redone(adapter, "", recipe.dtype, inputs)
    if recipe.format is not None:
        return Redone(adapter, recipe.format, recipe.dtype, inputs)
    return Redone(adapter, kitchen.loaded(inputs[recipe.like or 0]).match, recipe.dtype, inputs)


def check(tree: Tree) -> None:
    """Raise BadConfig for an operation that is not known, or parameters that are not its own."""
    for one in tree.get("inputs", ()):
        check(one)
    if "inputs" in tree:
        _arguments(_operation(tree), tree)


def found(leaf: Tree, folders: Sequence[str | Path], digest: Callable[[Path], str | None]) -> Path:
    """Return where an input lies: under its own name, else under any other with the same bytes, by their SHA-256.

    Raises BadConfig for one that is missing, is another one, or that no file holds.
    """
    if "file" not in leaf:
        raise BadConfig(f"the recipe begins with an adapter {leaf['made']}, which no file holds; save that first")
    name, wanted = leaf["file"], leaf.get("sha256")
    if wanted is None:
        raise BadConfig(f"{name}: changed while it was in use, so that the recipe has no hash to find it by", file=name)
    named = [place for folder in folders if (place := Path(folder) / name).exists()]
    candidates = chain(named, _as_large(leaf, folders))
    path: Path | None = next((one for one in candidates if digest(one) == wanted), None)
    if path is None and named:
        raise BadConfig(
            f"{named[0]}: is another file than the recipe's (SHA-256 {wanted[:10]}...); give that one's folder with "
            "--in",
            file=named[0],
        )
    if path is None:
        raise BadConfig(f"{name}: not found (SHA-256 {wanted[:10]}...); give its folder with --in", file=name)
    return path


def _as_large(leaf: Tree, folders: Sequence[str | Path]) -> Iterator[Path]:
    """Yield the files that are as large as an input, whatever their names."""
    for folder in map(Path, folders):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in WEIGHED and path.is_file() and Source.of(path).size == leaf.get("bytes"):
                yield path


@dataclass(frozen=True)
class _Kitchen:
    """The inputs, each read once."""

    paths: list[Path]  # in the order of the leaves
    read: dict[Path, Loaded] = field(default_factory=dict)

    def loaded(self, path: Path) -> Loaded:
        """Return a file's adapter and spelling."""
        if path not in self.read:
            self.read[path] = load(path)
        return self.read[path]

    def grown(self, tree: Tree, paths: Iterator[Path]) -> Adapter | Path | Unwritten:
        """Return what a tree makes; of a leaf, its place. `paths` are those of the leaves that are still to come."""
        if "inputs" not in tree:
            return next(paths)
        inputs = [self.grown(one, paths) for one in tree["inputs"]]
        operation = _operation(tree)
        for index, one in enumerate(inputs):
            place = operation.wants_place(tree["operation"], index, len(inputs))
            if not isinstance(one, Path if place else (Path, Adapter)):
                method = tree["operation"]["method"]
                raise BadConfig(f"the recipe's {method} has an input that it cannot use; get another copy of it")
            if isinstance(one, Path) and not place:
                inputs[index] = self.loaded(one).adapter
        return operation.run(inputs, **_arguments(operation, tree))


def _operation(tree: Tree) -> Operation:
    method = tree["operation"]["method"]
    operation = next((one for one in OPERATIONS if method in one.methods), None)
    if operation is None:
        raise BadConfig(f"the recipe's operation {method!r} is not known; a later Lorasmith may know it")
    return operation


def _arguments(operation: Operation, tree: Tree) -> dict[str, Any]:
    """Return an operation's arguments from its recipe; raises BadConfig where they do not fit the function."""
    given: Mapping[str, Any] = tree["operation"]
    method = given["method"]
    hints = typing.get_type_hints(operation.run)
    names = list(inspect.signature(operation.run).parameters)[1:]
    arguments = {name: value for name, value in given.items() if name in names or name != "method"}
    for name, value in arguments.items():
        if name not in names or not _fits(value, hints[name]):
            raise BadConfig(f"the recipe's {method} has {name} {value!r}, which cannot be; get another copy of it")
    try:
        inspect.signature(operation.run).bind(None, **arguments)
    except TypeError as error:
        raise BadConfig(f"the recipe's {method} is not whole: {error}; get another copy of it") from None
    return arguments


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value of JSON is of a type.

    >>> _fits(1, float | None), _fits("1", float | None), _fits([{"a": 1}], list[dict[str, float]])
    (True, False, True)
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    return isinstance(value, hint)
