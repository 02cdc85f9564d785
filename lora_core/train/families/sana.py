"""Sana: latents of AutoencoderDC, 32 pixels a side, and Gemma 2's last layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..protocols import Cond
from .latents import compressed
from .model import Encoder, Family, Input, Parts, Preview, unchanged
from .texts import padded

TOKENS = 300


def _prepare(parts: Parts, caption: str) -> Cond:
    """Return Gemma's last layer of the caption in small letters, as the model was trained; no further instruction."""
    (model,), (tokenizer,) = parts.text_encoders.values(), parts.tokenizers.values()
    tokenizer.padding_side = "right"
    read = padded(tokenizer, caption.lower().strip(), TOKENS)
    mask = read.attention_mask.to(model.device)
    return {"context": model(read.input_ids.to(model.device), attention_mask=mask)[0], "mask": mask.bool()}


def _predict(transformer: Any, given: Input) -> Tensor:
    found: Tensor = transformer(
        given.noisy,
        encoder_hidden_states=given.cond["context"],
        encoder_attention_mask=given.cond["mask"].to(given.noisy.dtype),
        timestep=given.t * transformer.config.timestep_scale,
        return_dict=False,
    )[0]
    return found


SANA = Family(
    name="Sana",
    ids=("sana",),
    denoiser="SanaTransformer2DModel",
    vae="AutoencoderDC",
    encoders=(Encoder("gemma2_2b", "Gemma2Model", tokens=TOKENS),),
    preview=Preview(
        "SanaPipeline",
        guidance=4.5,
        embeddings={"context": "prompt_embeds", "mask": "prompt_attention_mask"},
        options={"use_resolution_binning": False, "negative_prompt": None},
    ),
    recognize=lambda config: None if config.get("guidance_embeds") else "sana",
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=compressed,
    shift=3.0,
    scale=32,
    patch=1,
    feed_forward=(".ff.conv_inverted", ".ff.conv_point"),
    edges=(".ff.conv_point",),
)
