"""The embedded trainer."""

from __future__ import annotations

from .config import TrainConfig
from .engine import Event, run
from .loop import Step, train

__all__ = ["Event", "Step", "TrainConfig", "run", "train"]
