"""Adapter algorithms, one file each: the tensors of a layer and the pure maths that turns them into a weight change."""

from __future__ import annotations

from .base import Additive, Transform
from .boft import BOFT
from .diag_oft import DiagOFT
from .dora import DoRA
from .full import Full
from .glora import GLoRA
from .ia3 import IA3
from .kohya_oft import KohyaOFT
from .loha import LoHa
from .lokr import LoKr
from .lora import LoRA
from .norm import Norm
from .oft_v2 import OFTv2
from .peft_boft import PeftBOFT
from .replace import Replace

# The union grows by one name for each algorithm.
Layer = BOFT | DiagOFT | DoRA | Full | GLoRA | IA3 | KohyaOFT | LoHa | LoKr | LoRA | Norm | OFTv2 | PeftBOFT | Replace


def rank_of(layer: Layer) -> int | None:
    """Return a layer's rank, of a DoRA its inner layer's, or None where the algorithm has none."""
    rank: int | None = getattr(layer.layer if isinstance(layer, DoRA) else layer, "rank", None)
    return rank


__all__ = [
    "BOFT",
    "IA3",
    "Additive",
    "DiagOFT",
    "DoRA",
    "Full",
    "GLoRA",
    "KohyaOFT",
    "Layer",
    "LoHa",
    "LoKr",
    "LoRA",
    "Norm",
    "OFTv2",
    "PeftBOFT",
    "Replace",
    "Transform",
    "rank_of",
]
