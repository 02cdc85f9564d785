"""The trainer's backend over diffusers models: Stable Diffusion 1.x, 2.x and SDXL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapter import Target
from ..errors import BadConfig, WrongArchitecture
from . import rng
from .config import TrainConfig
from .diffusers_load import Parts, components, libraries, load
from .protocols import Cond, Moments
from .targets import DENOISER, TEXT_ENCODER, select

if TYPE_CHECKING:
    from PIL.Image import Image

Names = Mapping[str, Mapping[str, Target]]  # component -> module name in diffusers -> target
GUIDANCE = 7.5
SAMPLING_STEPS = 25
TOKENS = 77  # that CLIP reads of a caption, both end marks included


class DiffusersBackend:
    """A loaded model; satisfies `protocols.Backend`, and is its own denoiser."""

    def __init__(self, parts: Parts, config: TrainConfig, names: Names):
        """Freeze the parts, move them to the device, and choose the modules to adapt."""
        self.parts, self.config = parts, config
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.precision, self.device)
        self.architecture, self.fingerprint = parts.architecture, fingerprint(parts.unet)
        self.prediction = _prediction(parts.scheduler.config.prediction_type, config.objective)
        self.alphas_cumprod: Tensor = parts.scheduler.alphas_cumprod.float()
        self._chosen = self._choose(names)
        for model in (parts.vae, parts.unet, *parts.text_encoders.values()):
            dtype = torch.float32 if model is parts.vae else self.dtype  # some autoencoders overflow in half precision
            nn.Module.to(model, self.device, dtype).requires_grad_(False).eval()

    @property
    def denoiser(self) -> DiffusersBackend:
        """The backend itself: a trained text encoder is part of what the loop calls."""
        return self

    @property
    def facts(self) -> Mapping[str, str]:
        """Device and precision as resolved."""
        return {"device": str(self.device), "precision": str(self.dtype).removeprefix("torch.")}

    def modules(self) -> Mapping[Target, nn.Module]:
        """Return the modules that the configuration's `targets` and `text_encoder` choose."""
        return self._chosen

    def __call__(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the UNet's raw prediction; captions given as token ids pass through the text encoders first."""
        given = self._encode(cond) if "tokens" in cond else cond
        extra = {}
        if self.architecture == "sdxl":
            extra = {"text_embeds": given["pooled"].to(self.dtype), "time_ids": cond["time_ids"].to(self.dtype)}
        context = given["context"].to(self.dtype)
        unet = self.parts.unet
        return unet(noisy.to(self.dtype), t, context, added_cond_kwargs=extra, return_dict=False)[0]  # type: ignore[no-any-return]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Switch gradient checkpointing on for the run, if configured."""
        models = (self.parts.unet, *self.parts.text_encoders.values()) if self.config.gradient_checkpointing else ()
        for model in models:
            _checkpointing(model, True)
        try:
            yield
        finally:
            for model in models:
                _checkpointing(model, False)

    def encode_image(self, pixels: Tensor) -> Moments:
        """Encode one picture, (3, H, W) in [-1, 1], into the denoiser's latent scale."""
        with torch.no_grad():
            found = self.parts.vae.encode(pixels[None].to(self.device)).latent_dist
        factor, shift = self.parts.vae.config.scaling_factor, self.parts.vae.config.get("shift_factor") or 0.0
        return Moments((found.mean[0].cpu() - shift) * factor, found.std[0].cpu() * factor)

    def encode_text(self, caption: str) -> Cond:
        """Return a caption's embeddings, or its token ids while the text encoder is under training."""
        tokens = {"tokens": torch.stack([self._tokens(name, caption) for name in self.parts.tokenizers])[None]}
        if self.config.text_encoder:
            return tokens
        with torch.no_grad():
            return self._encode(tokens)

    def cuts(self, caption: str) -> bool:
        """Say whether a caption is longer than the text encoders read."""
        found = self.parts.tokenizers.values()
        return any(len(t(caption, truncation=True, max_length=TOKENS + 1).input_ids) > TOKENS for t in found)

    def sample(self, prompt: str, seed: int) -> Image:
        """Draw a picture by DPM-Solver++ (arXiv 2211.01095) on Karras sigmas (arXiv 2206.00364) with guidance 7.5."""
        side = self.config.resolution // self._downscale()
        shape = (1, self.parts.unet.config.in_channels, side, side)
        with torch.no_grad():
            cond = self._guided(prompt)
            solver = _solver(self.parts.scheduler, self.prediction, self.device)
            latents = rng.normal(shape, seed, "preview").to(self.device) * solver.init_noise_sigma
            for t in solver.timesteps:
                doubled = solver.scale_model_input(torch.cat([latents] * 2), t)
                without, given = self(doubled, t.expand(2).to(self.device), cond).float().chunk(2)
                latents = solver.step(without + GUIDANCE * (given - without), t, latents, return_dict=False)[0]
            return self._decode(latents)

    def _choose(self, names: Names) -> dict[Target, nn.Module]:
        config, parts = self.config, self.parts
        found = _named("denoiser", select(parts.unet, DENOISER[config.targets]), names)
        for component, model in parts.text_encoders.items() if config.text_encoder else ():
            modules = select(model, TEXT_ENCODER[config.targets])
            plain = {f"text_model.{name.removeprefix('text_model.')}": part for name, part in modules.items()}
            found.update(_named(component, plain, names))
        return found

    def _tokens(self, component: str, caption: str) -> Tensor:
        found: Tensor = self.parts.tokenizers[component](
            caption, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).input_ids[0]
        return found

    def _encode(self, cond: Cond) -> Cond:
        """Run the text encoders; SDXL joins both encoders' last but one layers and adds the second's pooled output."""
        models, tokens = self.parts.text_encoders, cond["tokens"].to(self.device)  # (B, encoders, 77)
        both = len(models) > 1
        outputs = [m(tokens[:, i], output_hidden_states=both) for i, m in enumerate(models.values())]
        if not both:
            return {"context": outputs[0].last_hidden_state}
        context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"context": context, "pooled": outputs[-1].text_embeds}

    def _guided(self, prompt: str) -> dict[str, Tensor]:
        """Return the empty caption's conditioning followed by the prompt's."""
        pair = [self.encode_text(text) for text in ("", prompt)]
        cond = {name: torch.cat([one[name] for one in pair]).to(self.device) for name in pair[0]}
        side = float(self.config.resolution)
        return {**cond, "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * 2, device=self.device)}

    def _decode(self, latents: Tensor) -> Image:
        from PIL import Image

        vae = self.parts.vae
        scaled = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pixels = vae.decode(scaled, return_dict=False)[0][0].float().cpu()
        levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(levels.permute(1, 2, 0).numpy())

    def _downscale(self) -> int:
        return int(2 ** (len(self.parts.vae.config.block_out_channels) - 1))


def open_backend(config: TrainConfig, names_of: Any) -> DiffusersBackend:
    """Load a configuration's model; `names_of(architecture, component)` gives diffusers module name -> Target."""
    parts = load(config.model, config.tokenizer)
    wanted = ("denoiser", *components(parts.architecture))
    return DiffusersBackend(parts, config, {name: names_of(parts.architecture, name) for name in wanted})


def choose_device(word: str) -> torch.device:
    """Return the device for "auto" or a name; raises BadConfig for one that is not there."""
    if word == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(word)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadConfig(f"config: 'device' is {word!r} ({reason}); 'auto' takes what is there", key="device") from error
    return device


def choose_dtype(word: str, device: torch.device) -> torch.dtype:
    """Return the frozen model's dtype; "auto" is bf16 on GPUs that have it, fp16 on other GPUs, else fp32."""
    named = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if word != "auto":
        return named[word]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's names, shapes and 64 values of each tensor: quick, and another for each tune."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


def _named(component: str, modules: Mapping[str, nn.Module], names: Names) -> dict[Target, nn.Module]:
    unknown = [name for name in modules if name not in names[component]]
    if unknown:
        raise WrongArchitecture(f"{component}: no name for its layer {unknown[0]!r}; choose narrower 'targets'")
    return {names[component][name]: module for name, module in modules.items()}


def _prediction(word: str, asked: str) -> str:
    """Return what the model predicts: what is asked for, else what its scheduler says."""
    if asked != "auto":
        return asked
    if word not in ("epsilon", "v_prediction"):
        raise WrongArchitecture(f"the model predicts {word!r}; set 'objective' to 'epsilon' or 'v_prediction'")
    return word


def _solver(scheduler: Any, prediction: str, device: torch.device) -> Any:
    solver = libraries()[0].DPMSolverMultistepScheduler.from_config(
        scheduler.config, use_karras_sigmas=True, algorithm_type="dpmsolver++", prediction_type=prediction
    )
    solver.set_timesteps(SAMPLING_STEPS, device=device)
    return solver


def _checkpointing(model: Any, on: bool) -> None:
    """Switch a model's gradient checkpointing; it also wants train mode, which changes nothing else without dropout."""
    word = "enable" if on else "disable"
    spellings = (f"{word}_gradient_checkpointing", f"activation_checkpointing_{word}", f"gradient_checkpointing_{word}")
    next(getattr(model, name) for name in spellings if hasattr(model, name))()
    model.train(on)
