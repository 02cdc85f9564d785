"""The moving average, the norm cap and dropout inside the loop, and learning rates."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train_models import TinyBackend, config, one_thread, pictures, same_file, write_plain

from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.train.average import Average
from lorasmith.lora_core.train.cache import Batch
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.engine import run as run_whole
from lorasmith.lora_core.train.loop import Step, train
from lorasmith.lora_core.train.objective import Objective
from lorasmith.lora_core.train.schedule import rate_at, rate_factor
from lorasmith.lora_core.train.state import State

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(step: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(step)
    latents, letters = torch.randn(2, 3, 8, 8, generator=generator), torch.rand(2, 256, generator=generator)
    return [Batch(latents, {"letters": letters}, torch.full((2,), 0.5), ["a.png", "b.png"])]


def steps(run: TrainConfig, count: int, state: State | None = None) -> list[Step]:
    backend = TinyBackend()
    return list(islice(train(backend, batches, Objective(backend.schedule, run), run, state), count))


def deltas(adapter: Adapter) -> dict[Target, Tensor]:
    return {target: layer.delta() for target, layer in adapter.layers.items()}  # type: ignore[union-attr]


def test_the_average_equals_diffusers(tmp_path: Path) -> None:
    training_utils = pytest.importorskip("diffusers.training_utils")
    theirs_of = nn.Parameter(torch.zeros(5))
    ours_of, generator = torch.zeros(5), torch.Generator().manual_seed(0)
    ours, theirs = Average.of(0.5, [ours_of]), training_utils.EMAModel([theirs_of], decay=0.5)
    for _ in range(30):
        values = torch.randn(5, generator=generator)
        ours_of.copy_(values)
        theirs_of.data.copy_(values)
        ours.update([ours_of])
        theirs.step([theirs_of])
        torch.testing.assert_close(ours.tensors[0], theirs.shadow_params[0], rtol=1e-6, atol=1e-7)
    assert ours.decay == 0.5


def test_the_average_is_saved_and_the_raw_weights_go_on(tmp_path: Path) -> None:
    plain, averaged = (steps(config(tmp_path, ema=ema), 5) for ema in (0.0, 0.8))
    assert [step.loss for step in plain] == [step.loss for step in averaged]  # training does not see the average
    state = averaged[-1].state
    raw, saved = deltas(state.adapter(ema=False)), deltas(state.adapter())
    assert all(torch.equal(delta, raw[target]) for target, delta in deltas(plain[-1].state.adapter()).items())
    assert all(not torch.equal(saved[target], raw[target]) for target in raw)
    assert state.average is not None
    with state.as_saved():
        held = [parameter.clone() for parameter in state.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(held, state.average.tensors, strict=True))


def test_a_stopped_run_with_average_and_dropout_ends_in_the_same_file(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "a cat", "b": "a dog", "c": "a cow"})
    options: dict[str, Any] = {"ema": 0.7, "rank_dropout": 0.3, "optimizer": "lion", "accumulate": 2}
    whole, parted = (config(tmp_path, out=str(tmp_path / name), **options) for name in ("whole", "parted"))
    list(run_whole(whole, TinyBackend(), write_plain))
    seen: list[int] = []

    def enough() -> bool:
        return len(seen) >= 3

    for event in run_whole(parted, TinyBackend(), write_plain, stop=enough):
        if event.event == "step":
            seen.append(event.step)
    *_, done = run_whole(parted, TinyBackend(), write_plain, resume=True)
    assert len(seen) == 3 and done.event == "done"
    results = [Path(one.out) / "tiny.safetensors" for one in (whole, parted)]
    assert same_file(*results)
    raw = load_file(Path(whole.out) / "state/000007/state.safetensors")
    saved = load_file(results[0])
    assert not torch.equal(saved["denoiser.mix.up"], raw["denoiser|mix|up"])
    assert torch.equal(saved["denoiser.mix.up"], raw["average|denoiser|mix|up"])


def test_values_come_back_after_an_exception(tmp_path: Path) -> None:
    state = steps(config(tmp_path, ema=0.8), 3)[-1].state
    before = [parameter.detach().clone() for parameter in state.parameters()]
    with pytest.raises(KeyError), state.as_saved():
        raise KeyError
    assert all(torch.equal(one, other) for one, other in zip(before, state.parameters(), strict=True))


def test_a_skipped_step_is_not_averaged(tmp_path: Path) -> None:
    state = steps(config(tmp_path, ema=0.8), 2)[-1].state
    state.skip()
    assert state.average is not None and state.average.count == 2 and state.step == 3


def test_changes_stay_below_the_cap(tmp_path: Path) -> None:
    free = steps(config(tmp_path, learning_rate=0.1), 6)[-1].state
    capped = steps(config(tmp_path, learning_rate=0.1, max_weight_norm=0.2), 6)[-1].state
    norms = [float(delta.norm()) for delta in deltas(capped.adapter()).values()]
    assert max(norms) == pytest.approx(0.2, rel=1e-5)
    assert max(float(delta.norm()) for delta in deltas(free.adapter()).values()) > 0.5


def test_dropout_works_in_training_alone(tmp_path: Path) -> None:
    plain, dropped = config(tmp_path), config(tmp_path, rank_dropout=0.5, module_dropout=0.3)
    ours, theirs = steps(plain, 3), steps(dropped, 3)
    assert ours[0].loss == theirs[0].loss  # nothing to drop yet
    assert ours[-1].loss != theirs[-1].loss
    assert [step.loss for step in steps(dropped, 3)] == [step.loss for step in theirs]
    assert theirs[-1].state.dropout.place is None


@pytest.mark.parametrize(
    ("scheduler", "keys", "more"),
    [
        ("constant", {}, {}),
        ("linear", {}, {}),
        ("cosine", {}, {}),
        ("cosine_with_restarts", {"cycles": 3}, {"num_cycles": 3}),
        ("polynomial", {"power": 2.0, "min_rate": 1e-7 / 2}, {"power": 2.0}),
    ],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_rates_equal_diffusers(scheduler: str, keys: dict[str, Any], more: dict[str, Any], warmup: int) -> None:
    optimization = pytest.importorskip("diffusers.optimization")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    name = f"{scheduler}_with_warmup" if scheduler == "constant" else scheduler
    theirs = optimization.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=23, **more)
    run = TrainConfig("m", "d", "o", steps=23, warmup=warmup, scheduler=scheduler, **keys)
    for step in range(24):
        assert 2.0 * rate_at(run, step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "cosine_with_restarts", "polynomial", "rex"])
def test_every_schedule_begins_at_one_and_ends_at_its_least_rate(scheduler: str) -> None:
    found = [rate_factor(scheduler, step, 50, 5, 2, 1.5, 0.1) for step in range(51)]
    assert found[5] == 1.0 and found[50] == pytest.approx(0.1) and min(found[5:]) >= 0.1 and found[:2] == [0.0, 0.2]


def test_rex_by_hand() -> None:
    assert [rate_factor("rex", step, 4) for step in range(5)] == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0])
