"""The training loop, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import Adapter
from ..errors import BadValues
from . import noise, timesteps
from .cache import Batch
from .config import TrainConfig
from .inject import Weights, attached, switched_off, weights_like
from .objective import Objective
from .protocols import Cond, Denoiser
from .schedule import rate_at
from .state import State
from .world import World

Batches = Callable[[int], Sequence[Batch]]  # step (0-based) -> its micro-batches; a pure function


@dataclass(frozen=True, eq=False)
class Step:
    """One finished optimizer step."""

    index: int  # 1 for the first
    loss: float  # mean over the micro-batches, before the step, unrounded
    lr: float  # the denoiser's rate in this step
    norm: float  # of the gradients before clipping
    seconds: float
    names: Sequence[str]  # of its pictures, for messages
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
    world: World | None = None,
) -> Generator[Step, None, None]:
    """Train and yield after every optimizer step; stop iterating to stop training.

    `state` goes on from where it stands. `weights` is the host's way to a frozen weight (see `inject.attached`). The
    layers are detached when the iterator ends, is closed, or fails. In a `world` of several processes each is given its
    own batches, and all take the same step. Raises BadValues when a loss or gradient is not finite, before that step
    has changed anything.
    """
    modules = denoiser.modules()
    state, world = State.fresh(modules, config) if state is None else state, world or World()
    with attached(modules, state.factors, weights, state.dropout):
        while state.step < config.steps:
            yield _step(denoiser, batches, objective, config, state, world)


def _step(
    denoiser: Denoiser, batches: Batches, objective: Objective, config: TrainConfig, state: State, world: World
) -> Step:
    began, index, row, losses, names = time.perf_counter(), state.step, 0, [], list[str]()
    rate = state.set_rate(rate_at(config, index))

    with torch.inference_mode(False), torch.enable_grad():  # a host's thread may be in inference mode
        micro_batches = batches(index)
        for batch in micro_batches:
            share = 1 / len(micro_batches) if batch.share is None else batch.share
            with state.dropout.at(index, row if batch.rows is None else batch.rows[0]):
                loss = batch_loss(denoiser, batch, objective, config, state.device, "train", index, row)
                (loss * (state.scale.factor * share)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach() * share)
            names += (name for name in batch.names if name not in names)
            row += len(batch.latents)

        mean = _together(world, state, losses)
        if not math.isfinite(mean):
            raise BadValues(_diverged(index + 1, f"the loss is {mean}", names), step=index + 1)
        norm = _clip(state, config.max_grad_norm)
        if math.isfinite(norm):
            state.advance()
        elif state.scale.shrink():
            state.skip()
        else:
            raise BadValues(_diverged(index + 1, "the gradients are not finite", names), step=index + 1)

    return Step(index + 1, mean, rate, norm, time.perf_counter() - began, names, state)


def _together(world: World, state: State, losses: Sequence[Tensor]) -> float:
    """Return the step's loss, and average it and the gradients over all processes; the only wait for the device."""
    if world.size == 1:
        return math.fsum(torch.stack(list(losses)).tolist())
    for parameter in state.parameters():
        if parameter.grad is None:  # a layer that was dropped here and not elsewhere
            parameter.grad = torch.zeros_like(parameter)
    total = torch.stack(list(losses)).sum()
    world.average([total, *(parameter.grad for parameter in state.parameters() if parameter.grad is not None)])
    return float(total)


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

    The draws belong to positions, not to batches: 4 micro-batches of 1 see what 1 batch of 4 sees. `row` is the first
    one's, where the batch does not say all of them.
    """
    rows = range(row, row + len(batch.latents)) if batch.rows is None else batch.rows
    seen = _seen(batch, objective, config, device, purpose, step, rows)
    cond = {name: tensor.to(device) for name, tensor in batch.cond.items()}
    mask = None if batch.mask is None else batch.mask.to(device)
    losses = objective.losses(denoiser(seen.noisy, seen.t, cond), seen.clean, seen.noise, seen.t, mask)
    loss = (losses * batch.weights.to(device)).sum()
    if batch.prior is None:
        return loss
    return loss + config.prior_weight * _drift(denoiser, seen, batch.prior, objective)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a batch shows the model."""

    clean: Tensor  # (B, C, ..., h, w)
    noise: Tensor  # that the target is made of
    noisy: Tensor  # the model's input
    t: Tensor  # (B,)


def _seen(
    batch: Batch,
    objective: Objective,
    config: TrainConfig,
    device: torch.device,
    purpose: str,
    step: int,
    rows: Sequence[int],
) -> _Seen:
    shape = batch.latents.shape[1:]
    drawn = [noise.draw(shape, config, purpose, step, r) for r in rows]
    given = [noise.perturbed(one, config, purpose, step, r) for one, r in zip(drawn, rows, strict=True)]
    t = torch.stack([timesteps.draw(objective, shape, purpose, step, r) for r in rows]).to(device)
    clean = batch.latents.to(device)
    noisy = objective.noisy(clean, torch.stack(given).to(device), t)
    return _Seen(clean, torch.stack(drawn).to(device), noisy, t)


def _drift(denoiser: Denoiser, seen: _Seen, cond: Cond, objective: Objective) -> Tensor:
    """Return how far the adapter moves the model's prediction for other conditioning: the mean squared difference.

    Prior preservation without class pictures: the frozen model is the teacher, on the same noisy latents.
    """
    given = {name: tensor.to(seen.clean.device) for name, tensor in cond.items()}
    with torch.no_grad(), switched_off(denoiser.modules()):
        wanted = denoiser(seen.noisy, seen.t, given).float()
    found = denoiser(seen.noisy, seen.t, given).float()
    return ((found - wanted).square().flatten(1).mean(1) * objective.weight(seen.t)).mean()


def _clip(state: State, max_norm: float) -> float:
    """Undo the loss scale, clip the gradients to a total norm, and return the norm before clipping."""
    gradients = [p.grad for p in state.parameters() if p.grad is not None]
    if state.scale.factor != 1:
        torch._foreach_mul_(gradients, 1 / state.scale.factor)
    return float(nn.utils.clip_grad_norm_(state.parameters(), max_norm or math.inf))


def _diverged(step: int, what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"step {step}: {what} on {shown}; lower 'learning_rate' or set 'precision' to 'fp32' or 'bf16'"
