"""A run that can be trusted: killed, out of memory, out of space, coming apart."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train_models import TinyBackend, config, one_thread, pictures, same_file, write_plain

from lorasmith.lora_core.adapter import Adapter
from lorasmith.lora_core.errors import BadConfig, BadValues, FileProblem
from lorasmith.lora_core.train import checkpoint
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.engine import Event, run
from lorasmith.lora_core.train.watch import Watch

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[1]
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {name: f"picture {name}" for name in "abcde"}, (24, 16))
    return tmp_path


def go(
    settings: TrainConfig,
    backend: TinyBackend | None = None,
    write: Any = write_plain,
    resume: bool = False,
    stop_at: int | None = None,
) -> list[Event]:
    """Run, and ask to stop after a step."""
    events: list[Event] = []
    for event in run(
        settings, backend or TinyBackend(), write, resume, lambda: events[-1:] and events[-1].step == stop_at
    ):
        events.append(event)
    return events


def messages(events: list[Event]) -> list[str]:
    return [event.message or "" for event in events if event.event == "warning"]


class Breaking(TinyBackend):
    """Raises out of memory in some calls; can save memory by computing anew."""

    def __init__(self, *calls: int):
        super().__init__()
        self.calls, self.count, self.switched = calls, 0, list[bool]()

    def __call__(self, noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.count += 1
        if self.count in self.calls:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().__call__(noisy, t, cond)


class Checkpointing(Breaking):
    def checkpointing(self, on: bool) -> None:
        self.switched.append(on)


def test_without_memory_the_switches_that_help_are_tried_and_the_steps_stay_the_same(tmp: Path) -> None:
    keys = {"batch_size": 4, "on_out_of_memory": "retry", "gradient_checkpointing": "off"}
    go(config(tmp, **keys, out=str(tmp / "good")))
    backend = Checkpointing(3, 4, 5)
    events = go(config(tmp, **keys), backend)
    assert backend.switched == [True]
    assert messages(events) == [
        "step 3: the device's memory is full; gradient checkpointing is on from here",
        "step 3: the device's memory is full; each batch goes through the model in 2 pieces from here",
        "step 3: the device's memory is full; each batch goes through the model in 4 pieces from here",
    ]
    assert [event.step for event in events if event.event == "step"] == list(range(1, 8))
    ours, theirs = (load_file(tmp / name / "tiny.safetensors") for name in ("run", "good"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_without_memory_the_steps_before_are_saved_and_the_switch_is_named(tmp: Path) -> None:
    with pytest.raises(BadConfig, match="step 3: the device's memory is full; what helps: 'gradient_checkpointing'"):
        go(config(tmp, gradient_checkpointing="off"), Checkpointing(3))
    assert [path.name for path in (tmp / "run/state").iterdir()] == ["000002"]


def test_auto_measures_a_step_and_keeps_what_fits(tmp: Path) -> None:
    start = next(event for event in go(config(tmp), Checkpointing()) if event.event == "start").data()
    assert start["gradient_checkpointing"] is False and start["activations"] > 0
    start = next(event for event in go(config(tmp, out=str(tmp / "b")), Checkpointing(1)) if event.event == "start")
    assert start.data()["gradient_checkpointing"] is True


def test_a_full_disk_at_a_checkpoint_is_told_and_the_run_goes_on(tmp: Path) -> None:
    def write(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> None:
        if path.name == "tiny-000002.safetensors":
            raise FULL
        write_plain(adapter, path, facts)

    go(config(tmp, out=str(tmp / "good")))
    events = go(config(tmp, checkpoint_every=2), write=write)
    assert [event.step for event in events if event.event == "checkpoint"] == [4, 6] and events[-1].event == "done"
    (warning,) = messages(events)
    assert warning.startswith("no checkpoint at this step: ") and "No space left" in warning
    assert same_file(tmp / "good/tiny.safetensors", tmp / "run/tiny.safetensors")


def test_a_full_disk_for_the_state_leaves_the_one_before(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checkpoint.store.save

    def save(path: Path, *given: Any, **more: Any) -> Any:
        if ".new-000004" in str(path):
            raise FileProblem(f"{path}: no space left on the disk; nothing was written", file=path)
        return whole(path, *given, **more)

    monkeypatch.setattr(checkpoint.store, "save", save)
    events = go(config(tmp, checkpoint_every=2, steps=5))
    assert len(messages(events)) == 1 and events[-1].event == "done"
    assert sorted(path.name for path in (tmp / "run/state").iterdir()) == ["000002", "000005"]


def test_a_full_disk_at_the_end_is_one_error_and_the_adapter_is_elsewhere(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp))
    go(config(tmp, out=str(tmp / "good")))

    def write(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> None:
        if path.parent.name == "run":
            raise FULL
        write_plain(adapter, path, facts)

    with pytest.raises(FileProblem, match=r"tiny\.safetensors: cannot be written .*; the trained adapter is "):
        go(config(tmp), write=write)
    assert same_file(tmp / "good/tiny.safetensors", tmp / "lorasmith-tiny-000007.safetensors")


class Exploding(TinyBackend):
    """Learns from step 40 on that the world is upside down."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __call__(self, noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.count += 1
        return super().__call__(noisy, t, cond) * (100.0 if self.count > 40 else 1.0)


