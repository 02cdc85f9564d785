"""One command line, from its arguments to its exit status: 0 done, 2 refused, 130 interrupted, 1 a defect of ours."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..lora_core.errors import LorasmithError
from .call import joined, parser
from .output import note, refused

CORE = ("torch", "safetensors", "numpy")  # what every verb needs
TRAIN = ("diffusers", "transformers", "accelerate", "PIL")  # what training needs besides


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    given = joined(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(given)
    except KeyboardInterrupt:
        note("stopped")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(given: Sequence[str]) -> int:
    """Run the verb; what is refused becomes one line and status 2, while a defect of ours keeps its traceback."""
    as_json = "--json" in given
    try:
        options = parser(given).parse_args(given)
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except LorasmithError as error:
        return refused(error.details(), as_json)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in CORE + TRAIN:
            raise
        return refused({"kind": "NotInstalled", "message": lacking(error.name), "file": None}, as_json)
    except OSError as error:
        message = f"{error.filename}: {error.strerror or error}; look at that path and run it again"
        return refused({"kind": "FileProblem", "message": message, "file": error.filename}, as_json)
    return status


def lacking(module: str) -> str:
    """Return the refusal for a library that is not installed."""
    packages = CORE if module.split(".")[0] in CORE else ("diffusers", "transformers", "accelerate", "pillow")
    command = f"{Path(sys.executable).name} -m pip install {' '.join(packages)}"
    return f"{module} is not installed in {sys.executable}; run '{command}'"
