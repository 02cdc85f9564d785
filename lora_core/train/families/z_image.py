"""Z-Image: Qwen3's last but one layer, without padding; the network counts time backwards and predicts `x0 - e`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Cond
from .latents import scaled_mode
from .model import Encoder, Family, Input, Parts, Preview, unchanged
from .texts import chat, padded

TOKENS = 512


def _prepare(parts: Parts, caption: str) -> Cond:
    (model,), (tokenizer,) = parts.text_encoders.values(), parts.tokenizers.values()
    read = padded(tokenizer, chat(tokenizer, caption, thinking=True), TOKENS)
    seen = read.attention_mask.to(model.device).bool()
    found = model(input_ids=read.input_ids.to(model.device), attention_mask=seen, output_hidden_states=True)
    context = found.hidden_states[-2][seen][None]
    return {"context": context, "mask": torch.ones(context.shape[:2], dtype=torch.bool)}


def _predict(transformer: Any, given: Input) -> Tensor:
    lengths = given.cond["mask"].sum(dim=1).tolist()
    texts = [row[:length] for row, length in zip(given.cond["context"], lengths, strict=True)]
    pictures = list(given.noisy[:, :, None].unbind())  # (C, 1, h, w) each
    found = transformer(pictures, (1000 - given.t) / 1000, texts, return_dict=False)[0]
    return -torch.stack(list(found))[:, :, 0]


Z_IMAGE = Family(
    name="Z-Image",
    ids=("z-image",),
    denoiser="ZImageTransformer2DModel",
    vae="AutoencoderKL",
    encoders=(Encoder("qwen3_4b", "Qwen3Model", tokens=TOKENS),),
    preview=Preview(
        "ZImagePipeline", guidance=0.0, embeddings={"context": "prompt_embeds"}, rows=True
    ),  # Turbo's; the base model wants about 4
    recognize=lambda config: "z-image",
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=scaled_mode,
    shift=3.0,
    blocks=("noise_refiner", "context_refiner", "layers"),
    feed_forward=(".feed_forward.w1", ".feed_forward.w2", ".feed_forward.w3"),
)
