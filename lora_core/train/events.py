"""What a run tells on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Event:
    """One thing that happened; `data()` is a line of the log."""

    event: str  # class_picture | start | step | validation | sample | checkpoint | warning | done | stopped | error
    step: int  # finished steps
    steps: int
    loss: float | None = None
    lr: float | None = None
    seconds: float | None = None  # that this step took; in "done" and "stopped", the run since its start event
    eta: float | None = None  # seconds still to go
    path: str | None = None
    message: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return the event as JSON-ready data, without what is not there."""
        known = {key: value for key, value in asdict(self).items() if key != "more" and value is not None}
        return {**known, **self.more}


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False
