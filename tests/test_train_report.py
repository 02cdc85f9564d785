"""The page that a run leaves: one file, drawn from the log, of pictures that are in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from train_models import TinyBackend, config, one_thread, pictures, write_plain

from lorasmith.lora_core.train.engine import run
from lorasmith.lora_core.train.grid import grid
from lorasmith.lora_core.train.report import Curve, loss_curves, read_log, svg

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {"a": "a <b>bold</b> cat", "b": "a dog"})
    keys = {"validation_prompt": ["a cat", "a dog & co"], "sample_every": 3, "sample_count": 2, "checkpoint_every": 3}
    list(run(config(tmp_path, **keys, validation_data=str(tmp_path / "data")), TinyBackend(), write_plain))
    return tmp_path / "run"


def test_the_page_holds_everything_itself(out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and "http://www.w3.org" in page
    assert page.count("data:image/jpeg;base64,") == 3 + 2  # previews of steps 0, 3 and 6, and two pictures
    assert "a &lt;b&gt;bold&lt;/b&gt; cat" in page and "<b>bold" not in page
    assert "7 of 7 steps" in page and "unseen pictures" in page and "learning_rate" in page
    assert str(out.parent) not in page


def test_the_curve_is_a_picture_of_its_own(out: Path) -> None:
    drawing = ElementTree.fromstring((out / "loss.svg").read_text(encoding="utf-8"))
    lines = [part for part in drawing if part.tag.endswith("polyline")]
    assert len(lines) == 3 and len(lines[0].attrib["points"].split()) == 7


def test_previews_are_one_grid_of_prompts_and_seeds(out: Path) -> None:
    sheets = sorted(path.name for path in (out / "samples").iterdir())
    assert sheets == ["tiny-000000.png", "tiny-000003.png", "tiny-000006.png"]
    with Image.open(out / "samples" / sheets[0]) as sheet:
        assert sheet.size == (2 * (8 + 6) + 6, 2 * (8 + 22 + 6) + 6)


def test_labels_of_any_letters_are_drawn() -> None:
    picture = Image.new("RGB", (64, 64))
    assert grid([("猫 and a very long prompt that does not fit " * 5, [picture])]).size == (76, 98)


def test_a_line_that_was_cut_off_is_left_out_and_a_step_taken_twice_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    steps = [{"event": "step", "step": 1, "loss": 9.0}, {"event": "step", "step": 1, "loss": 2.0}]
    log.write_text("\n".join(map(json.dumps, steps)) + '\n{"event": "st')
    assert loss_curves(list(read_log(log)))[0].points == [(1, 2.0)]
    assert list(read_log(tmp_path / "none")) == []


def test_a_drawing_of_nothing_and_of_one_point_is_a_drawing() -> None:
    for points in ([], [(1.0, 0.0)]):
        ElementTree.fromstring(svg([Curve("loss", "red", points)], "loss"))