def test_a_run_that_comes_apart_goes_back_to_where_it_was_good(tmp: Path) -> None:
    settings = config(tmp, steps=80, checkpoint_every=20, learning_rate=1e-4)
    seen: list[Event] = []
    with pytest.raises(BadValues, match=r"the loss is .* on [a-e]\.png, far above .*the result is that of step \d+, "):
        for event in run(settings, Exploding(), write_plain):
            seen.append(event)
    error = seen[-1]
    good = error.data()["error"]["good_step"]
    assert error.event == "error" and error.step == good and 20 <= good <= 40
    assert checkpoint.steps(tmp / "run/state")[-1] == good  # nothing later is left to go on from
    reached = max(event.step for event in seen if event.event == "step")
    assert 41 <= reached <= 50
    go(config(tmp, steps=80, learning_rate=1e-4, out=str(tmp / "good")), stop_at=good)
    assert same_file(tmp / "good/tiny.safetensors", tmp / "run/tiny.safetensors")


def test_losses_that_vary_by_their_timestep_are_no_explosion() -> None:
    watch = Watch()
    heavy = [1 / (0.001 + torch.rand(1, generator=torch.Generator().manual_seed(n)).item()) ** 2 for n in range(2000)]
    assert not any(watch.follow(loss) for loss in heavy)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import conftest
from pathlib import Path
from train_models import TinyBackend, config, write_plain
from lorasmith.lora_core.train.engine import run
import torch
torch.set_num_threads(1)
settings = config(Path({tmp!r}), steps=400, checkpoint_every=1, keep=2)
for event in run(settings, TinyBackend(), write_plain, resume={resume}):
    print(event.step, flush=True)
"""


def test_killed_at_any_moment_a_loadable_state_is_left(tmp: Path) -> None:
    folder, reached = tmp / "run/state", 0
    for attempt in range(4):
        text = KILLED.format(tests=str(ROOT / "tests"), tmp=str(tmp), resume=bool(checkpoint.steps(folder)))
        with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= reached + 3:
                    break
            time.sleep(0.013 * attempt)
            process.send_signal(signal.SIGKILL)
        newest = checkpoint.steps(folder)[-1]
        assert newest >= reached + 2
        assert json.loads((folder / f"{newest:06d}/state.json").read_text())["step"] == newest
        assert load_file(folder / f"{newest:06d}/state.safetensors")
        for path in (tmp / "run").glob("tiny-*.safetensors"):
            load_file(path)
        reached = newest
    settings = config(tmp, steps=400, checkpoint_every=1, keep=2)
    assert next(run(settings, TinyBackend(), write_plain, resume=True)).step == reached


def test_a_state_that_was_moved_aside_comes_back(tmp: Path) -> None:
    go(config(tmp), stop_at=3)
    (newest,) = (tmp / "run/state").iterdir()
    newest.rename(newest.with_name(f".old-{newest.name}"))  # killed between two renames
    assert go(config(tmp), resume=True)[-1].event == "done"


def test_the_log_goes_on_in_a_line_of_its_own_after_a_kill(tmp: Path) -> None:
    go(config(tmp), stop_at=3)
    with (tmp / "run/log.jsonl").open("a") as log:
        log.write('{"event": "st')
    go(config(tmp), resume=True)
    lines = (tmp / "run/log.jsonl").read_text().splitlines()
    whole = [line for line in lines if line != '{"event": "st']
    assert len(whole) == len(lines) - 1 and all(json.loads(line) for line in whole)


MIXES: list[dict[str, Any]] = [
    {"scheduler": "rex", "ema": 0.9, "accumulate": 2},
    {"scheduler": "cosine_with_restarts", "cycles": 2, "dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.2},
    {"scheduler": "polynomial", "power": 2.0, "caption_dropout": 0.5, "shuffle_captions": True, "batch_size": 2},
    {"scheduler": "linear", "prior_from_base": True, "min_snr_gamma": 5.0, "pyramid_noise": 2, "optimizer": "prodigy"},
    {"scheduler": "constant", "buckets": True, "bucket_step": 8, "bucket_min": 8, "optimizer": "lion", "epochs": 2},
]


@pytest.mark.parametrize("keys", MIXES, ids=lambda keys: keys["scheduler"])
def test_stopped_and_resumed_equals_uninterrupted(tmp: Path, keys: dict[str, Any]) -> None:
    go(config(tmp, **keys, out=str(tmp / "whole")))
    go(config(tmp, **keys), stop_at=4)
    assert go(config(tmp, **keys), resume=True)[-1].event == "done"
    assert same_file(tmp / "whole/tiny.safetensors", tmp / "run/tiny.safetensors")


def test_epochs_decide_the_steps(tmp: Path) -> None:
    done = go(config(tmp, epochs=3, batch_size=2, accumulate=2))[-1]  # 15 pictures, 4 a step
    assert (done.step, done.steps) == (4, 4)


def test_settings_of_the_process_are_given_back(tmp: Path) -> None:
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    events = run(config(tmp, tf32=True, deterministic=True), TinyBackend(), write_plain)
    next(events)
    assert torch.get_float32_matmul_precision() == "high" and torch.are_deterministic_algorithms_enabled()
    events.close()  # type: ignore[attr-defined]
    assert before == (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())


def test_every_option_is_read_somewhere() -> None:
    places = [ROOT / "lora_core/train", ROOT / "convert"]
    files = [
        file for place in places for file in place.rglob("*.py") if file.name not in ("config.py", "checkpoint.py")
    ]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files).replace(
        "config.prompts", "config.validation_prompt"
    )
    assert [item.name for item in fields(TrainConfig) if f"config.{item.name}" not in text] == []
