"""Lumina Image 2.0: Gemma 2's last but one layer; the network counts time backwards and predicts `x0 - e`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..protocols import Cond
from .latents import scaled
from .model import Encoder, Family, Input, Parts, Preview, unchanged
from .texts import padded

TOKENS = 256
INSTRUCTION = (  # the system prompt that the model was trained with
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts. <Prompt Start> "
)


def _prepare(parts: Parts, caption: str) -> Cond:
    (model,), (tokenizer,) = parts.text_encoders.values(), parts.tokenizers.values()
    tokenizer.padding_side = "right"
    read = padded(tokenizer, INSTRUCTION + caption, TOKENS)
    mask = read.attention_mask.to(model.device)
    found = model(read.input_ids.to(model.device), attention_mask=mask, output_hidden_states=True)
    return {"context": found.hidden_states[-2], "mask": mask.bool()}


def _predict(transformer: Any, given: Input) -> Tensor:
    found: Tensor = transformer(
        given.noisy,
        timestep=1 - given.t / 1000,
        encoder_hidden_states=given.cond["context"],
        encoder_attention_mask=given.cond["mask"],
        return_dict=False,
    )[0]
    return -found


LUMINA2 = Family(
    name="Lumina 2",
    ids=("lumina2",),
    denoiser="Lumina2Transformer2DModel",
    vae="AutoencoderKL",
    encoders=(Encoder("gemma2_2b", "Gemma2Model", tokens=TOKENS),),
    preview=Preview(
        "Lumina2Pipeline",
        guidance=4.0,
        embeddings={"context": "prompt_embeds", "mask": "prompt_attention_mask"},
    ),
    recognize=lambda config: "lumina2",
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=scaled,
    shift=6.0,
    blocks=("context_refiner", "noise_refiner", "layers"),
    feed_forward=(".feed_forward.linear_1", ".feed_forward.linear_2", ".feed_forward.linear_3"),
)
