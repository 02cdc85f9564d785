"""Stable Diffusion 3 and 3.5: two CLIPs and, where the model has it, T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..protocols import Cond
from .latents import scaled
from .model import Config, Encoder, Family, Input, Parts, Preview
from .texts import clip_tokens, t5, two_clips

T5_TOKENS = 256


def _architecture(config: Config) -> str:
    """Return which size it is; only 3.5 normalizes queries, and only its medium size has second attentions."""
    if config.get("qk_norm") is None:
        return "sd3-medium"
    return "sd35-medium" if config.get("dual_attention_layers") else "sd35-large"


def _prepare(parts: Parts, caption: str) -> Cond:
    if "t5xxl" in parts.text_encoders:
        return {**clip_tokens(parts, caption), "t5": t5(parts, "t5xxl", caption, T5_TOKENS)}
    return {**clip_tokens(parts, caption), "t5": torch.zeros(1, T5_TOKENS, parts.denoiser.config.joint_attention_dim)}


def _embed(parts: Parts, cond: Cond) -> Cond:
    """Return CLIP's rows, filled up to T5's width, above T5's; and both projections side by side."""
    context, projected = two_clips(parts, cond)
    far = cond["t5"].to(context)
    wide = F.pad(context, (0, far.shape[-1] - context.shape[-1]))
    return {"context": torch.cat([wide, far], dim=1), "pooled": torch.cat(projected, dim=-1)}


def _predict(transformer: Any, given: Input) -> Tensor:
    found: Tensor = transformer(given.noisy, given.cond["context"], given.cond["pooled"], given.t, return_dict=False)[0]
    return found


SD3 = Family(
    name="Stable Diffusion 3",
    ids=("sd3-medium", "sd35-medium", "sd35-large"),
    denoiser="SD3Transformer2DModel",
    vae="AutoencoderKL",
    encoders=(
        Encoder("clip_l", "CLIPTextModelWithProjection", clip=True),
        Encoder("clip_g", "CLIPTextModelWithProjection", "text_encoder_2", clip=True),
        Encoder("t5xxl", "T5EncoderModel", "text_encoder_3", tokens=T5_TOKENS, optional=True),
    ),
    preview=Preview(
        "StableDiffusion3Pipeline",
        guidance=5.0,
        embeddings={"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"},
    ),
    recognize=_architecture,
    prepare=_prepare,
    embed=_embed,
    predict=_predict,
    latents=scaled,
    shift=3.0,
    attention=(
        *(".to_q", ".to_k", ".to_v", ".to_out.0"),
        *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
    ),
    feed_forward=(".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2"),
)
