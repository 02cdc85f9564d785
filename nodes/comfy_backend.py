"""The trainer's backend over ComfyUI's own loaded MODEL, CLIP and VAE: nothing is copied, nothing stays attached.

The loss is taken on the network's raw output (epsilon or v), never on ComfyUI's denoised picture. ComfyUI runs nodes in
inference mode, so encoders and loading run in it here too, while the network under training runs outside it, its frozen
weights exchanged for plain tensors over the same memory as long as it is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ..convert.architectures import architecture
from ..convert.keymap import names, prefix_for
from ..lora_core.adapter import Target
from ..lora_core.errors import BadConfig, WrongArchitecture
from ..lora_core.train.config import TrainConfig
from ..lora_core.train.diffusers_backend import fingerprint
from ..lora_core.train.inject import trainable_through, weights_like
from ..lora_core.train.protocols import Cond, Moments, Schedule
from ..lora_core.train.targets import choose
from .seam import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v_prediction"}  # ComfyUI's classes that training knows
SIZES = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")  # in the order of "time_ids"
TOKENS = "tokens "  # prefix of a conditioning's entries that are token ids, one per text encoder
ROUTE = {"optimized_attention_override": lambda _chosen, *given, **options: _attention(*given, **options)}


class ComfyBackend:
    """A loaded model; satisfies `lora_core.train.protocols.Backend`, and is its own denoiser."""

    def __init__(self, model: Any, clip: Any, vae: Any, family: str, config: TrainConfig, progress: Progress):
        """Load the model where it trains and choose the modules to adapt; call this in inference mode."""
        _refuse(config)
        self.model, self.clip, self.vae, self.config, self.progress = model, clip, vae, config, progress
        self.architecture = family
        self.device: torch.device = model.load_device
        self.net: nn.Module = model.model.diffusion_model
        sampling = model.get_model_object("model_sampling")
        alphas_cumprod = _plain(1 / (sampling.sigmas.float() ** 2 + 1))
        self.schedule = Schedule(_prediction(sampling, config.objective), alphas_cumprod)
        self._held: ExitStack | None = None
        self.names: Mapping[Target, str] = {}  # patterns mean ComfyUI's own names
        self._chosen = self._choose()
        self._load()
        self.fingerprint = fingerprint(self.net)

    @property
    def denoiser(self) -> ComfyBackend:
        """The backend itself: a trained text encoder is part of what the loop calls."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        found: torch.dtype = self.model.model.manual_cast_dtype or self.model.model.get_dtype()
        return found

    @property
    def facts(self) -> Mapping[str, str]:
        """Device and precision as ComfyUI chose them."""
        return {"device": str(self.device), "precision": str(self.dtype).removeprefix("torch.")}

    def modules(self) -> Mapping[Target, nn.Module]:
        """Return the modules that the configuration's `targets` and `text_encoder` choose."""
        return self._chosen

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the network's raw prediction; captions given as token ids pass through the text encoders first."""
        self._hold()
        return self._whole(lambda: self._predicted(noisy, t, cond))

    def _predicted(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        given = self._encode(cond) if any(name.startswith(TOKENS) for name in cond) else cond
        extra = self._vector(given.get("pooled"), cond["time_ids"])
        options = {} if extra is None else {"y": extra.to(self.device, self.dtype)}
        context = given["context"].to(self.device, self.dtype)
        x, t = noisy.to(self.device, self.dtype), t.to(self.device).float()
        predicted: Tensor = self.net(x, t, context=context, transformer_options=dict(ROUTE), **options)
        return predicted

    def _vector(self, pooled: Tensor | None, sizes: Tensor) -> Tensor | None:
        """Return what SDXL is told beside the caption, (B, C): pooled text, sizes and crop; None for other models."""
        rows = [
            self.model.model.encode_adm(
                pooled_output=None if pooled is None else pooled[row : row + 1],
                device=self.device,
                **dict(zip(SIZES, numbers, strict=True)),
            )
            for row, numbers in enumerate(sizes.tolist())
        ]
        return None if rows[0] is None else torch.cat(rows)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Give the models back as they were, however the run ends."""
        try:
            yield
        finally:
            self._release()

    def encode_image(self, pixels: Tensor) -> Moments:
        """Encode one picture, (3, H, W) in [-1, 1], into the network's latent scale; ComfyUI gives the mean alone."""
        self._release()
        with torch.inference_mode():
            picture = (pixels.movedim(0, -1)[None] + 1) / 2
            latent = self.model.model.process_latent_in(self._whole(lambda: self.vae.encode(picture)))[0]
        mean = _plain(latent)
        return Moments(mean, torch.zeros_like(mean))

    def encode_text(self, caption: str) -> Cond:
        """Return a caption's embeddings, or its token ids while the text encoder is under training."""
        tokens = self._tokens(caption)
        if self.config.text_encoder:
            return tokens
        self._release()
        with torch.inference_mode():
            context, pooled = self._whole(lambda: self.clip.encode_from_tokens(_pairs(tokens, 0), return_pooled=True))
        return {"context": context} if pooled is None else {"context": context, "pooled": pooled}

    def sample(self, prompt: str, seed: int) -> Image:
        """Refuse: a graph has its own sampler for that."""
        raise BadConfig(
            "config: 'sample_every' is for runs without a graph; wire the trained LoRA to a sampler instead"
        )

    def weights(self, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a module's weight and bias through ComfyUI's own casting, which streams and dequantises."""
        if getattr(module, "comfy_cast_weights", False) or getattr(module, "weight_function", None):
            weight, bias = comfy.ops.cast_bias_weight(module, like)
            return weight, bias
        return weights_like(module, like)

    def _whole(self, work: Callable[[], T]) -> T:
        """Do a piece of work to its end: ComfyUI's layers raise on Cancel, so note that and begin the piece anew."""
        try:
            return work()
        except comfy.model_management.InterruptProcessingException as interrupt:
            self.progress.is_cancel(interrupt)
            return work()

    def _load(self) -> None:
        parts = [self.model, self.clip.patcher] if self.config.text_encoder else [self.model]
        with torch.inference_mode():
            comfy.model_management.load_models_gpu(parts, force_full_load=True)

    def _hold(self) -> None:
        """Have the models on their device, and let gradients flow through them, until `_release`."""
        if self._held is None:
            self._load()
            self._held = ExitStack()
            self._held.enter_context(trainable_through(self.net))
            if self.config.text_encoder:
                self._held.enter_context(trainable_through(self.clip.cond_stage_model))
                self._held.enter_context(_norms_keep_their_inputs(self.clip.cond_stage_model))

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _choose(self) -> dict[Target, nn.Module]:
        config = self.config
        models: dict[str, nn.Module] = {"denoiser": self.net}
        for part in architecture(self.architecture).components if config.text_encoder else ():
            prefix = (prefix_for(part, "comfy") or "").removeprefix("text_encoders.")
            if part.id != "denoiser":
                models[part.id] = self.clip.cond_stage_model.get_submodule(prefix)
        found: dict[Target, nn.Module] = {}
        for component, chosen in choose(models, config.targets, config.exclude).items():
            found.update(self._named(component, chosen))
        return found

    def _named(self, component: str, chosen: Mapping[str, nn.Module]) -> dict[Target, nn.Module]:
        known = names(self.architecture, component, "original")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise WrongArchitecture(f"{component}: no name for its layer {unknown[0]!r}; choose narrower targets")
        return {known[name]: part for name, part in chosen.items()}

    def _tokens(self, caption: str) -> dict[str, Tensor]:
        """Return a caption's first 77 tokens for each text encoder, (1, 77); brackets are letters and no weights."""
        literal = caption.replace("(", "\\(").replace(")", "\\)")
        chunks = {name: [token for token, *_ in parts[0]] for name, parts in self.clip.tokenize(literal).items()}
        if not all(isinstance(token, int) for chunk in chunks.values() for token in chunk):
            raise BadConfig(f"caption {caption[:60]!r}: names an embedding; write its words out for training")
        return {f"{TOKENS}{name}": torch.tensor([chunk]) for name, chunk in chunks.items()}

    def _encode(self, cond: Cond) -> Cond:
        """Run the text encoders with gradients, row by row, as `CLIP.encode_from_tokens` does without."""
        model = self.clip.cond_stage_model
        model.reset_clip_options()
        layer = {} if self.clip.layer_idx is None else {"layer": self.clip.layer_idx}
        model.set_clip_options({**layer, "execution_device": self.device})
        rows = len(next(iter(cond.values())))
        pairs = [model.encode_token_weights(_pairs(cond, row))[:2] for row in range(rows)]
        context = torch.cat([context for context, _ in pairs])
        pooled = [pooled for _, pooled in pairs if pooled is not None]
        return {"context": context, "pooled": torch.cat(pooled)} if pooled else {"context": context}


def _pairs(tokens: Cond, row: int) -> dict[str, list[list[tuple[int, float]]]]:
    """Return one row of token ids as ComfyUI takes them: a list of chunks of (id, weight) by text encoder."""
    found = {name: ids for name, ids in tokens.items() if name.startswith(TOKENS)}
    return {name[len(TOKENS) :]: [[(int(token), 1.0) for token in ids[row]]] for name, ids in found.items()}


def _refuse(config: TrainConfig) -> None:
    """Raise BadConfig for what ComfyUI decides itself, or what only a run from files can do."""
    checkpointing = config.gradient_checkpointing in (True, "on")
    asked = {"quantize": config.quantize != "none", "swap_blocks": config.swap_blocks, "compile": config.compile}
    asked |= {"gradient_checkpointing": checkpointing, "frames": config.frames > 1}
    asked |= {"sample_every": config.sample_every, "class_pictures": config.class_pictures}
    for key in (key for key, wanted in asked.items() if wanted):
        raise BadConfig(f"config: {key!r} is not for training inside ComfyUI; leave it out", key=key)


def _prediction(sampling: Any, asked: str) -> str:
    """Return what the model predicts: what is asked for, else what ComfyUI's sampling says."""
    kinds = [base.__name__ for base in type(sampling).__bases__]
    found = next((PREDICTIONS[kind] for kind in kinds if kind in PREDICTIONS), None)
    if found is None or not hasattr(sampling, "sigmas"):
        raise WrongArchitecture(f"the model predicts {kinds[-1]}; training knows {' and '.join(PREDICTIONS.values())}")
    return found if asked == "auto" else asked


@contextmanager
def _norms_keep_their_inputs(model: nn.Module) -> Iterator[None]:
    """Let each LayerNorm work on a copy: ComfyUI's CLIP adds into a tensor that the backward pass needs again."""
    with ExitStack() as hooks:
        for norm in (part for part in model.modules() if isinstance(part, nn.LayerNorm)):
            hook = norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
            hooks.callback(hook.remove)
        yield


def _plain(tensor: Tensor) -> Tensor:
    """Return a float32 copy on the CPU that is no inference tensor."""
    with torch.inference_mode(False):
        return tensor.detach().float().cpu().clone()


def _attention(*given: Any, **options: Any) -> Tensor:
    """Attend through torch's own kernel, whose backward pass keeps no attention matrix."""
    attend: Callable[..., Tensor] = comfy.ldm.modules.attention.attention_pytorch
    return attend(*given, **options)
