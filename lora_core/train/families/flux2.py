"""FLUX.2 klein: normalized 2 x 2 patches as latents, three layers of Qwen3 side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Cond
from .latents import normalized_patches
from .model import Config, Encoder, Family, Input, Parts, Preview, unchanged
from .texts import chat, padded

TOKENS = 512
LAYERS = (9, 18, 27)  # of Qwen3 that the model reads
_WIDTH_4B = 7680  # three times Qwen3 4B's width; the 9B model reads Qwen3 8B


def _architecture(config: Config) -> str | None:
    """Return which klein it is; dev, with its guidance embedding and Mistral, is not of this family."""
    if config.get("guidance_embeds", True):
        return None
    return "flux2-klein9b" if config["joint_attention_dim"] > _WIDTH_4B else "flux2-klein4b"


def _prepare(parts: Parts, caption: str) -> Cond:
    """Return the three layers, (1, 512, 3 width), padding included."""
    (model,), (tokenizer,) = parts.text_encoders.values(), parts.tokenizers.values()
    read = padded(tokenizer, chat(tokenizer, caption, thinking=False), TOKENS)
    found = model(
        read.input_ids.to(model.device), attention_mask=read.attention_mask.to(model.device), output_hidden_states=True
    )
    return {"context": torch.cat([found.hidden_states[layer] for layer in LAYERS], dim=-1)}


def _places(count: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return places of text and picture, (tokens, 4): time, row, column, place in the text."""
    rows, columns = size
    axes = [torch.arange(side, device=device) for side in (1, rows, columns, count)]
    return torch.cartesian_prod(*axes)


def _predict(transformer: Any, given: Input) -> Tensor:
    noisy, context = given.noisy, given.cond["context"]
    batch, _, *size = noisy.shape
    found = transformer(
        noisy.flatten(2).transpose(1, 2),
        encoder_hidden_states=context,
        timestep=given.t / 1000,
        guidance=None,
        img_ids=_places(1, (size[0], size[1]), noisy.device).expand(batch, -1, -1),
        txt_ids=_places(context.shape[1], (1, 1), noisy.device).expand(batch, -1, -1),
        return_dict=False,
    )[0]
    result: Tensor = found.transpose(1, 2).reshape(noisy.shape)
    return result


FLUX2_KLEIN = Family(
    name="FLUX.2 klein",
    ids=("flux2-klein4b", "flux2-klein9b"),
    denoiser="Flux2Transformer2DModel",
    vae="AutoencoderKLFlux2",
    encoders=(Encoder("qwen3", "Qwen3Model", tokens=TOKENS),),
    preview=Preview("Flux2KleinPipeline", guidance=4.0, embeddings={"context": "prompt_embeds"}),
    recognize=_architecture,
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=normalized_patches,
    scale=16,
    patch=1,
    blocks=("transformer_blocks", "single_transformer_blocks"),
    attention=(
        *(".to_q", ".to_k", ".to_v", ".to_out.0"),
        *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
        *(".attn.to_qkv_mlp_proj", ".attn.to_out"),  # of single blocks, where the feed-forward part is fused in
    ),
    feed_forward=(".ff.linear_in", ".ff.linear_out", ".ff_context.linear_in", ".ff_context.linear_out"),
)
