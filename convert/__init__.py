"""Key formats and model families: files in any dialect to adapters and back."""

from __future__ import annotations

from .files import Loaded, load, read, write

__all__ = ["Loaded", "load", "read", "write"]
