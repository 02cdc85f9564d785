"""What a run needs, told before its first step: memory by part, time, and which settings make it fit.

Activations are probed: one forward and backward pass of the real model on a batch as the run has it. On a GPU the peak
of the allocator is measured; elsewhere the tensors that the forward pass keeps for the backward pass are counted.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GIB = 2**30
RESERVE = 0.08  # share of the device's memory that libraries and fragments take
PER_PARAMETER = {
    "adamw": 16,
    "adafactor": 9,
    "muon": 12,
    "lion": 12,
    "prodigy": 24,
}  # float32 bytes: value, gradient, state
OTHERS = 16


@dataclass(frozen=True)
class Probe:
    """One measured step."""

    activations: int  # bytes at the peak, beyond weights
    seconds: float


@dataclass(frozen=True)
class Budget:
    """What a run needs, in bytes and seconds."""

    denoiser: int  # weights on the device while training
    encoders: int  # text encoders and autoencoder, there while pictures and captions are encoded
    encoders_stay: bool  # they are on the device while training too
    adapter: int  # values, gradients and optimizer state
    probe: Probe
    cache: int  # latents and embeddings, in ordinary memory or on disk
    file: int  # of the result
    steps: int
    memory: int  # of the device; 0 = unknown

    @property
    def training(self) -> int:
        """The device's memory while training."""
        return self.denoiser + self.adapter + self.probe.activations + (self.encoders if self.encoders_stay else 0)

    @property
    def peak(self) -> int:
        """The device's memory at the peak of the run."""
        encoding = self.encoders + self.denoiser
        return max(self.training, encoding)

    @property
    def fits(self) -> bool:
        """Whether the device's memory will do, a reserve left out."""
        return not self.memory or self.peak <= self.memory * (1 - RESERVE)

    def data(self) -> dict[str, Any]:
        """Return all of it, JSON-ready, sizes in bytes."""
        return {
            "denoiser": self.denoiser,
            "encoders": self.encoders,
            "adapter": self.adapter,
            "activations": self.probe.activations,
            "training": self.training,
            "peak": self.peak,
            "memory": self.memory,
            "fits": self.fits,
            "cache": self.cache,
            "file": self.file,
            "seconds_per_step": self.probe.seconds,
            "seconds": self.probe.seconds * self.steps,
        }


def probe(step: Callable[[], Tensor], parameters: Iterable[nn.Parameter], device: torch.device) -> Probe:
    """Run one loss and its backward pass, and measure it; gradients are dropped again.

    Args:
        step: returns a batch's loss.
        parameters: what is trained.
        device: where it runs.
    """
    given = list(parameters)
    began = time.perf_counter()
    try:
        activations = _on_gpu(step, device) if device.type == "cuda" else _counted(step)
    finally:
        for parameter in given:
            parameter.grad = None
    return Probe(activations, time.perf_counter() - began)


def _on_gpu(step: Callable[[], Tensor], device: torch.device) -> int:
    with torch.no_grad():
        step()  # moves the model to where it computes, which is no part of the activations
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step().backward()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _counted(step: Callable[[], Tensor]) -> int:
    """Return the bytes that a forward pass keeps, each storage once; weights are not counted."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step()
    found = sum(kept.values())
    loss.backward()  # type: ignore[no-untyped-call]
    return found


def weights(models: Iterable[nn.Module]) -> int:
    """Return the bytes of models' parameters and buffers."""
    return sum(t.numel() * t.element_size() for model in models for t in (*model.parameters(), *model.buffers()))


def adapter(parameters: Iterable[nn.Parameter], optimizer: str) -> int:
    """Return the bytes of what is trained, with its gradients and the optimizer's state."""
    return sum(parameter.numel() for parameter in parameters) * PER_PARAMETER.get(optimizer, OTHERS)


def memory(device: torch.device) -> int:
    """Return the device's whole memory in bytes, 0 where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def is_full(error: RuntimeError) -> bool:
    """Say whether an error means that a device's memory is full; the devices' errors differ."""
    told = str(error).lower()
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in told or "can't allocate memory" in told


def clear() -> None:
    """Give back what is no longer needed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available(device: torch.device) -> int:
    """Return the memory in bytes that this process can still take on the device, 0 where the system does not say."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + own)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return memory(device)


def advice(budget: Budget, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that make a run fit, the cheapest first, each with what it saves; empty where it fits."""
    return [] if budget.fits else switches(budget, settings)


def switches(budget: Budget, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that lower what a run needs, the cheapest first, each with what it saves.

    Args:
        budget: what the run needs.
        settings: its configuration, as JSON.
    """
    found = []
    rows, accumulate = settings.get("batch_size", 1), settings.get("accumulate", 1)
    activations = budget.probe.activations
    if budget.encoders_stay and settings.get("offload_encoders") is False:
        found.append(f"'offload_encoders': true{_saves(budget.encoders)}")
    if settings.get("gradient_checkpointing") in (False, "off", "auto"):
        found.append(f"'gradient_checkpointing': 'on'{_saves(int(0.7 * activations))} and takes a third more time")
    if rows > 1:
        found.append(
            f"'batch_size': 1 with 'accumulate': {rows * accumulate}{_saves(activations * (rows - 1) // rows)}"
        )
    if budget.denoiser and settings.get("quantize") == "none":
        found.append(f"'quantize': 'int8' or 'fp8'{_saves(budget.denoiser // 2)} of the frozen weights")
    if budget.denoiser and not settings.get("swap_blocks"):
        found.append(f"'swap_blocks' keeps up to {size(int(0.9 * budget.denoiser))} of the weights on the CPU; slower")
    return found or ["a lower 'resolution'"]


def _saves(count: int) -> str:
    return f" saves about {size(count)}" if count else " saves some"


def text(budget: Budget, settings: Mapping[str, Any]) -> list[str]:
    """Return a budget for people, line by line."""
    where = "of it on the device while training" if budget.encoders_stay else "moved off the device before training"
    lines = [
        f"frozen denoiser      {size(budget.denoiser):>10}",
        f"encoders             {size(budget.encoders):>10}  {where}",
        f"adapter, optimizer   {size(budget.adapter):>10}",
        f"activations          {size(budget.probe.activations):>10}  measured on one step",
        f"peak                 {size(budget.peak):>10}"
        + (f"  of {size(budget.memory)}: {'fits' if budget.fits else 'does not fit'}" if budget.memory else ""),
        f"caches               {size(budget.cache):>10}  in {'files' if settings.get('cache') == 'disk' else 'memory'}",
        f"result               {size(budget.file):>10}",
        f"time                 {duration(budget.probe.seconds * budget.steps):>10}  {budget.steps} steps",
    ]
    return [*lines, *(f"to make it fit: {one}" for one in advice(budget, settings))]


def size(count: int) -> str:
    """Return a number of bytes for people.

    >>> size(3 * 2**30), size(5_000_000)
    ('3.00 GiB', '4.8 MiB')
    """
    return f"{count / GIB:.2f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(3700), duration(75)
    ('1 h 01 min', '1 min 15 s')
    """
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
