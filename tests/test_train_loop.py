"""The loop alone: clipping, loss scaling, prior preservation, host threads."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from train_models import TinyBackend, config, one_thread

from lorasmith.lora_core.errors import BadValues
from lorasmith.lora_core.train.cache import Batch
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.inject import attached, trainable_through
from lorasmith.lora_core.train.loop import Step, batch_loss, train
from lorasmith.lora_core.train.objective import Objective
from lorasmith.lora_core.train.state import LossScale, State

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(step: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(step)
    latents, letters = torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 256, generator=generator)
    return [Batch(latents, {"letters": letters}, torch.full((2,), 0.5), ["a.png", "b.png"])]


def steps(
    config: TrainConfig, count: int, backend: TinyBackend | None = None, state: State | None = None
) -> list[Step]:
    backend = backend or TinyBackend()
    objective = Objective(backend.schedule, config)
    return list(islice(train(backend, batches, objective, config, state), count))


class Recorded(torch.optim.SGD):
    """SGD that keeps the gradients it was given."""

    seen: list[float]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self.seen.append(float(torch.cat([g.flatten() for g in gradients]).norm()))


def recorded(run: TrainConfig) -> tuple[State, Recorded]:
    state = State.fresh(TinyBackend().modules(), run)
    optimizer = Recorded([{"params": list(state.parameters()), "peak": 1.0}], lr=1.0)
    optimizer.seen = []
    state.optimizer = optimizer
    return state, optimizer


def test_clipping_clips(tmp_path: Path) -> None:
    loose, tight = config(tmp_path, max_grad_norm=0), config(tmp_path, max_grad_norm=1e-6)
    state, optimizer = recorded(loose)
    (free,) = steps(loose, 1, state=state)
    assert optimizer.seen[0] == pytest.approx(free.norm, rel=1e-5) and free.norm > 1e-3
    state, optimizer = recorded(tight)
    (clipped,) = steps(tight, 1, state=state)
    assert optimizer.seen[0] == pytest.approx(1e-6, rel=1e-3) and clipped.norm == free.norm


def test_the_loss_scale_cancels_out(tmp_path: Path) -> None:
    run = config(tmp_path)
    plain, scaled = recorded(run), recorded(run)
    scaled[0].scale = LossScale(2.0**10, active=True)
    steps(run, 2, state=plain[0])
    steps(run, 2, state=scaled[0])
    assert scaled[1].seen == pytest.approx(plain[1].seen, rel=1e-6)


def test_overflow_halves_the_scale_and_skips_the_step(tmp_path: Path) -> None:
    run = config(tmp_path)
    state, optimizer = recorded(run)
    state.scale = LossScale(2.0**130, active=True)  # loss times this overflows float32
    steps(run, 3, state=state)
    assert state.scale.factor < 2.0**130 and state.step == 3 and len(optimizer.seen) < 3


def test_without_a_scale_an_infinite_gradient_ends_the_run(tmp_path: Path) -> None:
    run = config(tmp_path)
    state, _ = recorded(run)
    state.scale = LossScale(2.0**130)
    with pytest.raises(BadValues, match="step 1: the gradients are not finite"):
        steps(run, 1, state=state)
    assert state.step == 0


def test_the_scale_grows_after_a_calm_stretch() -> None:
    scale = LossScale(4.0, active=True)
    for _ in range(2000):
        scale.grow()
    assert (scale.factor, scale.calm) == (8.0, 0)


def test_nothing_may_be_saved_while_an_optimizer_step_is_under_way(tmp_path: Path) -> None:
    run = config(tmp_path)
    state, optimizer = recorded(run)

    def broken(closure: Any = None) -> None:
        raise KeyboardInterrupt

    optimizer.step = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        steps(run, 1, state=state)
    assert not state.whole


def test_prior_preservation_adds_the_weighted_mean_of_the_class_pictures(tmp_path: Path) -> None:
    run, backend = config(tmp_path), TinyBackend()
    objective = Objective(backend.schedule, run)
    (batch,) = batches(0)

    def loss(weights: list[float]) -> float:
        given = Batch(batch.latents, batch.cond, torch.tensor(weights), batch.names)
        return float(batch_loss(backend, given, objective, run, torch.device("cpu"), "train", 0, 0))

    assert loss([1.0, 0.25]) == pytest.approx(loss([1.0, 0.0]) + 0.25 * loss([0.0, 1.0]))


def test_text_encoder_has_its_own_rate(tmp_path: Path) -> None:
    run = config(
        tmp_path, text_encoder=True, learning_rate=0.01, text_encoder_learning_rate=0.001, scheduler="constant"
    )
    (step,) = steps(run, 1, TinyBackend(text_encoder=True))
    rates = [group["lr"] for group in step.state.optimizer.param_groups]
    assert rates == [0.01, 0.001] and step.lr == 0.01
    ups = {target.component: pair.up.abs().max().item() for target, pair in step.state.factors.items()}
    assert ups["denoiser"] == pytest.approx(0.01, rel=1e-3)  # AdamW's first step is the rate
    assert ups["clip_l"] == pytest.approx(0.001, rel=1e-3)


def test_a_hosts_inference_mode_changes_nothing(tmp_path: Path) -> None:
    run = config(tmp_path)
    expected = [step.loss for step in steps(run, 3)]
    with torch.inference_mode():
        hosted = TinyBackend()

    def in_the_same_thread() -> list[float]:
        with torch.inference_mode(), trainable_through(hosted.net):
            return [step.loss for step in steps(run, 3, hosted)]

    def in_a_fresh_thread() -> list[float]:
        found: list[float] = []

        def work() -> None:
            with trainable_through(hosted.net):
                found.extend(step.loss for step in steps(run, 3, hosted))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found

    assert in_a_fresh_thread() == expected
    assert in_the_same_thread() == expected


def test_the_adapter_is_a_copy(tmp_path: Path) -> None:
    run, backend = config(tmp_path), TinyBackend()
    iterator = train(backend, batches, Objective(backend.schedule, run), run)
    adapter = next(iterator).adapter()
    before = {target: layer.delta() for target, layer in adapter.layers.items()}  # type: ignore[union-attr]
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert all(torch.equal(before[target], layer.delta()) for target, layer in adapter.layers.items())  # type: ignore[union-attr]
    assert {target.module for target in before} == {"conv", "mix", "out"}


def test_the_frozen_models_own_prediction_is_kept(tmp_path: Path) -> None:
    """Prior preservation without class pictures: no loss before the first step, and less drift with it than without."""

    def drift(weight: float) -> float:
        run, backend = config(tmp_path, prior_weight=weight, steps=40, learning_rate=3e-2), TinyBackend()
        objective = Objective(backend.schedule, run)
        (batch,) = batches(0)
        kept = replace(batch, prior=backend.encode_text("class"))
        plain = batch_loss(backend, batch, objective, run, torch.device("cpu"), "train", 0, 0)
        *_, last = train(backend, lambda _: [kept], objective, run)
        with attached(backend.modules(), last.state.factors):
            first = batch_loss(backend, batch, objective, run, torch.device("cpu"), "train", 0, 0)
            whole = replace(run, prior_weight=1.0)
            both = batch_loss(backend, kept, objective, whole, torch.device("cpu"), "train", 0, 0)
        assert float(first) < float(plain)  # it has learnt
        return float(both - first)

    assert drift(0.0) > 2 * drift(3.0) > 0


def test_before_the_first_step_nothing_has_drifted(tmp_path: Path) -> None:
    run, backend = config(tmp_path), TinyBackend()
    (batch,) = batches(0)
    state, objective = State.fresh(backend.modules(), run), Objective(backend.schedule, run)
    losses = []
    with attached(backend.modules(), state.factors):
        for given in (batch, replace(batch, prior=backend.encode_text("class"))):
            losses.append(batch_loss(backend, given, objective, run, torch.device("cpu"), "train", 0, 0))
    assert losses[0] == losses[1]
