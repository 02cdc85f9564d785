"""The trainer's backend over diffusers models: one for all families, which differ in their tables alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapter import Target
from ..errors import BadConfig, WrongArchitecture
from .compiled import compiled
from .config import TrainConfig
from .diffusers_load import load
from .families import Encoder, Family, Input, Parts
from .families.refusals import check_side, refuse_idle
from .families.schedules import schedule_of
from .lean import lean
from .placement import cast, move, move_all
from .previews import draw
from .protocols import Cond, Moments
from .storage import store, weights
from .targets import choose, select

if TYPE_CHECKING:
    from PIL.Image import Image

Names = Mapping[str, Mapping[str, Target]]  # component -> module name in diffusers -> target
EXACT = ("time_ids",)  # conditioning that stays float32: sizes in pixels, which half precision rounds


class DiffusersBackend:
    """A loaded model; satisfies `protocols.Backend`, and is its own denoiser."""

    def __init__(self, parts: Parts, config: TrainConfig, names: Names):
        """Freeze the parts and choose the modules to adapt; each part moves to the device when it is first used."""
        self.parts, self.family, self.config = parts, parts.family, config
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.precision, self.device)
        self.architecture, self.fingerprint = parts.architecture, fingerprint(parts.denoiser)
        self.schedule = schedule_of(self.family, parts.scheduler, config.objective)
        refuse_idle(parts, config)
        self._trained = trained_encoders(parts, config)
        self._chosen = self._choose(names)
        self.names = {target: name for table in names.values() for name, target in table.items()}
        self._drawn: dict[str, Cond] = {}  # the previews' embeddings, while no text encoder is trained
        for model in (parts.denoiser, *parts.text_encoders.values()):
            cast(model, self.dtype)
        cast(parts.vae, torch.float32)  # some autoencoders overflow in half precision
        for model in (parts.denoiser, parts.vae, *parts.text_encoders.values()):
            model.requires_grad_(False).eval()
        store(parts.denoiser, self.blocks(), config.quantize, config.swap_blocks)

    @property
    def denoiser(self) -> DiffusersBackend:
        """The backend itself: a trained text encoder is part of what the loop calls."""
        return self

    @property
    def facts(self) -> Mapping[str, str]:
        """Device and precision as resolved."""
        said = {"device": str(self.device), "precision": str(self.dtype).removeprefix("torch.")}
        return {**said, "quantize": self.config.quantize, "swap_blocks": str(self.config.swap_blocks)}

    def modules(self) -> Mapping[Target, nn.Module]:
        """Return the modules that the configuration's `targets` and `text_encoder` choose."""
        return self._chosen

    def blocks(self) -> list[nn.Module]:
        """Return the denoiser's repeated blocks, in the order in which they are called."""
        found: list[nn.Module] = []
        for name in self.family.blocks:
            part = getattr(self.parts.denoiser, name)
            found += part if isinstance(part, nn.ModuleList) else [part]
        return found

    def weights(self, module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return a module's weight and bias in the dtype and on the device of `like`, however they are kept."""
        return weights(module, like)

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the prediction; captions given as token ids pass through the text encoders first."""
        move(self.parts.denoiser, self.device)
        given = self._ready(cond)
        if self._trained:
            move_all(self._trained.values(), self.device)
            given = self._ready({**given, **self.family.embed(self.parts, given)})
        config = self.config
        seen = Input(noisy.to(self.device, self.dtype), t.to(self.device), given, config.guidance, self.parts.settings)
        return self.family.predict(self.parts.denoiser, seen)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let the frozen layers keep less for the run, or compile them, and switch checkpointing on, as configured.

        Compiled blocks are not made lean: what lean layers do by hand, the compiler would have to leave in pieces.
        """
        if self.config.gradient_checkpointing in (True, "on"):
            self.checkpointing(True)
        try:
            models = (self.parts.denoiser, *self._trained.values())
            with compiled(self.blocks()) if self.config.compile else lean(*models):
                yield
        finally:
            self.checkpointing(False)

    def checkpointing(self, on: bool) -> None:
        """Switch gradient checkpointing of the denoiser and of the trained text encoders."""
        for model in (self.parts.denoiser, *self._trained.values()):
            _checkpointing(model, on)

    def encode_image(self, pixels: Tensor) -> Moments:
        """Encode one picture, (3, H, W) in [-1, 1], or one video, (3, frames, H, W), into the denoiser's latent scale.

        Raises BadConfig when the sides do not fit the family.
        """
        for side in pixels.shape[-2:]:
            check_side(self.parts, side, "a picture's side")
        move(self.parts.vae, self.device)
        with torch.no_grad():
            found = self.family.latents(self.parts.vae, pixels[None].to(self.device))
        return Moments(found.mean.float().cpu(), found.std.float().cpu())

    def encode_text(self, caption: str) -> Cond:
        """Return a caption's embeddings; while text encoders are trained, token ids in the place of what they give."""
        move_all(self.parts.text_encoders.values(), self.device)
        with torch.no_grad():
            prepared = self.family.prepare(self.parts, caption)
            return prepared if self._trained else self.family.embed(self.parts, prepared)

    def cuts(self, caption: str) -> bool:
        """Say whether a caption is longer than any of the text encoders reads."""
        encoders = [encoder for encoder in self.family.encoders if encoder.component in self.parts.tokenizers]
        return all(self._tokens(encoder, caption) > encoder.tokens for encoder in encoders)

    def _tokens(self, encoder: Encoder, caption: str) -> int:
        tokenizer = self.parts.tokenizers[encoder.component]
        return len(tokenizer(caption, truncation=True, max_length=encoder.tokens + 1).input_ids)

    def offload(self) -> None:
        """Take autoencoder and untrained text encoders off the device, as configured; they come back when needed."""
        if self.config.offload_encoders:
            for prompt in (*self.config.prompts, self.config.negative_prompt) if self.config.sample_every else ():
                self._embedded(prompt)
            trained = set(self._trained)
            away = [model for name, model in self.parts.text_encoders.items() if name not in trained]
            move_all((self.parts.vae, *away), torch.device("cpu"))

    def reload(self) -> None:
        """Bring autoencoder and text encoders back to the device."""
        move_all((self.parts.vae, *self.parts.text_encoders.values()), self.device)

    def sample(self, prompt: str, seed: int) -> Image:
        """Draw a picture with the model as it is now, from private randomness, in diffusers' own pipeline."""
        move_all((self.parts.denoiser, self.parts.vae), self.device)
        given, without = self._embedded(prompt), self._embedded(self.config.negative_prompt)
        return draw(self.parts, self.config, self.schedule, given, without, seed)

    def _embedded(self, prompt: str) -> Cond:
        """Return a prompt's embeddings, on the device, computed once unless a text encoder is trained."""
        found = self._drawn.get(prompt)
        if found is None:
            found = self.encode_text(prompt)
            if self._trained:
                with torch.no_grad():
                    return self._ready({**found, **self.family.embed(self.parts, self._ready(found))})
            self._drawn[prompt] = {name: tensor.cpu() for name, tensor in found.items()}
        return self._ready(found)

    def _ready(self, cond: Cond) -> dict[str, Tensor]:
        """Return conditioning on the device, in the denoiser's dtype."""
        return {
            name: tensor.to(self.device, self.dtype if tensor.is_floating_point() and name not in EXACT else None)
            for name, tensor in cond.items()
        }

    def _choose(self, names: Names) -> dict[Target, nn.Module]:
        models = {"denoiser": self.parts.denoiser, **self._trained}
        presets = {"denoiser": partial(preset_layers, self.family)}
        chosen = choose(models, self.config.targets, self.config.exclude, presets)
        found: dict[Target, nn.Module] = {}
        for component, modules in chosen.items():
            found.update(_named(component, modules, names))
        return found


def open_backend(config: TrainConfig, names_of: Any) -> DiffusersBackend:
    """Load a configuration's model; `names_of(architecture, component)` gives diffusers module name -> Target."""
    dtype = choose_dtype(config.precision, choose_device(config.device))
    parts = load(config.model, config.tokenizer, dtype, config.family, config.revision)
    wanted = ("denoiser", *(encoder.component for encoder in parts.family.encoders if encoder.clip))
    return DiffusersBackend(parts, config, {name: names_of(parts.architecture, name) for name in wanted})


def choose_device(word: str) -> torch.device:
    """Return the device for "auto" or a name; raises BadConfig for one that is not there."""
    if word == "auto":
        mps = torch.backends.mps.is_available()
        word = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        return torch.empty(1, device=torch.device(word)).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadConfig(f"config: 'device' is {word!r} ({reason}); 'auto' takes what is there", key="device") from error


def choose_dtype(word: str, device: torch.device) -> torch.dtype:
    """Return the frozen model's dtype; "auto" is bf16 on GPUs that have it, fp16 on other GPUs, else fp32."""
    named = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if word != "auto":
        return named[word]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's names, shapes and 64 values of each tensor: quick, and another for each tune.

    The values are rounded to bf16, so that the precision a model is loaded in makes no other model of it.
    """
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].to(torch.bfloat16).float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def trained_encoders(parts: Parts, config: TrainConfig) -> dict[str, Any]:
    """Return the text encoders to adapt, by component."""
    names = [encoder.component for encoder in parts.family.encoders if encoder.clip]
    return {name: parts.text_encoders[name] for name in names if config.text_encoder}


def preset_layers(family: Family, model: nn.Module, word: str) -> dict[str, nn.Module]:
    """Return a denoiser's layers of a preset, by name; all but "all" mean the repeated blocks alone.

    Grouped convolutions, which no adapter of ours fits, are never among them.
    """
    inside = tuple(f"{name}." for name in family.blocks) if word != "all" else ("",)
    found = select(model, family.endings(word)).items()
    return {name: part for name, part in found if name.startswith(inside) and getattr(part, "groups", 1) == 1}


def _named(component: str, modules: Mapping[str, nn.Module], names: Names) -> dict[Target, nn.Module]:
    if component != "denoiser":  # with and without this part, by version of transformers
        modules = {f"text_model.{name.removeprefix('text_model.')}": module for name, module in modules.items()}
    unknown = [name for name in modules if name not in names[component]]
    if unknown:
        raise WrongArchitecture(f"{component}: no name for its layer {unknown[0]!r}; choose narrower 'targets'")
    return {names[component][name]: module for name, module in modules.items()}


def _checkpointing(model: Any, on: bool) -> None:
    """Switch a model's gradient checkpointing; it also wants train mode, which changes nothing else without dropout."""
    word = "enable" if on else "disable"
    spellings = (f"{word}_gradient_checkpointing", f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}")
    next(getattr(model, name) for name in spellings if hasattr(model, name))()
    model.train(on)
