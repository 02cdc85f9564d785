"""PixArt-Sigma: discrete diffusion in a transformer that also predicts a variance, which is not trained; T5, masked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..protocols import Cond
from .latents import scaled
from .model import Config, Encoder, Family, Input, Parts, Preview, unchanged
from .texts import padded

TOKENS = 300


def _recognize(config: Config) -> str | None:
    """Tell Sigma from Alpha, whose large models are told the picture's size."""
    return None if config.get("use_additional_conditions") else "pixart-sigma"


def _prepare(parts: Parts, caption: str) -> Cond:
    model = parts.text_encoders["t5xxl"]
    read = padded(parts.tokenizers["t5xxl"], caption.lower().strip(), TOKENS)
    mask = read.attention_mask.to(model.device)
    return {"context": model(read.input_ids.to(model.device), attention_mask=mask)[0], "mask": mask.bool()}


def _predict(transformer: Any, given: Input) -> Tensor:
    found: Tensor = transformer(
        given.noisy,
        encoder_hidden_states=given.cond["context"],
        timestep=given.t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        encoder_attention_mask=given.cond["mask"].to(given.noisy.dtype),
        return_dict=False,
    )[0]
    return found[:, : given.noisy.shape[1]]


PIXART = Family(
    name="PixArt-Sigma",
    ids=("pixart-sigma",),
    denoiser="PixArtTransformer2DModel",
    vae="AutoencoderKL",
    encoders=(Encoder("t5xxl", "T5EncoderModel", tokens=TOKENS),),
    preview=Preview(
        "PixArtSigmaPipeline",
        guidance=4.5,
        embeddings={"context": "prompt_embeds", "mask": "prompt_attention_mask"},
        options={"use_resolution_binning": False, "negative_prompt": None},
        scheduler=lambda diffusers, scheduler: diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config),
    ),
    recognize=_recognize,
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=scaled,
    flow=False,
    timesteps="uniform",
)
