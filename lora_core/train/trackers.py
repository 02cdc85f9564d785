"""Trackers that a person asked for and has installed: TensorBoard and Weights & Biases. The log is always written."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import BadConfig
from .config import TrainConfig

NUMBERS = ("loss", "lr", "norm", "seconds", "validation_loss")  # what of an event is a curve


class Tracker(Protocol):
    """Where a run's events go."""

    def follow(self, event: Mapping[str, Any]) -> None:
        """Take an event, as `Event.data()` gives it."""

    def close(self) -> None:
        """Write what is left."""


def trackers(config: TrainConfig) -> list[Tracker]:
    """Return the trackers of a run; raises BadConfig for one that is not installed."""
    return [_KINDS[name](config) for name in config.report_to]


class TensorBoard:
    """Event files in `OUT/tensorboard`."""

    def __init__(self, config: TrainConfig):
        """Open the writer; raises BadConfig where tensorboard is missing."""
        module = _module("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(Path(config.out) / "tensorboard"))

    def follow(self, event: Mapping[str, Any]) -> None:
        """Write the event's numbers, and a preview as a picture."""
        for name in NUMBERS:
            if name in event:
                self.writer.add_scalar(name, event[name], event["step"])
        if event["event"] == "sample":
            from .pictures import load

            self.writer.add_image("preview", _array(load(Path(event["path"]))), event["step"], dataformats="HWC")

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb; offline where WANDB_MODE says so."""

    def __init__(self, config: TrainConfig):
        """Begin the run; raises BadConfig where wandb is missing or refuses."""
        self.wandb = _module("wandb", "wandb")
        try:
            self.run = self.wandb.init(
                project="lorasmith", name=config.name, config=config.to_public_json(), dir=config.out, resume="allow"
            )
        except self.wandb.Error as error:
            reason = str(error).splitlines()[0]
            way = "log in with 'wandb login', or set WANDB_MODE=offline"
            raise BadConfig(f"config: 'report_to' names wandb, which says: {reason}; {way}", key="report_to") from error

    def follow(self, event: Mapping[str, Any]) -> None:
        """Log the event's numbers, and a preview as a picture."""
        found: dict[str, Any] = {name: event[name] for name in NUMBERS if name in event}
        if event["event"] == "sample":
            found["preview"] = self.wandb.Image(event["path"])
        if found:
            self.run.log(found, step=event["step"])

    def close(self) -> None:
        """End the run."""
        self.run.finish()


_KINDS: dict[str, Callable[[TrainConfig], Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        command = f"{Path(sys.executable).name} -m pip install {package}"
        text = f"config: 'report_to' names {package}, which is not installed in {sys.executable}; run '{command}'"
        raise BadConfig(text, key="report_to") from error


def _array(image: Any) -> Any:
    import numpy as np

    return np.asarray(image)


class Trackers:
    """All trackers of a run."""

    def __init__(self, config: TrainConfig | None):
        """Open them; without a configuration there are none. Raises BadConfig for one that is not installed."""
        self.open = [] if config is None else trackers(config)

    def follow(self, event: Mapping[str, Any]) -> None:
        """Hand an event to all trackers."""
        for tracker in self.open:
            tracker.follow(event)

    def close(self) -> None:
        """Close all trackers."""
        for tracker in self.open:
            tracker.close()
