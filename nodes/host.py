"""Everything these nodes ask of ComfyUI, answered: folders, LoRA patching, progress and cancelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..lora_core.train.config import TrainConfig
from .comfy_backend import ComfyBackend
from .fit import Weights
from .seam import Progress


class ComfyHost:
    """The running ComfyUI; see `seam.Host`."""

    def lora_names(self) -> Sequence[str]:
        """Return the names in the loras folders, as they are now."""
        return list(folder_paths.get_filename_list("loras"))

    def lora_path(self, name: str) -> Path | None:
        """Return the file of such a name, or None when there is none."""
        found = folder_paths.get_full_path("loras", name)
        return None if found is None else Path(found)

    def output_folder(self) -> Path:
        """Return ComfyUI's output folder."""
        return Path(folder_paths.get_output_directory())

    def input_folder(self) -> Path:
        """Return ComfyUI's input folder."""
        return Path(folder_paths.get_input_directory())

    def weights(self, model: Any, clip: Any) -> Weights:
        """Return the names that ComfyUI's LoRA loader knows for these models, and the shapes of what they name."""
        names: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        if model is not None:
            names = comfy.lora.model_lora_keys_unet(model.model, names)
            shapes |= _shapes(model.model)
        if clip is not None:
            names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
            shapes |= _shapes(clip.cond_stage_model)
        return Weights(names, shapes, denoiser=model is not None, text_encoder=clip is not None)

    def patched(
        self, model: Any, clip: Any, tensors: Mapping[str, Tensor], strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        """Return clones of the models with a LoRA added by ComfyUI's own loader; None stays None."""
        patches = comfy.lora.load_lora(dict(tensors), dict(self.weights(model, clip).names))
        return _added(model, patches, strength_model), _added(clip, patches, strength_clip)

    def say(self, text: str) -> None:
        """Show a text on the node that is running, if one is."""
        running = get_executing_context()
        if running is None:
            return
        from server import PromptServer  # only a running ComfyUI can import it

        PromptServer.instance.send_progress_text(text, running.node_id)

    def progress(self, total: int) -> ComfyProgress:
        """Return a bar over `total` steps for the node that is running."""
        return ComfyProgress(total)

    def backend(
        self, model: Any, clip: Any, vae: Any, family: str, config: TrainConfig, progress: Progress
    ) -> ComfyBackend:
        """Return the loaded models as the trainer takes them; Cancel seen there is told to `progress`."""
        return ComfyBackend(model, clip, vae, family, config, progress)


class ComfyProgress:
    """ComfyUI's progress bar on the running node; see `seam.Progress`."""

    def __init__(self, total: int):
        self.total = total
        self.bar = comfy.utils.ProgressBar(total)
        self.stopped: BaseException | None = None

    def show(self, done: int) -> None:
        """Move the bar."""
        try:
            self.bar.update_absolute(done, self.total)
        except comfy.model_management.InterruptProcessingException as interrupt:
            self.stopped = interrupt

    def cancelled(self) -> BaseException | None:
        """Return ComfyUI's interrupt when the person has cancelled; asking takes the request, so it is kept here."""
        if self.stopped is None:
            try:
                comfy.model_management.throw_exception_if_processing_interrupted()
            except comfy.model_management.InterruptProcessingException as interrupt:
                self.stopped = interrupt
        return self.stopped

    def is_cancel(self, error: BaseException) -> bool:
        """Tell whether an error is ComfyUI's interrupt, and if so keep it."""
        if isinstance(error, comfy.model_management.InterruptProcessingException):
            self.stopped = error
        return self.stopped is error


def _added(patcher: Any, patches: Mapping[Any, Any], strength: float) -> Any:
    if patcher is None:
        return None
    clone = patcher.clone()
    clone.add_patches(patches, strength)
    return clone


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
