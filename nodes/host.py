"""Everything these nodes ask of ComfyUI, answered: folders, LoRA patching, progress and cancelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.patcher_extension import CallbacksMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..lora_core.layers import Layer
from ..lora_core.train.config import TrainConfig
from .comfy_backend import ComfyBackend
from .fit import Spot, Weights
from .patches import patches
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
        """Return the names and shapes of these models' parameters."""
        shapes: dict[str, tuple[int, ...]] = {}
        if model is not None:
            shapes |= _shapes(model.model)
        if clip is not None:
            shapes |= _shapes(clip.cond_stage_model)
        return Weights(shapes, denoiser=model is not None, text_encoder=clip is not None)

    def parameters(self, model: Any, clip: Any) -> LiveParameters:
        """Return these models' parameters as they are used, patches included, each computed when it is read."""
        patchers = (model, getattr(clip, "patcher", None))
        return LiveParameters({k: v for one in patchers if one is not None for k, v in one.get_key_patches().items()})

    def patched(
        self, model: Any, clip: Any, layers: Mapping[Spot, Layer], strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        """Return clones of the models with layers added as patches, computed when the models are used; None stays."""
        made = patches(layers)
        return _added(model, made, strength_model), _added(clip, made, strength_clip)

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


class LiveParameters:
    """The parameters of loaded models; see `convert.checkpoint.Readable`. Nothing of the models is changed."""

    path = Path("the loaded model")

    def __init__(self, patches: Mapping[str, Any]):
        """Take what `ModelPatcher.get_key_patches` returns: the weight with its conversion, then the patches."""
        self._patches = patches

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Compute a parameter as ComfyUI would when it loads the model, in float32 on the CPU."""
        (weight, convert), *patches = self._patches[key]
        plain = convert(weight.detach().to("cpu", torch.float32, copy=True), inplace=True)
        return (comfy.lora.calculate_weight(patches, plain, key) if patches else plain)[start:stop]

    def dtype(self, key: str) -> torch.dtype:
        """Return float32, in which parameters are computed."""
        return torch.float32


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


def _added(patcher: Any, made: Mapping[Any, Any], strength: float) -> Any:
    if patcher is None:
        return None
    clone = patcher.clone()
    if strength:
        added = clone.add_patches(made, strength)
        if any(_bare(key) for key in added):
            inner = getattr(clone, "patcher", clone)  # a CLIP's
            inner.add_callback(CallbacksMP.ON_LOAD, _patch_bare)
    return clone


def _bare(key: Any) -> bool:
    """Tell whether a parameter is none that ComfyUI's loading always looks at: those of modules with modules inside."""
    return isinstance(key, str) and not key.endswith((".weight", ".bias"))


def _patch_bare(patcher: Any, device: Any, *_options: Any) -> None:
    """Patch the parameters that loading left alone; what it patched has a backup."""
    for key in patcher.patches:
        if _bare(key) and key not in patcher.backup:
            patcher.patch_weight_to_device(key, device_to=device)


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return what ComfyUI can patch, by name; packed formats tell the true shape in the parameter alone."""
    stored = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    return stored | {name: tuple(one.shape) for name, one in model.named_parameters() if name in stored}
