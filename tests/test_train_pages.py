"""The pages for those who come from other trainers name settings that exist, and every flag of the scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from lorasmith.lora_core.train.config import CHOICES, TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("from-diffusers.md", "from-kohya.md")]
SETTINGS = {item.name for item in fields(TrainConfig)}
WORDS = {word for options in CHOICES.values() for word in options} | {"batch_size"}
SCRIPTS = ("text_to_image/train_text_to_image_lora.py", "dreambooth/train_dreambooth_lora.py")


def rows(page: Path) -> list[list[str]]:
    lines = (line for line in page.read_text().splitlines() if line.startswith("| ") and "---" not in line)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines][1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_right_hand_side_exists(page: Path) -> None:
    for _, ours, _ in rows(page):
        for word in re.findall(r"`([^`]+)`", ours):
            key = re.match(r'"?(\w+)"?', word)
            ours_too = word.startswith(("lorasmith ", "--resume")) or word == '"lokr"'
            assert ours_too or (key and key.group(1) in SETTINGS), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_are_configurations(page: Path) -> None:
    for text in re.findall(r"```json\n(.*?)```", page.read_text(), re.S):
        TrainConfig.from_json(json.loads(text))
    for text in re.findall(r'`(\{?"[^`]*")', page.read_text()):
        for key in re.findall(r'"(\w+)":', text):
            assert key in SETTINGS | {"betas", "eps"}, key


@pytest.mark.skipif("DIFFUSERS_PATH" not in os.environ, reason="DIFFUSERS_PATH is no checkout of diffusers")
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_of_the_guides_scripts_is_mapped(script: str) -> None:
    source = (Path(os.environ["DIFFUSERS_PATH"]) / "examples" / script).read_text()
    page = PAGES[0].read_text()
    absent = [flag for flag in re.findall(r'"(--[a-z_0-9]+)"', source) if f"`{flag}`" not in page]
    assert not absent


def test_the_options_page_is_the_generated_one() -> None:
    script = ROOT / "docs" / "generate_options.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "training-options.md").read_text(), re.M)
    assert listed == [item.name for item in fields(TrainConfig)]
