"""Which layers a run adapts: the field's presets as suffixes of module names, alike in both of a UNet's spellings."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_FEED_FORWARD = (".ff.net.0.proj", ".ff.net.2")
_IN_AND_OUT = (".proj_in", ".proj_out")
_TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")

DENOISER: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "linear": (*_ATTENTION, *_FEED_FORWARD, *_IN_AND_OUT),  # all Linear and 1x1 layers of the attention blocks
    "all": ("",),  # convolutions and time embeddings too
}
TEXT_ENCODER: Mapping[str, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    **dict.fromkeys(("attention+ff", "linear", "all"), (*_TEXT_ATTENTION, ".fc1", ".fc2")),
}


def select(model: nn.Module, suffixes: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the Linear and Conv2d modules whose name ends in one of the suffixes, by name, in the model's order.

    >>> block = nn.ModuleDict({"to_q": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    >>> list(select(nn.ModuleDict({"attn": block}), DENOISER["attention"]))
    ['attn.to_q']
    """
    adaptable = ((name, part) for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
    return {name: part for name, part in adaptable if name.endswith(suffixes)}
