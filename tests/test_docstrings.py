"""The examples in the docstrings are true, and the types hold."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lora_core", "convert", "cli")
FILES = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
WITH_EXAMPLES = [path.relative_to(ROOT).as_posix() for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("file", WITH_EXAMPLES)
def test_the_examples_are_true(file: str) -> None:
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    result = doctest.testmod(importlib.import_module(f"lorasmith.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0 and result.failed == 0


def test_there_are_examples() -> None:
    assert len(WITH_EXAMPLES) > 3


def test_the_types_hold(tmp_path: Path) -> None:
    """Run mypy --strict; it needs the folder under its package's name, which a link gives it."""
    pytest.importorskip("mypy")
    try:
        (tmp_path / "lorasmith").symlink_to(ROOT, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets no links be made")
    packages = [word for part in PARTS for word in ("-p", f"lorasmith.{part}")]
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *packages]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, "\n" + done.stdout + done.stderr
