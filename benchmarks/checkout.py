"""This checkout for the scripts beside it, as the package `lorasmith`, whatever its folder is called."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def alias_root() -> None:
    """Make this checkout importable as `lorasmith`."""
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
