"""Imports go one way, hosts stay in the shells, and heavy libraries load only where they are used."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Our parts, each with the parts that it may import besides itself.
LOWER = {"lora_core.errors", "lora_core.dtypes", "lora_core.layers", "lora_core.adapter", "lora_core.store"}
MAY_IMPORT = {
    "lora_core.errors": set(),
    "lora_core.dtypes": {"lora_core.errors"},
    "lora_core.layers": {"lora_core.errors"},
    "lora_core.adapter": {"lora_core.errors", "lora_core.layers"},
    "lora_core.store": {"lora_core.errors"},
    "lora_core.ops": LOWER,
    "lora_core.train": LOWER,
    "convert": {"lora_core"},
    "nodes": {"lora_core", "convert"},
    "cli": {"lora_core", "convert", "examples"},
}
STORE = ("hashes", "header", "pickle_reader", "unpickler")  # files of the part "store"
SHELLS = ("nodes", "cli")
BASE = {"torch", "safetensors", "numpy"}  # what every host has
TRAIN = {"PIL", "diffusers", "transformers", "accelerate"}
LAZY = TRAIN | {"matplotlib", "bitsandbytes", "prodigyopt", "schedulefree", "tensorboard", "wandb"}  # in functions


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands and what it names."""

    file: Path
    line: int
    name: str  # dotted; for a relative import the path from our root
    ours: bool
    lazy: bool  # inside a function or for the type checker alone

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.name}"


def part_of(name: str) -> str:
    """The part of the house that the dotted path `name` lies in."""
    words = name.split(".")
    if words[0] != "lora_core" or len(words) == 1:
        return words[0]
    return "lora_core.store" if words[1] in STORE else f"lora_core.{words[1]}"


def imports(file: Path) -> Iterator[Import]:
    """Every import of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = file.relative_to(ROOT).parent.parts
    quiet = {inner for node in ast.walk(tree) if is_quiet(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name, False, node in quiet)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            path = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                yield Import(file, node.lineno, f"{path}.{alias.name}".strip("."), node.level > 0, node in quiet)


def is_quiet(node: ast.AST) -> bool:
    """Whether what stands in `node` does not run when the module is loaded."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def every(*folders: str) -> list[Import]:
    """The imports of all files in these folders of ours; at least some, or the test would say nothing."""
    found = [one for folder in folders for file in sorted((ROOT / folder).rglob("*.py")) for one in imports(file)]
    assert found, folders
    return found


def source(one: Import) -> str:
    """The part that the import stands in."""
    return part_of(".".join(one.file.relative_to(ROOT).with_suffix("").parts))


def upward(one: Import) -> bool:
    """Whether one of our parts reaches for a part that it may not know."""
    here, there = source(one), part_of(one.name)
    allowed = MAY_IMPORT.get(here, set())
    return one.ours and there != here and not any(there == part or there.startswith(f"{part}.") for part in allowed)


def foreign(one: Import) -> bool:
    """Whether the core needs what a host may lack: all but BASE is lazy; pillow is for the trainer's pictures alone."""
    top = one.name.split(".")[0]
    if one.ours or top in BASE or top in sys.stdlib_module_names:
        return False
    if top == "PIL" and source(one) == "lora_core.train":
        return False
    return not (one.lazy and top in LAZY)


@pytest.mark.parametrize("folder", ["lora_core", "convert", *SHELLS])
def test_our_own_imports_go_down(folder: str) -> None:
    assert not [str(one) for one in every(folder) if upward(one)]


def test_nothing_of_ours_is_named_absolutely() -> None:
    wrong = [one for one in every("lora_core", "convert", *SHELLS) if not one.ours]
    assert not [str(one) for one in wrong if one.name.split(".")[0] == "lorasmith"]


@pytest.mark.parametrize("folder", ["lora_core", "convert", "cli"])
def test_the_core_needs_only_what_every_host_has(folder: str) -> None:
    assert not [str(one) for one in every(folder) if foreign(one)]


def test_the_doors_load_nothing_but_the_standard_library() -> None:
    for name in ("__init__.py", "__main__.py", "install.py"):
        loaded = [one for one in imports(ROOT / name) if not one.lazy]
        assert not [str(one) for one in loaded if one.ours or one.name.split(".")[0] not in sys.stdlib_module_names]


def test_the_check_sees_a_wrong_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lora_core" / "layers" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text("from ..ops.scale import scale\nimport diffusers\ndef f():\n    import comfy.utils\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    found = every("lora_core")
    assert [(one.name, one.ours, one.lazy) for one in found] == [
        ("lora_core.ops.scale.scale", True, False),
        ("diffusers", False, False),
        ("comfy.utils", False, True),
    ]
    with pytest.raises(AssertionError, match=r"ops\.scale"):
        test_our_own_imports_go_down("lora_core")
    with pytest.raises(AssertionError, match="comfy"):
        test_the_core_needs_only_what_every_host_has("lora_core")
