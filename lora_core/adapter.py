"""The intermediate representation: an Adapter is a mapping from Target (where) to Layer (what)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .layers import Layer


@dataclass(frozen=True)
class Target:
    """Where a layer acts: a module of one component of the model, in the ORIGINAL model's naming.

    >>> Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q").component
    'denoiser'
    """

    component: str  # "denoiser" | "clip_l" | "clip_g" | "clip_h" | ...
    module: str  # dotted path, the one ComfyUI uses, without the component's own prefix
    block: int | None = None  # n-th row block of a fused weight (qkv); None = all rows
    parameter: str = "weight"  # which of the module's tensors changes: "weight" or "bias"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA in memory, free of any file's spelling.

    `extras` are tensors that no table knows (an embedded textual inversion, say). They belong to no layer; they are
    carried through to the output under their own keys. `origin` says how the adapter came to be: a file, or an
    operation on other origins (see `ops.provenance`).
    """

    architecture: str | None  # family id; None while the keys fit several families alike
    layers: Mapping[Target, Layer]
    metadata: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None
