"""One command line, from its arguments to its exit status: 0 done, 2 refused, 130 interrupted, 1 a defect of ours."""

from __future__ import annotations

import errno
import gc
import io
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..lora_core.errors import BadValues, LorasmithError, UnsupportedLayer
from .call import joined, parser
from .output import note, refused

CORE = ("torch", "safetensors", "numpy")  # what every verb needs
TRAIN = ("diffusers", "transformers", "accelerate", "PIL")  # what training needs besides


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status."""
    given = joined(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(100_000, 50, 50)  # tables and headers are many small objects without cycles: a third of the time
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack the letters of a file's words
    try:
        try:
            return run(given)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        note("stopped")
        return 128 + signal.SIGINT
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        return cut_off(error)


def cut_off(error: OSError) -> int:
    """Give up an output that takes no more, so that nothing is written to it at exit either; return the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:  # whoever read it has enough
        return 0
    return refused({"message": "no space left where the output goes; free some and run it again"}, as_json=False)


def run(given: Sequence[str]) -> int:
    """Run the verb; what is refused becomes one line and status 2, while a defect of ours keeps its traceback."""
    as_json, options = "--json" in given, Namespace()
    try:
        options = parser(given).parse_args(given)
        status: int = options.run(options)
    except LorasmithError as error:
        return refused(about(error, getattr(options, "IN", None)), as_json)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in CORE + TRAIN:
            raise
        return refused({"kind": "NotInstalled", "message": lacking(error.name), "file": None}, as_json)
    except OSError as error:
        if error.filename is None:
            raise
        message = f"{error.filename}: {error.strerror or error}; look at that path and run it again"
        return refused({"kind": "FileProblem", "message": message, "file": error.filename}, as_json)
    return status


def about(error: LorasmithError, file: str | None) -> dict[str, object]:
    """Return an error's details, with the file that was being worked on where a layer of it is at fault."""
    details = error.details()
    if file is None or error.file is not None or not isinstance(error, (BadValues, UnsupportedLayer)):
        return details
    return {**details, "file": file, "message": f"{Path(file).name}: {error.message}"}


def lacking(module: str) -> str:
    """Return the refusal for a library that is not installed."""
    packages = CORE if module.split(".")[0] in CORE else ("diffusers", "transformers", "accelerate", "pillow")
    command = f"{Path(sys.executable).name} -m pip install {' '.join(packages)}"
    return f"{module} is not installed in {sys.executable}; run '{command}'"
