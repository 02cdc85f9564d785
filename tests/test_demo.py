"""The model that comes along, and the demo on it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lorasmith.examples import demo
from lorasmith.lora_core.errors import FileProblem

pytest.importorskip("diffusers")
pytest.importorskip("peft")
ROOT = Path(__file__).resolve().parents[1]


def test_the_tiny_model_loads_as_it_is_and_follows_its_prompts() -> None:
    """In a process of its own, since the model's scripts are no package; the full check is its --check."""
    folder = ROOT / "examples" / "tiny-sd"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 12_000_000
    script = "import check, pathlib; print(check.report(pathlib.Path('.'), count=40)['colour and shape'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) >= 0.8  # of 40 pictures; 200 give a closer figure, see its README


def test_the_demo_goes_through_and_leaves_what_it_says(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = demo.run(str(tmp_path / "demo"), lines.append, steps=(3, 2))
    report = "\n".join(lines)
    assert re.search(r"loss on 6 unseen pictures of the subject: 0\.\d+ before, 0\.\d+ after", report)
    assert re.search(r"converted kohya -> diffusers: \d+ layers, relative error 0\.0e\+00", report)
    assert re.search(r"merged both: exact, rank 32, relative error \d\.\de", report)
    assert re.search(r"mean change of pictures, of 255: the subject's \d+\.\d, unrelated prompts \d+\.\d", report)
    assert Image.open(folder / "before_after.png").width > 800 and (folder / "loss.png").exists()
    for name in ("mushroom/mushroom", "house/house", "mushroom_diffusers", "mushroom_back", "merged"):
        assert (folder / f"{name}.safetensors").stat().st_size > 100_000
    with pytest.raises(FileProblem, match="is there already; choose another --out"):
        demo.run(str(folder), lines.append)


def test_without_a_name_the_first_free_folder_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo._free_folder(None).name == "lorasmith-demo"
    (tmp_path / "lorasmith-demo").mkdir()
    assert demo._free_folder(None).name == "lorasmith-demo-2"
