"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import Adapter
from ..errors import BadValues
from . import rng
from .cache import Batch
from .config import TrainConfig
from .inject import Weights, attached, weights_like
from .objective import Objective
from .protocols import Denoiser
from .schedule import rate_factor
from .state import State

Batches = Callable[[int], Sequence[Batch]]  # step (0-based) -> its micro-batches; a pure function


@dataclass(frozen=True, eq=False)
class Step:
    """One finished optimizer step."""

    index: int  # 1 for the first
    loss: float  # mean over the micro-batches, before the step, unrounded
    lr: float  # the denoiser's rate in this step
    norm: float  # of the gradients before clipping
    seconds: float
    state: State  # live: changes when the iteration goes on

    def adapter(self) -> Adapter:
        """Return a copy of what is trained so far."""
        return self.state.adapter()


def train(
    denoiser: Denoiser,
    batches: Batches,
    objective: Objective,
    config: TrainConfig,
    state: State | None = None,
    weights: Weights = weights_like,
) -> Iterator[Step]:
    """Train and yield after every optimizer step; stop iterating to stop training.

    `state` goes on from where it stands. `weights` is the host's way to a frozen weight (see `inject.attached`). The
    layers are detached when the iterator ends, is closed, or fails. Raises BadValues when a loss or gradient is not
    finite, before that step has changed anything.
    """
    modules = denoiser.modules()
    state = State.fresh(modules, config) if state is None else state
    with attached(modules, state.factors, weights):
        while state.step < config.steps:
            yield _step(denoiser, batches, objective, config, state)


def _step(denoiser: Denoiser, batches: Batches, objective: Objective, config: TrainConfig, state: State) -> Step:
    began, index, row, losses, names = time.perf_counter(), state.step, 0, [], list[str]()
    rate = state.set_rate(rate_factor(config.scheduler, index, config.steps, config.warmup))

    with torch.inference_mode(False), torch.enable_grad():  # a host's thread may be in inference mode
        micro_batches = batches(index)
        for batch in micro_batches:
            loss = batch_loss(denoiser, batch, objective, config, state.device, "train", index, row)
            (loss * (state.scale.factor / len(micro_batches))).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            names += batch.names
            row += len(batch.names)

        mean = torch.stack(losses).double().mean().item()  # the only wait for the device in a step
        if not math.isfinite(mean):
            raise BadValues(_diverged(index + 1, f"the loss is {mean}", names), step=index + 1)
        norm = _clip(state, config.max_grad_norm)
        if math.isfinite(norm):
            state.advance()
        elif state.scale.shrink():
            state.skip()
        else:
            raise BadValues(_diverged(index + 1, "the gradients are not finite", names), step=index + 1)

    return Step(index + 1, mean, rate, norm, time.perf_counter() - began, state)


def batch_loss(
    denoiser: Denoiser,
    batch: Batch,
    objective: Objective,
    config: TrainConfig,
    device: torch.device,
    purpose: str,
    step: int,
    row: int,
) -> Tensor:
    """Return a micro-batch's loss; noise and timesteps are drawn by (seed, purpose, step, position in the step).

    The draws belong to positions, not to batches: 4 micro-batches of 1 see what 1 batch of 4 sees.
    """
    rows = range(row, row + len(batch.latents))
    shape = batch.latents.shape[1:]
    noise = torch.stack([_noise(shape, config, purpose, step, r) for r in rows]).to(device)
    t = torch.tensor([rng.integer(objective.timesteps, config.seed, f"{purpose} timestep", step, r) for r in rows])
    clean, t = batch.latents.to(device), t.to(device)
    cond = {name: tensor.to(device) for name, tensor in batch.cond.items()}
    predicted = denoiser(objective.noisy(clean, noise, t), t, cond)
    return (objective.losses(predicted, clean, noise, t) * batch.weights.to(device)).sum()


def _noise(shape: torch.Size, config: TrainConfig, purpose: str, step: int, row: int) -> Tensor:
    """Return noise (C, h, w); the offset is a constant per channel (N. Guttenberg, "Diffusion with offset noise")."""
    noise = rng.normal(shape, config.seed, f"{purpose} noise", step, row)
    if config.noise_offset:
        noise += config.noise_offset * rng.normal((shape[0], 1, 1), config.seed, f"{purpose} offset", step, row)
    return noise


def _clip(state: State, max_norm: float) -> float:
    """Undo the loss scale, clip the gradients to a total norm, and return the norm before clipping."""
    gradients = [p.grad for p in state.parameters() if p.grad is not None]
    if state.scale.factor != 1:
        torch._foreach_mul_(gradients, 1 / state.scale.factor)
    return float(nn.utils.clip_grad_norm_(state.parameters(), max_norm or math.inf))


def _diverged(step: int, what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"step {step}: {what} on {shown}; lower 'learning_rate' or set 'precision' to 'fp32' or 'bf16'"
