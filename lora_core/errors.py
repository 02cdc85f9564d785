"""Everything Lorasmith refuses, one class per situation.

Each message is one line: what is wrong, where, and what to do next. `kind` and `details()` feed the command
line's JSON, so a front end never has to take a message apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class LorasmithError(Exception):
    """Base of all errors that are the input's or the call's fault; a defect of ours never derives from it."""

    def __init__(self, message: str, *, file: str | Path | None = None, **details: Any):
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.extra = details

    @property
    def kind(self) -> str:
        """Class name, the stable word that scripts can test for."""
        return type(self).__name__

    def details(self) -> dict[str, Any]:
        """The error as JSON-ready data: kind, message, file and whatever the situation adds."""
        return {"kind": self.kind, "message": self.message, "file": self.file, **self.extra}


class FileProblem(LorasmithError):
    """A path that cannot be read or written: missing, truncated, read-only, no space, already there."""


class NotALoRA(LorasmithError):
    """A readable file that holds something else, such as a checkpoint or a lone textual inversion."""


class UnsafeFile(LorasmithError):
    """A pickle that asks for more than tensors; it was not executed."""


class UnknownFormat(LorasmithError):
    """No table knows these keys; says which family and dialect come closest."""

    @classmethod
    def closest(
        cls, file: str | Path | None, candidate: str | None, known: int, total: int, unknown: Sequence[str]
    ) -> UnknownFormat:
        """Build the error from the best candidate's coverage and the first keys that it lacks."""
        best = f"closest is {candidate} ({known} of {total} keys)" if candidate else "no known family comes close"
        first = ", ".join(repr(key) for key in list(unknown)[:3])
        name = Path(file).name if file else "adapter"
        return cls(
            f"{name}: {best}; unknown: {first}. Run 'info --keys' on it to see every key",
            file=file,
            closest=candidate,
            known=known,
            total=total,
            unknown_keys=list(unknown),
        )


class AmbiguousFormat(LorasmithError):
    """Several families fit the keys alike and would decode differently."""


class WrongArchitecture(LorasmithError):
    """The adapter was made for another model family than the one it meets."""


class UnsupportedLayer(LorasmithError):
    """A layer that this operation or this file format cannot express; never approximated silently."""


class BadValues(LorasmithError):
    """Weights that are NaN or infinite."""


class BadConfig(LorasmithError):
    """A setting or argument that is unknown, of the wrong type or out of range."""


class BadDataset(LorasmithError):
    """A training folder without usable pictures, or a picture that cannot be read."""
