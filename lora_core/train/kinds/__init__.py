"""Adapter algorithms under training, one file each: trained tensors, forward pass, and the layer that they end as."""

from __future__ import annotations

from .base import Site, Trained
from .dora import TrainedDoRA
from .loha import TrainedLoHa
from .lokr import TrainedLoKr
from .lora import TrainedLoRA

__all__ = ["Site", "Trained", "TrainedDoRA", "TrainedLoHa", "TrainedLoKr", "TrainedLoRA"]
