"""Several processes on one run: each takes its share of every micro-batch, and gradients are averaged once a step.

`accelerate launch -m lorasmith train CONFIG` starts them and picks device and backend; here is only what a run has to
know of it. One process is a world of size 1, which needs no accelerate.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import BadConfig

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    state: Any = None  # accelerate's PartialState; None when alone

    @property
    def leads(self) -> bool:
        """Whether this process writes files and events."""
        return self.rank == 0

    @property
    def device(self) -> torch.device | None:
        """Where this process computes; None when alone, where the configuration says it."""
        return None if self.state is None else self.state.device

    def share(self, rows: Sequence[T], kinds: int = 1) -> list[T]:
        """Return this process's rows of a micro-batch: of each of its `kinds` equal parts the same slice.

        >>> World(1, 2).share(["a", "b", "A", "B"], kinds=2)
        ['b', 'B']
        """
        part = len(rows) // kinds
        own = part // self.size
        starts = [kind * part + self.rank * own for kind in range(kinds)]
        return [row for start in starts for row in rows[start : start + own]]

    def share_of(self, rows: int) -> int:
        """Return how many of so many rows are this process's."""
        return rows // self.size

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by their means over all processes, in place, in one exchange."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, flag: bool) -> bool:
        """Tell whether any process says yes."""
        if self.size == 1:
            return flag
        said = torch.tensor(float(flag), device=self.device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return bool(said)

    def close(self) -> None:
        """Let the processes part."""
        if self.state is not None:
            self.state.destroy_process_group()

    def wait(self) -> None:
        """Wait for all processes."""
        if self.state is not None:
            self.state.wait_for_everyone()


def world() -> World:
    """Return this process's place, as accelerate's launcher has set it; raises BadConfig without accelerate."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return World()
    try:
        state = importlib.import_module("accelerate").PartialState(cpu=_on_cpu())
    except ImportError as error:
        command = f"{Path(sys.executable).name} -m pip install accelerate"
        text = f"several processes need accelerate, which is not installed in {sys.executable}; run '{command}'"
        raise BadConfig(text) from error
    return World(state.process_index, state.num_processes, state)


def _on_cpu() -> bool:
    """Say whether the launcher asked for the CPU, or there is nothing else."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
