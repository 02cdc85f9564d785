"""Captions to tokens and embeddings, as families share them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Cond
from .model import Parts

CLIP_TOKENS = 77  # that CLIP reads of a caption, both end marks included


def clip_tokens(parts: Parts, caption: str) -> Cond:
    """Return a caption's token ids for each CLIP, (1, encoders, 77)."""
    names = [encoder.component for encoder in parts.family.encoders if encoder.clip]
    rows = [padded(parts.tokenizers[name], caption, CLIP_TOKENS).input_ids[0] for name in names]
    return {"tokens": torch.stack(rows)[None]}


def padded(tokenizer: Any, caption: str, length: int) -> Any:
    """Return a caption's token ids and mask, each (1, length): cut or filled up."""
    return tokenizer([caption], padding="max_length", truncation=True, max_length=length, return_tensors="pt")


def two_clips(parts: Parts, cond: Cond) -> tuple[Tensor, list[Tensor]]:
    """Return both CLIPs' last but one layers side by side, (B, 77, width), and what each projects its end mark to."""
    models = [parts.text_encoders[encoder.component] for encoder in parts.family.encoders if encoder.clip]
    tokens = cond["tokens"]  # (B, encoders, 77)
    found = [m(tokens[:, i].to(m.device), output_hidden_states=True) for i, m in enumerate(models)]
    return torch.cat([one.hidden_states[-2] for one in found], dim=-1), [one[0] for one in found]


def t5(parts: Parts, component: str, caption: str, length: int) -> Tensor:
    """Return T5's last layer, (1, length, width), padding included and not told apart."""
    model = parts.text_encoders[component]
    found: Tensor = model(padded(parts.tokenizers[component], caption, length).input_ids.to(model.device))[0]
    return found


def chat(tokenizer: Any, caption: str, thinking: bool) -> str:
    """Return a caption as the turn of a user that a language model is to answer, in the model's own template."""
    turn = [{"role": "user", "content": caption}]
    found: str = tokenizer.apply_chat_template(
        turn, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return found
