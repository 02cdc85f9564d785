"""The page on adding a family and a dialect, taken at its word: what it says is done to a copy, and nothing else."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "adding-a-format.md"
BLOCKS = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COPIED = ("convert", "lora_core")
TESTS = ("conftest.py", "dumps.py", "test_convert.py")

TRIAL = """
import json, sys
import torch
from lorasmith import convert
from lorasmith.convert import inspect
from lorasmith.convert.formats import WRITABLE
from lorasmith.lora_core import store

torch.manual_seed(0)
shapes = {key: tuple(shape) for key, shape in json.load(open(sys.argv[1]))["keys"].items()}
tensors = {key: torch.randn(shape) if shape else torch.tensor(2.0) for key, shape in shapes.items()}
store.save("in.safetensors", tensors)
adapter = convert.read("in.safetensors")
assert adapter.architecture == "inkwell", adapter.architecture
seen = {}
for format in sys.argv[2:]:
    assert format in WRITABLE, format
    convert.write(adapter, f"{format}.safetensors", format)
    info = inspect.info(f"{format}.safetensors")
    back = convert.read(convert.write(convert.read(f"{format}.safetensors"), f"{format}-kohya.safetensors", "kohya"))
    deltas = [
        float(torch.linalg.norm(back.layers[target].delta() - layer.delta()) / torch.linalg.norm(layer.delta()))
        for target, layer in adapter.layers.items()
    ]
    seen[format] = {
        "keys": sorted(store.header(f"{format}.safetensors").shapes),
        "error": max(deltas),
        "layers": [len(back.layers), len(adapter.layers)],
        **{word: info[word] for word in ("architecture", "format", "unknown_keys", "incomplete", "base_model")},
        "text": inspect.text(info).splitlines()[0],
        "hosts": sorted(host for host, verdict in info["hosts"].items() if verdict["loads"]),
    }
print(json.dumps(seen))
"""


def code(heading: str) -> str:
    """Return the first block of code below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    start = next(found.end() for found in re.finditer(r"^#+ (.*)$", text, re.MULTILINE) if heading in found.group(1))
    return BLOCKS.search(text, start).group(2)


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: {old!r} is there {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def add_family(checkout: Path) -> Path:
    """Do the page's first part to a checkout and return the dump, uncompressed."""
    families = checkout / "convert" / "architectures"
    (families / "inkwell.py").write_text(code("The table"), encoding="utf-8")
    blocks = [block.group(2) for block in BLOCKS.finditer(PAGE.read_text(encoding="utf-8"))]
    place = blocks.index(code("The line"))
    replaced(families / "__init__.py", "from .krea2 import", f"{blocks[place]}from .krea2 import")
    replaced(families / "__init__.py", "    KREA2,\n", f"{blocks[place + 1]}    KREA2,\n")
    keys = checkout / "tests" / "keys"
    keys.mkdir(parents=True)
    (keys / "inkwell_kohya.json.gz").write_bytes(gzip.compress(code("The dump").encode()))
    plain = checkout.parent / "dump.json"
    plain.write_text(code("The dump"), encoding="utf-8")
    return plain


def add_dialect(checkout: Path) -> None:
    """Do the page's second part."""
    convert = checkout / "convert"
    first, second = '    Suffixes("A-B-bare"', '    Format("xlabs"'
    replaced(convert / "suffixes.py", first, code("How its tensors are called") + first)
    replaced(convert / "formats.py", second, code("The dialect") + second)
    replaced(convert / "architectures" / "inkwell.py", "            prefixes=DIT_PREFIXES,\n", code("Its prefix"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the checkout's code."""
    folder = tmp_path_factory.mktemp("copy") / "lorasmith"
    folder.mkdir()
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "sd_configs"))
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def dump_file(checkout):
    return add_family(checkout)


def trial(checkout: Path, dump: Path, folder: Path, *formats: str) -> dict:
    """Run TRIAL with a checkout as `lorasmith` and return what it saw."""
    program = folder / "trial.py"
    program.write_text(TRIAL, encoding="utf-8")
    command = [sys.executable, str(program), str(dump), *formats]
    environment = {**os.environ, "PYTHONPATH": str(checkout.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_family_is_a_table_a_line_and_a_dump(checkout, dump_file, tmp_path):
    seen = trial(checkout, dump_file, tmp_path, "kohya", "diffusers", "comfy", "onetrainer", "peft", "original")
    for format, found in seen.items():
        assert found["architecture"] == "inkwell", format
        assert found["unknown_keys"] == found["incomplete"] == []
        assert found["layers"] == [5, 5]
        assert found["error"] < 1e-6, format
        assert found["base_model"] == "inkwell"
        assert "a LoRA for Inkwell (inkwell)" in found["text"]
        assert found["hosts"] == []  # that load it: none has a model of it
    assert set(seen["kohya"]["keys"]) == set(json.loads(code("The dump"))["keys"])
    assert "transformer.transformer_blocks.0.attn.to_v.lora_B.weight" in seen["diffusers"]["keys"]
    assert "transformer.norm_out.linear.lora_A.weight" in seen["diffusers"]["keys"]
    assert "diffusion_model.blocks.0.attention.qkv.lora_up.weight" in seen["comfy"]["keys"]
    assert "transformer.transformer_blocks.0.attn.to_q.lora_down.weight" in seen["onetrainer"]["keys"]


def test_the_tests_find_the_new_dump_by_themselves(checkout, dump_file):
    for name in TESTS:
        shutil.copy(ROOT / "tests" / name, checkout / "tests" / name)
    command = [sys.executable, "-m", "pytest", "tests/test_convert.py", "-k", "inkwell", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 4, done.stdout


def test_a_dialect_is_a_row_and_its_words(checkout, dump_file, tmp_path):
    copy = tmp_path / "lorasmith"
    shutil.copytree(checkout, copy)
    add_dialect(copy)
    denoiser = json.loads(code("The dump"))
    denoiser["keys"] = {key: shape for key, shape in denoiser["keys"].items() if key.startswith("lora_unet_")}
    plain = tmp_path / "denoiser.json"  # the page gives CLIP-L no prefix of Inktool's
    plain.write_text(json.dumps(denoiser), encoding="utf-8")
    found = trial(copy, plain, tmp_path, "inktool")["inktool"]
    assert (found["architecture"], found["format"]) == ("inkwell", "inktool")
    assert found["error"] < 1e-6
    assert found["unknown_keys"] == found["incomplete"] == []
    assert "ink.blocks.0.attention.qkv.matrix_in" in found["keys"]
    assert "ink.blocks.0.attention.qkv.alpha" in found["keys"]
    assert "Inktool (ink., matrix_in and matrix_out)" in found["text"]
