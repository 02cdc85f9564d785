"""What the command line says besides a verb's own result: refusals, warnings, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

BAR = 30  # characters


def refused(details: Mapping[str, Any], as_json: bool) -> int:
    """Tell what is wrong, where and what next: a line on stderr, or an object on stdout; return the status, 2."""
    if as_json:
        print(json_text({"error": details}))
        return 2
    note(f"error: {details['message']}")
    return 2


def note(text: str) -> None:
    """Write a line beside the result."""
    print(f"lorasmith: {escaped(' '.join(text.split()))}", file=sys.stderr)


def escaped(text: str) -> str:
    r"""Return text with what cannot be seen spelled out: names in a file must not steer a terminal or forge a line.

    >>> escaped("é\x1b[2J")
    'é\\x1b[2J'
    """
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; numbers that JSON has no word for become null.

    >>> json_text({"error": float("inf")})
    '{"error": null}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
