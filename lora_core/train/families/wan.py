"""Wan 2.1 and 2.2: videos, and pictures as videos of one frame; UMT5 with its padding put to zero."""

from __future__ import annotations

import html
from typing import Any

from torch import Tensor

from ...errors import WrongArchitecture
from ..protocols import Cond
from .latents import video
from .model import Config, Encoder, Family, Input, Parts, Preview, unchanged
from .texts import padded

TOKENS = 512


def _plain(config: Config) -> bool:
    """Say whether a model draws from text alone; raises WrongArchitecture for one that wants a first frame."""
    if config["in_channels"] != config["out_channels"] or config.get("image_dim"):
        raise WrongArchitecture("the model takes a first frame; image-to-video models are not trained here")
    return True


def _architecture(config: Config) -> str | None:
    """Return Wan 2.1's size, told by its heads: 12 and 40."""
    if not _plain(config) or config["out_channels"] == 48:
        return None
    return "wan21-14b-t2v" if config["num_attention_heads"] >= 40 else "wan21-1.3b-t2v"


def _prepare(parts: Parts, caption: str) -> Cond:
    """Return UMT5's last layer, (1, 512, width), zero where the caption has ended."""
    model = parts.text_encoders["umt5xxl"]
    plain = " ".join(html.unescape(html.unescape(caption)).split())
    read = padded(parts.tokenizers["umt5xxl"], plain, TOKENS)
    mask = read.attention_mask.to(model.device)
    found = model(read.input_ids.to(model.device), mask).last_hidden_state
    return {"context": found * mask[:, :, None]}


def _predict(transformer: Any, given: Input) -> Tensor:
    found: Tensor = transformer(given.noisy, given.t, given.cond["context"], return_dict=False)[0]
    return found


_WAN: dict[str, Any] = {
    "denoiser": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "encoders": (Encoder("umt5xxl", "UMT5EncoderModel", tokens=TOKENS),),
    "preview": Preview("WanPipeline", guidance=5.0, embeddings={"context": "prompt_embeds"}),
    "prepare": _prepare,
    "embed": unchanged,
    "predict": _predict,
    "latents": video,
    "video": True,
    "blocks": ("blocks",),
    "feed_forward": (".ffn.net.0.proj", ".ffn.net.2"),
}
WAN = Family(
    name="Wan 2.1",
    ids=("wan21-1.3b-t2v", "wan21-14b-t2v"),
    recognize=_architecture,
    shift=3.0,
    **_WAN,
)
WAN22 = Family(
    name="Wan 2.2 5B",
    ids=("wan22-5b",),
    recognize=lambda config: "wan22-5b" if _plain(config) and config["out_channels"] == 48 else None,
    shift=5.0,
    scale=16,
    **_WAN,
)
