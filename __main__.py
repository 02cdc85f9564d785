"""Command line: `python PATH_TO_CHECKOUT VERB`, `python -m lorasmith VERB` or, once installed, `lorasmith VERB`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> int:
    """Run the command line and return its exit status."""
    from .cli.main import main

    return main()


def main_of_folder(root: Path) -> int:
    """Run the command line of the folder `root`, which becomes the package `lorasmith`, whatever it is called."""
    if sys.version_info < (3, 10):  # noqa: UP036  a checkout runs with whatever Python is at hand
        version = sys.version.split()[0]
        print(f"lorasmith: error: Python {version} is too old, {sys.executable}; use 3.10 or newer", file=sys.stderr)
        return 2
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
    init = root / "__init__.py"
    spec = importlib.util.spec_from_file_location("lorasmith", init, submodule_search_locations=[str(root)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{init} cannot be imported")
    sys.modules["lorasmith"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lorasmith"])
    door = importlib.import_module("lorasmith.__main__")
    return int(door.main())


if __name__ == "__main__":
    sys.exit(main() if __package__ else main_of_folder(Path(__file__).resolve().parent))
