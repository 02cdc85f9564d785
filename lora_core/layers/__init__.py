"""Adapter algorithms, one file each: the tensors of a layer and the pure maths that turns them into a weight change."""

from __future__ import annotations

from .base import Additive
from .full import Full
from .lora import LoRA
from .norm import Norm

Layer = LoRA | Full | Norm  # the union grows by one name for each algorithm

__all__ = ["Additive", "Full", "LoRA", "Layer", "Norm"]
