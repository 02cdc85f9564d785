"""What the nodes ask of ComfyUI, as a protocol: `host.ComfyHost` answers it, and so can a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ..convert.checkpoint import Readable
from ..lora_core.layers import Layer
from ..lora_core.train.config import TrainConfig
from ..lora_core.train.protocols import Backend
from .fit import Spot, Weights


class Progress(Protocol):
    """A progress bar, which is also where a person's Cancel arrives."""

    def show(self, done: int) -> None:
        """Move the bar."""

    def cancelled(self) -> BaseException | None:
        """Return the host's own exception for a cancelled job, to be raised once everything is saved; else None."""

    def is_cancel(self, error: BaseException) -> bool:
        """Tell whether an error is the host's way to cancel, and if so take it as one."""


class TrainingBackend(Backend, Protocol):
    """A trainer's backend that also says how to come by a frozen weight."""

    def weights(self, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a module's weight and bias in the dtype and on the device of `like`."""


class Host(Protocol):
    """The running ComfyUI."""

    def lora_names(self) -> Sequence[str]:
        """Return the names in the loras folders, as they are now."""

    def lora_path(self, name: str) -> Path | None:
        """Return the file of such a name, or None when there is none."""

    def output_folder(self) -> Path:
        """Return the folder that results go to; its `loras` subfolder is one of the loras folders."""

    def input_folder(self) -> Path:
        """Return the folder that a person puts inputs into."""

    def weights(self, model: Any, clip: Any) -> Weights:
        """Return the names and shapes of these models' parameters."""

    def parameters(self, model: Any, clip: Any) -> Readable:
        """Return these models' parameters as they are used, patches included, each computed when it is read."""

    def patched(
        self, model: Any, clip: Any, layers: Mapping[Spot, Layer], strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        """Return clones of the models that are patched with layers where they are used; None stays None."""

    def say(self, text: str) -> None:
        """Show a text on the node that is running."""

    def progress(self, total: int) -> Progress:
        """Return a bar over `total` steps for the node that is running."""

    def backend(
        self, model: Any, clip: Any, vae: Any, family: str, config: TrainConfig, progress: Progress
    ) -> TrainingBackend:
        """Return the loaded models as the trainer takes them; Cancel seen there is told to `progress`."""
