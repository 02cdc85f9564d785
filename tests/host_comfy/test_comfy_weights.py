"""Weights inside a real ComfyUI: equal to its own loader's bit for bit, and untouched by training."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import comfy_server
import pytest

pytestmark = pytest.mark.host("comfyui")


@pytest.fixture(scope="module")
def findings(host: Path, base: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    try:
        python = comfy_server.python()
    except comfy_server.Unavailable as reason:
        pytest.skip(str(reason))
    places = [host, root, comfy_server.checkpoint(), base / "models/loras", base / "input/squares"]
    output = tmp_path_factory.mktemp("inside")
    command = [python, str(Path(__file__).with_name("in_process.py")), *map(str, places), str(output)]
    half = ["--fp16-unet", "--fp16-text-enc"]
    done = subprocess.run(
        [*command, *half], env=comfy_server.environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "changed"),
    [("first", 225), ("second", 225), ("bf16", 225), ("comfy-names", 3), ("dense", 5), ("native", 2)],
)
def test_patched_weights_equal_those_of_the_hosts_own_loader(findings: dict, name: str, changed: int) -> None:
    assert findings[name] == {"equal": True, "changed": changed, "dtypes": ["torch.float16"]}


def test_training_on_inference_weights_leaves_nothing_behind(findings: dict) -> None:
    trained = findings["trained"]
    assert trained["moved"] == trained["layers"] > 250
    assert trained["inference"] > 600
    assert not trained["attached"]
    assert trained["weights"] and trained["random"]
