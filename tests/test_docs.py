"""The page of formats is what the tables give, and what it says of them is true."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from lorasmith.convert.algorithms import ALGORITHMS, shape_of
from lorasmith.convert.architectures import ARCHITECTURES
from lorasmith.convert.formats import FORMATS, WRITABLE
from lorasmith.convert.keymap import keymap
from lorasmith.convert.suffixes import SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"rank": 2, "out": 12, "in": 8, "a": 3, "b": 4, "c": 4, "d": 2}  # a * c = out, b * d = in
ADDITIVE = [needs for row in ALGORITHMS if row.id in ("lora", "loha", "lokr", "full") for needs in row.needs]


@pytest.fixture(scope="module")
def generator():
    """Return docs/generate_formats.py as a module."""
    spec = importlib.util.spec_from_file_location("generate_formats", ROOT / "docs" / "generate_formats.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(generator):
    return generator.page()


def test_the_committed_page_is_the_generated_one(page):
    committed = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert committed == page, "run python docs/generate_formats.py"


def test_check_says_whether_the_page_differs(generator, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generator, "PAGE", tmp_path / "formats.md")
    monkeypatch.setattr(generator, "page", lambda: page)
    monkeypatch.setattr(sys, "argv", ["generate_formats.py", "--check"])
    assert generator.main() == 1
    assert "run python docs/generate_formats.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["generate_formats.py"])
    assert generator.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate_formats.py", "--check"])
    assert generator.main() == 0


def test_every_family_component_dialect_and_algorithm_is_there(page):
    components = {part.id for family in ARCHITECTURES for part in family.components} - {"denoiser"}
    ids = {row.id for row in (*ARCHITECTURES, *FORMATS, *ALGORITHMS)} | components
    assert [id for id in ids if f"`{id}`" not in page] == []


def test_every_dialect_has_an_example(generator):
    assert [row.id for row in FORMATS if not generator._example(row)] == []


def test_every_example_key_of_a_family_is_read_by_that_family(page):
    found = 0
    for section in page.split("\n### ")[1:]:
        head, *lines = section.splitlines()
        for id in re.findall("`(.+?)`", head):
            for line in lines:
                dialects, _, key = line.removeprefix("- ").partition(": ")
                if dialects.startswith("`") and set(re.findall("`(.+?)`", dialects)) <= set(WRITABLE):
                    assert keymap(id).place(key.strip("`")) is not None, f"{id}: {line}"
                    found += 1
    assert found > 4 * len(ARCHITECTURES)


def test_shapes_and_effects_are_said_of_every_tensor_and_algorithm(generator):
    assert set(generator.SHAPES) == {role for group in SUFFIXES for role in group.roles}
    assert set(generator.DEEDS) == {row.id for row in ALGORITHMS}


@pytest.mark.parametrize("needs", ADDITIVE)
def test_the_shapes_said_make_the_weight_said(generator, needs):
    """A linear layer with the shapes on the page is one of a weight (out, in); of an embedding and a bias it is not."""
    shapes = {role: _numbers(generator.SHAPES[role]) for role in needs}
    if all(shapes.values()) and "(out)" not in {generator.SHAPES[role] for role in needs}:
        assert shape_of(shapes) == [SIZES["out"], SIZES["in"]]


def _numbers(shape):
    words = [word for word in shape.strip("()").split(", ") if not word.startswith("*")]
    return [SIZES[word] for word in words] if set(words) <= set(SIZES) else None


def test_the_page_can_be_read(page):
    assert len(page.splitlines()) < 650
    assert not [line for line in page.splitlines() if line.startswith("|") and "||" in line]
