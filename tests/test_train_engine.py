"""Whole runs on a model of three layers: exact resuming, stopping, saving, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_models import TinyBackend, config, one_thread, pictures, same_file, write_plain

from lorasmith.lora_core.adapter import Adapter
from lorasmith.lora_core.errors import BadConfig, BadDataset, BadValues, FileProblem
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.engine import Event, run

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {name: f"picture {name}" for name in "abcde"}, (24, 16))
    return tmp_path


def go(config: TrainConfig, resume: bool = False, stop_at: int | None = None, disturb: bool = False) -> list[Event]:
    """Run, ask to stop after a step, and use the global generator in between if told so."""
    events: list[Event] = []
    backend = TinyBackend(config.text_encoder)
    done = {"step": 0}
    for event in run(config, backend, write_plain, resume, lambda: done["step"] == stop_at):
        events.append(event)
        done["step"] = event.step
        if disturb:
            torch.rand(3)
    return events


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if event.event == "step" and event.loss is not None]


def numbered(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("tiny-*"))


VARIED = {"accumulate": 2, "batch_size": 2, "random_flip": True, "noise_offset": 0.1, "min_snr_gamma": 5, "warmup": 2}


@pytest.mark.parametrize("text_encoder", [False, True])
@pytest.mark.parametrize("at", [1, 2, 4, 6])  # 5 pictures, 4 a step: all but none of these ends an epoch
def test_stopped_anywhere_and_resumed_equals_uninterrupted(tmp: Path, at: int, text_encoder: bool) -> None:
    keys = {**VARIED, "text_encoder": text_encoder}
    whole = config(tmp, **keys, out=str(tmp / "whole"))
    parts = config(tmp, **keys, out=str(tmp / "parts"))
    expected = go(whole)
    torch.manual_seed(123)
    first = go(parts, stop_at=at, disturb=True)
    assert first[-1].event == "stopped" and first[-1].step == at
    torch.manual_seed(321)
    second = go(parts, resume=True, disturb=True)
    assert losses(first) + losses(second) == losses(expected)
    assert same_file(tmp / "whole/tiny.safetensors", tmp / "parts/tiny.safetensors")
    assert same_file(tmp / "whole/state/000007/state.safetensors", tmp / "parts/state/000007/state.safetensors")
    assert len(load_file(tmp / "parts/state/000007/state.safetensors")) == (8 if text_encoder else 6) * 4


def test_stopping_and_resuming_at_every_step(tmp: Path) -> None:
    expected = losses(go(config(tmp, out=str(tmp / "whole"))))
    found = [loss for step in range(7) for loss in losses(go(config(tmp), resume=step > 0, stop_at=step + 1))]
    assert found == expected
    assert same_file(tmp / "whole/tiny.safetensors", tmp / "run/tiny.safetensors")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp: Path) -> None:
    expected = losses(go(config(tmp, out=str(tmp / "whole"))))
    killed = config(tmp, checkpoint_every=2)

    class Killed(TinyBackend):
        def __call__(self, noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
            if (Path(killed.out) / "state/000004").exists():
                for path in (Path(killed.out) / "tiny.safetensors", Path(killed.out) / ".new"):
                    path.unlink(missing_ok=True)
                raise KeyboardInterrupt
            return super().__call__(noisy, t, cond)

    with pytest.raises(KeyboardInterrupt):
        list(run(killed, Killed(), write_plain))
    (Path(killed.out) / "state/.new-000005").mkdir()  # half a save is no state
    assert losses(go(killed, resume=True)) == expected[4:]
    assert same_file(tmp / "whole/tiny.safetensors", tmp / "run/tiny.safetensors")


def test_accumulation_sees_what_a_larger_batch_sees(tmp: Path) -> None:
    wide = go(config(tmp, batch_size=4, out=str(tmp / "wide")))
    split = go(config(tmp, batch_size=1, accumulate=4, out=str(tmp / "split")))
    torch.testing.assert_close(losses(wide), losses(split), rtol=1e-4, atol=1e-5)
    ours, theirs = (load_file(tmp / name / "tiny.safetensors") for name in ("wide", "split"))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_events_and_log(tmp: Path) -> None:
    keys = {
        "checkpoint_every": 2,
        "validation_prompt": "picture a",
        "sample_every": 3,
        "validation_data": str(tmp / "data"),
    }
    events = go(config(tmp, **keys))
    kinds = [(event.event, event.step) for event in events if event.event != "step"]
    assert kinds == [
        ("start", 0), ("sample", 0), ("checkpoint", 2), ("sample", 3), ("checkpoint", 4), ("sample", 6),
        ("checkpoint", 6), ("done", 7),
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp / "run/log.jsonl").read_text().splitlines()]
    assert lines == [event.data() for event in events]
    steps = [line for line in lines if line["event"] == "step"]
    assert all({"step", "steps", "loss", "lr", "seconds", "eta"} <= line.keys() for line in steps)
    assert steps[0]["lr"] == 0.01 and steps[-1]["eta"] == 0
    done = lines[-1]
    assert Path(done["path"]) == tmp / "run/tiny.safetensors" and Path(done["path"]).exists()
    assert done["validation_loss"] != done["validation_loss_before"] == lines[0]["validation_loss_before"]
    assert all(Path(line["path"]).exists() for line in lines if line["event"] == "sample")


def test_losses_fall_when_two_pictures_are_learnt_by_heart(tmp: Path) -> None:
    data = pictures(tmp / "two", {"a": "x", "b": "y"})
    keys = {"steps": 60, "batch_size": 4, "rank": 8, "validation_data": str(data), "scheduler": "constant"}
    done = go(config(tmp, **keys, data=str(data)))[-1].data()
    assert done["validation_loss"] < 0.8 * done["validation_loss_before"]


def test_validation_is_the_same_number_twice(tmp: Path) -> None:
    keys = {"validation_data": str(tmp / "data"), "steps": 2}
    first, second = (go(config(tmp, **keys, out=str(tmp / name)))[-1].data() for name in ("p", "q"))
    assert first["validation_loss"] == second["validation_loss"]


def test_keep_drops_the_oldest(tmp: Path) -> None:
    others = ["tiny-10-years.safetensors", "tiny-2-000010.safetensors", "tiny-999999.safetensors"]
    (tmp / "run").mkdir()
    for name in others:
        (tmp / "run" / name).write_bytes(b"mine")
    go(config(tmp, checkpoint_every=1, keep=2))
    assert numbered(tmp / "run") == ["tiny-000005.safetensors", "tiny-000006.safetensors", *others]
    assert sorted(path.name for path in (tmp / "run/state").iterdir()) == ["000006", "000007"]
    go(config(tmp, checkpoint_every=1, keep=0, out=str(tmp / "all")))
    assert len(list((tmp / "all").glob("tiny-*"))) == 6


def test_a_stop_file_ends_the_run_and_is_consumed(tmp: Path) -> None:
    events: Iterator[Event] = run(config(tmp), TinyBackend(), write_plain)
    seen = []
    for event in events:
        seen.append(event)
        if event.event == "step" and event.step == 3:
            (tmp / "run/stop").write_text("")
    assert (seen[-1].event, seen[-1].step) == ("stopped", 3)
    assert not (tmp / "run/stop").exists() and (tmp / "run/tiny.safetensors").exists()
    assert go(config(tmp), resume=True)[-1].event == "done"


def test_closing_the_iterator_saves_and_detaches(tmp: Path) -> None:
    backend = TinyBackend()
    events = run(config(tmp), backend, write_plain)
    for event in events:
        if event.step == 2:
            break
    assert "forward" in backend.net["mix"].__dict__
    events.close()  # type: ignore[attr-defined]
    assert "forward" not in backend.net["mix"].__dict__
    assert (tmp / "run/tiny.safetensors").exists() and (tmp / "run/state/000002").exists()
    assert json.loads((tmp / "run/log.jsonl").read_text().splitlines()[-1])["event"] == "stopped"


class Failing(TinyBackend):
    """Breaks in the forward pass of a step."""

    def __init__(self, at: int, error: Exception | None):
        super().__init__()
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, noisy: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.at and self.error is not None:
            raise self.error
        return super().__call__(noisy, t, cond) * (float("nan") if self.calls == self.at else 1)


def test_a_loss_that_is_nan_ends_the_run_with_the_good_steps_saved(tmp: Path) -> None:
    go(config(tmp, out=str(tmp / "good")), stop_at=2)
    seen: list[Event] = []
    backend = Failing(4, None)
    with pytest.raises(
        BadValues, match=r"step 4: the loss is nan on [a-e]\.png; lower 'learning_rate'.*step 2, the last good one"
    ):
        for event in run(config(tmp), backend, write_plain):
            seen.append(event)
    assert (seen[-1].event, seen[-1].step) == ("error", 2)  # no loss has told yet that step 3 was good
    assert seen[-1].data()["error"]["kind"] == "BadValues"
    assert same_file(tmp / "good/tiny.safetensors", tmp / "run/tiny.safetensors")
    assert "forward" not in backend.net["mix"].__dict__


def test_an_unexpected_failure_keeps_the_steps_before_it(tmp: Path) -> None:
    with pytest.raises(RuntimeError, match="the host broke"):
        list(run(config(tmp), Failing(4, RuntimeError("the host broke")), write_plain))
    assert (tmp / "run/state/000003").exists()
    assert go(config(tmp), resume=True)[-1].event == "done"


def test_half_an_optimizer_step_is_not_saved(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = torch.optim.AdamW.step, []

    def interrupted(self: torch.optim.AdamW, closure: Any = None) -> Any:
        calls.append(whole(self, closure))
        if len(calls) == 3:
            raise KeyboardInterrupt

    go(config(tmp, out=str(tmp / "good")), stop_at=2)
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run(config(tmp, checkpoint_every=2), TinyBackend(), write_plain))
    assert [path.name for path in (tmp / "run/state").iterdir()] == ["000002"]
    assert not (tmp / "run/tiny.safetensors").exists()
    assert same_file(tmp / "good/tiny.safetensors", tmp / "run/tiny-000002.safetensors")


def test_factors_that_are_not_finite_are_not_saved(tmp: Path) -> None:
    with pytest.raises(BadValues, match="step 2: the loss is nan"):
        list(run(config(tmp, learning_rate=1e39, checkpoint_every=1), TinyBackend(), write_plain))
    assert not (tmp / "run/tiny.safetensors").exists() and not (tmp / "run/state").exists()


def test_a_full_device_is_told_in_one_line(tmp: Path) -> None:
    with pytest.raises(
        BadConfig, match="step 2: the device's memory is full; what helps: 'batch_size': 1 with 'accumulate': 2"
    ):
        list(run(config(tmp, batch_size=2), Failing(2, torch.cuda.OutOfMemoryError()), write_plain))


def test_a_failure_before_the_first_step_writes_nothing(tmp: Path) -> None:
    (tmp / "data/a.png").write_bytes((tmp / "data/a.png").read_bytes()[:200])
    with pytest.raises(BadDataset, match=r"a\.png"):
        list(run(config(tmp), TinyBackend(), write_plain))
    assert not (tmp / "run/tiny.safetensors").exists() and not (tmp / "run/state").exists()


def test_what_is_there_is_not_overwritten(tmp: Path) -> None:
    go(config(tmp), stop_at=2)
    before = (tmp / "run/tiny.safetensors").read_bytes()
    with pytest.raises(FileProblem, match=r"state: is there already; resume it, or choose another 'out'"):
        go(config(tmp))
    assert (tmp / "run/tiny.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny-000004.safetensors", "samples/tiny-000007.png"])
def test_a_file_that_the_run_would_replace_is_told_before_it_begins(tmp: Path, name: str) -> None:
    mine = tmp / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    keys = {"checkpoint_every": 2, "sample_every": 7, "validation_prompt": "picture a"}
    with pytest.raises(FileProblem) as caught:
        go(config(tmp, **keys))
    assert caught.value.message == f"{mine}: is there already; move it away, or choose another 'out'"
    assert mine.read_bytes() == b"mine" and not (tmp / "run/state").exists()


def test_a_resumed_run_replaces_and_drops_its_own_files_alone(tmp: Path) -> None:
    keys = {"checkpoint_every": 2, "keep": 1}
    go(config(tmp, **keys), stop_at=3)
    mine = tmp / "run/tiny-000006.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(FileProblem, match=r"tiny-000006\.safetensors: is there already; move it away"):
        go(config(tmp, **keys), resume=True)
    assert mine.read_bytes() == b"mine"
    mine.rename(tmp / "run/tiny-000001.safetensors")
    go(config(tmp, **keys), resume=True)
    assert numbered(tmp / "run") == ["tiny-000001.safetensors", "tiny-000006.safetensors"]
    assert (tmp / "run/tiny-000001.safetensors").read_bytes() == b"mine"


def test_a_run_killed_while_it_writes_a_checkpoint_goes_on(tmp: Path) -> None:
    def killed(adapter: Adapter, path: Path, metadata: Mapping[str, str]) -> None:
        write_plain(adapter, path, metadata)
        if path.name == "tiny-000002.safetensors":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run(config(tmp, checkpoint_every=2, keep=1), TinyBackend(), killed))
    assert go(config(tmp, checkpoint_every=2, keep=1), resume=True)[-1].event == "done"
    assert numbered(tmp / "run") == ["tiny-000006.safetensors"]


def test_nothing_to_resume(tmp: Path) -> None:
    with pytest.raises(FileProblem, match="holds no state to resume from"):
        go(config(tmp), resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "'rank' was 2 and is now 4; set 'rank' back, or train to another 'out'"),
        ({"steps": 9}, "'steps' was 7 and is now 9"),
        ({"learning_rate": 0.02}, "'learning_rate' was 0.01 and is now 0.02"),
        ({"name": "other"}, "'name' was 'tiny' and is now 'other'"),
        ({"instance_prompt": "changes nothing, all have captions", "checkpoint_every": 3, "keep": 1}, None),
    ],
)
def test_another_run_is_not_resumed(tmp: Path, change: dict[str, Any], message: str | None) -> None:
    go(config(tmp), stop_at=2)
    if message is None:
        assert go(config(tmp, **change), resume=True)[-1].event == "done"
        return
    with pytest.raises(BadConfig) as caught:
        go(config(tmp, **change), resume=True)
    assert message in caught.value.message


def test_other_pictures_or_another_model_are_not_resumed(tmp: Path) -> None:
    go(config(tmp), stop_at=2)
    backend = TinyBackend()
    backend.fingerprint = "other"
    with pytest.raises(BadConfig, match="was trained on another model"):
        list(run(config(tmp), backend, write_plain, resume=True))
    (tmp / "data/a.txt").write_text("another caption")
    with pytest.raises(BadConfig, match="pictures or captions have changed"):
        go(config(tmp), resume=True)


def test_steps_may_be_raised_under_a_constant_rate(tmp: Path) -> None:
    whole = go(config(tmp, scheduler="constant", out=str(tmp / "whole")))
    first = go(config(tmp, scheduler="constant", steps=3))
    assert losses(first) + losses(go(config(tmp, scheduler="constant"), resume=True)) == losses(whole)


def test_a_broken_state_names_its_folder(tmp: Path) -> None:
    go(config(tmp), stop_at=2)
    (tmp / "run/state/000002/state.safetensors").write_bytes(b"")
    with pytest.raises(FileProblem, match="000002: cannot be read .* remove this folder"):
        go(config(tmp), resume=True)


WHOLE = {"config": {}, "model": "", "data": "", "facts": {}, "step": 2, "scale": 1.0, "calm": 0}


@pytest.mark.parametrize("text", ["{}", "[]", "null", "[" * 100_000, *(
    json.dumps({**WHOLE, key: None}) for key in WHOLE
)])  # fmt: skip
def test_a_state_that_lacks_something_names_its_folder(tmp: Path, text: str) -> None:
    go(config(tmp), stop_at=2)
    (tmp / "run/state/000002/state.json").write_text(text)
    with pytest.raises(FileProblem, match="000002: cannot be read .* remove this folder to resume from the one before"):
        go(config(tmp), resume=True)


@pytest.mark.parametrize("change", ["missing", "misshapen"])
def test_a_state_whose_factors_do_not_fit_names_its_folder(tmp: Path, change: str) -> None:
    go(config(tmp), stop_at=2)
    file = tmp / "run/state/000002/state.safetensors"
    tensors = load_file(file)
    down = tensors.pop("denoiser|mix|down")
    save_file(tensors if change == "missing" else {**tensors, "denoiser|mix|down": down[:1].clone()}, file)
    with pytest.raises(FileProblem, match=r"000002: cannot be read \(no tensor 'denoiser\|mix\|down' of shape"):
        go(config(tmp), resume=True)


def test_metadata_reaches_the_writer(tmp: Path) -> None:
    go(config(tmp))
    with safe_open(tmp / "run/tiny.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["lorasmith.step"] == "7" and str(tmp) not in facts["lorasmith.config"]
    assert json.loads(facts["lorasmith.tags"])["picture a"] == 1


def test_small_pictures_are_warned_of(tmp: Path) -> None:
    events = go(config(tmp, resolution=24))
    (warning,) = [event for event in events if event.event == "warning"]
    assert warning.message == "5 pictures are smaller than 'resolution' and are enlarged: a.png, b.png, c.png"


def test_captions_that_are_cut_are_warned_of(tmp: Path) -> None:
    events = run(config(tmp), TinyBackend(), write_plain, cuts=lambda caption: caption > "picture b")
    (warning,) = [event for event in events if event.event == "warning"]
    text = "3 captions are longer than the text encoder reads and are cut: c.png, d.png, e.png"
    assert warning.message == text
