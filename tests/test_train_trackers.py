"""Trackers follow every event of a run and are closed, and what is not installed is told before it begins."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from train_models import TinyBackend, config, one_thread, pictures, write_plain

from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train import hub
from lorasmith.lora_core.train.engine import run

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {"a": "a cat", "b": "a dog"})
    return tmp_path


class Wandb:
    """Stands in for the package wandb."""

    Error = RuntimeError

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.logged, self.finished = refuses, list[tuple[int, dict[str, Any]]](), 0

    def init(self, **given: Any) -> Any:
        if self.refuses:
            raise self.Error("api_key not configured\nmore")
        return SimpleNamespace(log=lambda found, step: self.logged.append((step, found)), finish=self.finish)

    def Image(self, path: str) -> str:  # noqa: N802
        return f"image {Path(path).name}"

    def finish(self) -> None:
        self.finished += 1


def test_wandb_is_told_every_number_and_closed(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    keys = {"report_to": ["wandb"], "validation_prompt": "a cat", "sample_every": 7}
    list(run(config(tmp, **keys), TinyBackend(), write_plain))
    assert [step for step, found in wandb.logged if "loss" in found] == list(range(1, 8))
    assert [found["preview"] for _, found in wandb.logged if "preview" in found] == [
        "image tiny-000000.png",
        "image tiny-000007.png",
    ]
    assert wandb.finished == 1


def test_wandb_is_closed_when_the_run_is(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
    events = run(config(tmp, report_to=["wandb"]), TinyBackend(), write_plain)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert wandb.finished == 1


def test_what_a_tracker_refuses_is_told_before_the_first_step(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb(refuses=True))  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="wandb, which says: api_key not configured; log in with 'wandb login'"):
        list(run(config(tmp, report_to=["wandb"]), TinyBackend(), write_plain))
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="'report_to' names wandb, which is not installed in .*pip install wandb"):
        list(run(config(tmp, report_to=["wandb"], out=str(tmp / "b")), TinyBackend(), write_plain))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_gets_an_event_file(tmp: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    list(run(config(tmp, report_to=["tensorboard"]), TinyBackend(), write_plain))
    found = EventAccumulator(str(tmp / "run/tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 8))


def test_an_upload_that_fails_is_a_warning(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    library = SimpleNamespace(
        utils=SimpleNamespace(validate_repo_id=lambda name: None),
        errors=SimpleNamespace(HFValidationError=ValueError, HfHubHTTPError=ValueError),
        get_token=lambda: "token",
        HfApi=lambda: SimpleNamespace(create_repo=offline),
    )
    monkeypatch.setattr(hub, "_library", lambda: library)
    *_, warning, done = run(config(tmp, push_to_hub="me/cats"), TinyBackend(), write_plain)
    assert done.event == "done" and warning.event == "warning"
    assert "me/cats: could not be uploaded (no network); the result is" in (warning.message or "")


def test_an_upload_needs_a_login_before_the_run(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(
        utils=SimpleNamespace(validate_repo_id=lambda name: None),
        errors=SimpleNamespace(HFValidationError=ValueError),
        get_token=lambda: None,
    )
    monkeypatch.setattr(hub, "_library", lambda: library)
    with pytest.raises(BadConfig, match="'push_to_hub' needs a login"):
        list(run(config(tmp, push_to_hub="me/cats"), TinyBackend(), write_plain))
    assert not (tmp / "run").exists()


def test_the_card_names_base_and_trigger(tmp: Path) -> None:
    told = hub.card(config(tmp, trigger_word="sks cat", model="a/sd15"), {"architecture": "sd15"}, ["samples/x.png"])
    assert told.startswith("---\nbase_model: a/sd15\n") and 'instance_prompt: "sks cat"' in told
    assert "Write `sks cat` in the prompt." in told
