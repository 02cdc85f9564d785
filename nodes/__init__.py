"""The ComfyUI shell: nodes as data (`catalog`), what they ask of the host (`seam`), one file that speaks its API."""

from __future__ import annotations

from typing import Any


def extension() -> Any:
    """Return the node pack as a `ComfyExtension`; needs ComfyUI."""
    from .v3 import LorasmithExtension

    return LorasmithExtension()
