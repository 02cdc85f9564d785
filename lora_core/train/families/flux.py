"""FLUX.1 and Chroma: packed latents, T5, and for FLUX.1 the pooled CLIP and a guidance embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import WrongArchitecture
from ..protocols import Cond
from .latents import scaled
from .model import Config, Encoder, Family, Input, Parts, Preview, unchanged
from .packing import packed, places, unpacked
from .texts import clip_tokens, padded, t5

LONG, SHORT = 512, 256  # T5 tokens: dev, and schnell which has no guidance embedding
ATTENTION = (
    *(".to_q", ".to_k", ".to_v", ".to_out.0"),
    *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
)
FEED_FORWARD = (
    *(".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2"),
    *(".proj_mlp", ".proj_out"),  # of single blocks; proj_out also joins the attention's result
)


def _plain(config: Config, id: str) -> str:
    outer = config.get("out_channels") or config["in_channels"]
    if config["in_channels"] != outer:
        taken = config["in_channels"]
        raise WrongArchitecture(f"the transformer takes {taken} channels; fill and control models are not trained here")
    return id


def _prepare(parts: Parts, caption: str) -> Cond:
    length = LONG if parts.denoiser.config.guidance_embeds else SHORT
    return {**clip_tokens(parts, caption), "context": t5(parts, "t5xxl", caption, length)}


def _embed(parts: Parts, cond: Cond) -> Cond:
    """Add CLIP's pooled output."""
    model = parts.text_encoders["clip_l"]
    return {"context": cond["context"], "pooled": model(cond["tokens"][:, 0].to(model.device)).pooler_output}


def _predict(transformer: Any, given: Input) -> Tensor:
    noisy, cond = given.noisy, given.cond
    guidance = torch.full_like(given.t, given.guidance) if transformer.config.guidance_embeds else None
    found = transformer(
        packed(noisy),
        encoder_hidden_states=cond["context"],
        pooled_projections=cond["pooled"],
        timestep=given.t / 1000,
        guidance=guidance,
        img_ids=places(noisy),
        txt_ids=_no_places(cond["context"]),
        return_dict=False,
    )[0]
    return unpacked(found, noisy)


def _no_places(context: Tensor) -> Tensor:
    """Return the places of text tokens, (tokens, 3): all zero."""
    return torch.zeros(context.shape[1], 3, device=context.device)


def _chroma_prepare(parts: Parts, caption: str) -> Cond:
    """Return T5's last layer; its mask lets the first padding token be seen, and no further one."""
    model = parts.text_encoders["t5xxl"]
    read = padded(parts.tokenizers["t5xxl"], caption, LONG)
    mask = read.attention_mask
    context = model(read.input_ids.to(model.device), attention_mask=mask.to(model.device))[0]
    seen = torch.arange(LONG)[None] <= mask.sum(dim=1, keepdim=True)
    return {"context": context, "mask": seen}


def _chroma_predict(transformer: Any, given: Input) -> Tensor:
    noisy, cond = given.noisy, given.cond
    tokens, mask = packed(noisy), cond["mask"].to(noisy)
    found = transformer(
        tokens,
        encoder_hidden_states=cond["context"],
        timestep=given.t / 1000,
        img_ids=places(noisy),
        txt_ids=_no_places(cond["context"]),
        attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
        return_dict=False,
    )[0]
    return unpacked(found, noisy)


FLUX = Family(
    name="FLUX.1",
    ids=("flux",),
    denoiser="FluxTransformer2DModel",
    vae="AutoencoderKL",
    encoders=(
        Encoder("clip_l", "CLIPTextModel", clip=True),
        Encoder("t5xxl", "T5EncoderModel", "text_encoder_2", tokens=LONG),
    ),
    preview=Preview(
        "FluxPipeline",
        guidance=3.5,
        embeddings={"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"},
        negative=False,
    ),
    recognize=lambda config: _plain(config, "flux"),
    prepare=_prepare,
    embed=_embed,
    predict=_predict,
    latents=scaled,
    blocks=("transformer_blocks", "single_transformer_blocks"),
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
)
CHROMA = Family(
    name="Chroma",
    ids=("chroma",),
    denoiser="ChromaTransformer2DModel",
    vae="AutoencoderKL",
    encoders=(Encoder("t5xxl", "T5EncoderModel", tokens=LONG),),
    preview=Preview(
        "ChromaPipeline",
        guidance=5.0,
        embeddings={"context": "prompt_embeds", "mask": "prompt_attention_mask"},
    ),
    recognize=lambda config: _plain(config, "chroma"),
    prepare=_chroma_prepare,
    embed=unchanged,
    predict=_chroma_predict,
    latents=scaled,
    blocks=("transformer_blocks", "single_transformer_blocks"),
    attention=ATTENTION,
    feed_forward=FEED_FORWARD,
)
