"""Class pictures that the model makes itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from train_models import TinyBackend, config, one_thread, pictures, write_plain

from lorasmith.lora_core.errors import BadConfig, FileProblem
from lorasmith.lora_core.train import class_pictures
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.engine import run

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def sample(prompt: str, seed: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (len(prompt), seed % 256, seed // 256 % 256))


def asked(tmp_path: Path, count: int = 4, **keys: object) -> TrainConfig:
    pictures(tmp_path / "data", {"a": "x"})
    more = {"class_data": str(tmp_path / "class"), "class_prompt": "a cat", "class_pictures": count}
    return config(tmp_path, **{**more, **keys})


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "class").iterdir())


def test_as_many_are_made_as_are_missing(tmp_path: Path) -> None:
    pictures(tmp_path / "class", {"mine": "my cat"})
    made = list(class_pictures.make(asked(tmp_path), sample))
    assert [path.name for path in made] == [f"class-0000{index}.png" for index in range(3)]
    assert names(tmp_path) == [*(path.name for path in made), "mine.png", "mine.txt"]
    assert class_pictures.missing(asked(tmp_path)) == []
    assert class_pictures.missing(asked(tmp_path, 0)) == [] and class_pictures.missing(asked(tmp_path, 2)) == []


def test_interrupted_making_goes_on_with_the_same_pictures(tmp_path: Path) -> None:
    whole = [path.read_bytes() for path in class_pictures.make(asked(tmp_path / "whole"), sample)]
    settings = asked(tmp_path / "parts")
    making = class_pictures.make(settings, sample)
    next(making)
    making.close()
    (tmp_path / "parts" / "class" / "class-00002.png").write_bytes(whole[2])  # as if 1 had been removed
    assert [path.name for path in class_pictures.make(settings, sample)] == ["class-00001.png", "class-00003.png"]
    assert [(tmp_path / "parts" / "class" / f"class-0000{i}.png").read_bytes() for i in range(4)] == whole
    assert len(set(whole)) == 4


def test_pictures_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    class Torn(Image.Image):
        def save(self, fp: Path, *_: object, **__: object) -> None:  # type: ignore[override]
            Path(fp).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(FileProblem, match=r"class-00000\.png: cannot be written \(No space left on device\)"):
        list(class_pictures.make(asked(tmp_path), lambda prompt, seed: Torn()))
    assert names(tmp_path) == []


def test_clips_are_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="'class_pictures' makes no clips"):
        class_pictures.missing(asked(tmp_path, frames=5))


def test_a_run_makes_them_first_and_trains_on_them(tmp_path: Path) -> None:
    events = list(run(asked(tmp_path, steps=3), TinyBackend(), write_plain))
    assert [event.event for event in events[:5]] == ["class_picture"] * 4 + ["start"]
    assert names(tmp_path) == [f"class-0000{index}.png" for index in range(4)]
    again = list(run(asked(tmp_path, steps=3, out=str(tmp_path / "more")), TinyBackend(), write_plain))
    assert again[0].event == "start" and again[-1].event == "done"


def test_a_stop_while_making_them_keeps_what_is_there(tmp_path: Path) -> None:
    settings = asked(tmp_path)
    events = list(run(settings, TinyBackend(), write_plain, stop=lambda: len(names(tmp_path)) >= 2))
    assert [event.event for event in events] == ["class_picture"] * 2 + ["stopped"] and len(names(tmp_path)) == 2
    assert not (tmp_path / "run").exists()
    assert list(run(settings, TinyBackend(), write_plain))[-1].event == "done" and len(names(tmp_path)) == 4
