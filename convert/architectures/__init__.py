"""Model families, one literal per file."""

from __future__ import annotations

from ..model import Architecture
from .sd15 import SD15
from .sd21 import SD21
from .sdxl import SDXL

ARCHITECTURES: tuple[Architecture, ...] = (SD15, SD21, SDXL)


def architecture(id: str) -> Architecture:
    """Return the family of that id.

    Raises:
        KeyError: there is no such family.
    """
    for family in ARCHITECTURES:
        if family.id == id:
            return family
    raise KeyError(f"no model family {id!r}; known: {', '.join(family.id for family in ARCHITECTURES)}")
