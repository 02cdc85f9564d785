"""Layers of every algorithm inside a real ComfyUI: patched weights are the trainer's, whatever its own loader does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import comfy_server
import pytest

pytestmark = pytest.mark.host("comfyui")
ROUNDING = 2e-7  # of float32, relative to a weight's largest number
ODD = ("blocks", "widened", "modulation", "stored", "as the host")  # findings that are no algorithm's
ALGORITHMS = (
    *("lora", "lora-flat", "lora-odd", "loha", "loha-core", "lokr", "lokr-odd", "glora", "full", "norm", "biases"),
    *("dora-out", "dora-in", "dora-peft", "dora-loha", "dora-lokr", "replace", "ia3-out", "ia3-in", "ia3-absolute"),
    *("oft", "oft-rescale", "oft-kohya", "oft2", "oft2-shared", "boft", "boft-peft"),
)


@pytest.fixture(scope="module")
def findings(host: Path, root: Path) -> dict:
    try:
        python = comfy_server.python()
    except comfy_server.Unavailable as reason:
        pytest.skip(str(reason))
    script = str(Path(__file__).with_name("algorithms_in_process.py"))
    done = subprocess.run(
        [python, script, str(host), str(root)],
        env=comfy_server.environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_every_algorithm_is_looked_at(findings: dict) -> None:
    assert sorted(findings) == sorted((*ALGORITHMS, *ODD))


@pytest.mark.parametrize("name", (*ALGORITHMS, "blocks", "modulation"))
@pytest.mark.parametrize("way", ["whole", "offloaded"])
def test_patched_weights_are_the_trainers_at_every_strength(findings: dict, name: str, way: str) -> None:
    assert findings[name][way] <= ROUNDING
    assert findings[name]["moved"]


def test_what_the_host_computes_rightly_is_the_same_bit_for_bit(findings: dict) -> None:
    same = findings["as the host"]
    assert len(same) == 5 and all(same.values()), same


def test_a_trained_output_factor_multiplies_the_bias_too(findings: dict) -> None:
    names = [name.rpartition(".attn1.")[2] for name in findings["ia3-absolute"]["moved"]]
    assert names == ["to_out.0.bias", "to_out.0.weight", "to_q.weight"]


def test_only_the_rows_of_a_layer_move(findings: dict) -> None:
    """The wanted weights hold the old rows elsewhere, so that equality says it; here: both fused weights took part."""
    assert [name.rpartition(".")[0].removeprefix("diffusion_model.") for name in findings["blocks"]["moved"]] == [
        "double_blocks.0.img_attn.qkv",
        "single_blocks.0.linear1",
    ]


def test_a_weight_can_be_widened(findings: dict) -> None:
    assert max(findings["widened"].values()) <= ROUNDING


def test_narrow_storage_rounds_once(findings: dict) -> None:
    """Half a step where rounding goes to the nearest number, a whole one where ComfyUI rounds by chance."""
    assert findings["stored"]["fp16"] <= 0.5 and findings["stored"]["bf16"] <= 0.5 and findings["stored"]["fp8"] <= 1.0
