"""Settings of the whole process that a run may change, and gives back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .config import TrainConfig

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # what cuBLAS needs to add up in one order


@contextmanager
def settings(config: TrainConfig) -> Iterator[None]:
    """Let torch compute as 'tf32' and 'deterministic' say inside the block, and as before after it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    try:
        if config.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        if config.deterministic:
            os.environ.setdefault(_WORKSPACE, ":4096:8")
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        if config.tf32:
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = convolutions
        if config.deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                os.environ.pop(_WORKSPACE, None)
