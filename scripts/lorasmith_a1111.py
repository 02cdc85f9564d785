"""A1111's and Forge's door to Lorasmith: makes the checkout importable as `lorasmith` and loads its core at once.

The WebUI executes this file by path and takes the extension's folder off the search path afterwards, so everything is
imported here and now. So far the extension adds no tab; it checks that the core runs in this WebUI and says so in one
line of the log.
"""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("lorasmith.lora_core.store", "lorasmith.convert")

log = logging.getLogger("lorasmith")


def alias_root() -> None:
    """Make the folder of this extension, whatever it is called, the package `lorasmith`."""
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)


def forget() -> None:
    """Drop every half-loaded module, so that the next "Reload UI" begins afresh."""
    for name in [name for name in sys.modules if name.split(".")[0] == "lorasmith"]:
        del sys.modules[name]


def load() -> None:
    """Import the core; an error is logged with its traceback and never stops the WebUI."""
    try:
        if "lorasmith" not in sys.modules:
            alias_root()
        for part in PARTS:
            importlib.import_module(part)
    except Exception:  # noqa: BLE001  whatever it is, the WebUI would only hide it
        forget()
        log.exception("Lorasmith could not be loaded from %s", ROOT)
    else:
        log.info("Lorasmith is loaded from %s; its command line: python %s --help", ROOT, ROOT)


load()
