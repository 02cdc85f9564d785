"""What the command line says besides a verb's own result: refusals, warnings, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

BAR = 30  # characters


def refused(details: Mapping[str, Any], as_json: bool) -> int:
    """Tell what is wrong, where and what next: a line on stderr, or an object on stdout; return the status, 2."""
    if as_json:
        print(json.dumps({"error": details}))
        return 2
    line = " ".join(str(details["message"]).split())
    print(f"lorasmith: error: {line}", file=sys.stderr)
    return 2


def note(text: str) -> None:
    """Write a line beside the result."""
    print(f"lorasmith: {text}", file=sys.stderr)


def progress(event: Mapping[str, Any]) -> None:
    """Draw a run's progress on a terminal; anywhere else only its warnings are told."""
    kind = event["event"]
    if kind == "warning":
        note(f"warning: {event['message']}")
    if kind not in ("step", "done", "stopped") or not sys.stderr.isatty():
        return
    filled = "#" * (BAR * event["step"] // max(1, event["steps"]))
    end = f"  loss {event['loss']:.4f}  {event['eta']:.0f} s to go  " if kind == "step" else "\n"
    print(f"\r[{filled:.<{BAR}}] {event['step']}/{event['steps']}{end}", end="", file=sys.stderr, flush=True)
