"""The WebUIs' own LoRA readers on our kohya files: A1111's for SD 1.5, 2.1 and SDXL, Forge's for these and FLUX.1."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from lorasmith import convert
from lorasmith.convert.keymap import keymap
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import LoRA

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
UNETS = {"sd15": "sd15.ldm.unet", "sd21": "sd21.ldm.unet", "sdxl": "sdxl.ldm.unet", "flux": "flux-dev.bfl"}
SD_DEPTHS = {
    "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2,
    "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1,
}  # fmt: skip
CONFIGS = {  # what Forge's UNets hold as their configuration, as far as it makes key names of it
    "sd15": SD_DEPTHS,
    "sd21": SD_DEPTHS,
    "sdxl": {
        "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    },
    "flux": {"depth": 19, "depth_single_blocks": 38, "hidden_size": 3072},
}  # fmt: skip
NOT_ADAPTED = ("_embedding", "embed_tokens", "shared", "text_projection", "relative_attention_bias")  # no linears there


def adapter(family: str) -> Adapter:
    """A LoRA of rank 2 on every linear and convolution."""
    layers = {}
    for part in keymap(family).family.components:
        for name, module in keymap(family).modules(part.id).items():
            if len(module.shape) > 1 and not name.endswith(NOT_ADAPTED):
                out, inner, *kernel = module.shape
                down, up = torch.ones(2, inner, *kernel), torch.ones(out, 2, *[1] * len(kernel))
                layers[Target(part.id, name)] = LoRA(down, up, 1.0)
    return Adapter(family, layers)


def listed(name: str, fused: bool = False) -> dict[str, list[int]]:
    """The weights of a model by module; torch's fused attention as [3, width, width], without what is inside of it."""
    keys = json.loads(gzip.decompress((MODELS / f"{name}.json.gz").read_bytes()))["keys"]
    found = {key.removesuffix(".weight"): shape for key, shape in keys.items() if key.endswith(".weight")}
    for key, shape in keys.items():
        if key.endswith(".attn.in_proj_weight"):
            found[key.removesuffix(".in_proj_weight")] = [3, shape[1], shape[1]]
            del found[key.replace("in_proj_weight", "out_proj")]
    return found


def ran(script: str, host: Path, entries: list[dict], folder: Path) -> list[dict]:
    lists = folder / "lists.json"
    lists.write_text(json.dumps(entries), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(host), str(lists)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("webui")
    return {family: convert.write(adapter(family), folder / f"{family}.safetensors", "kohya") for family in UNETS}


@pytest.fixture(scope="module")
def a1111(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    host = Path(os.environ.get("A1111_PATH") or "~/stable-diffusion-webui").expanduser()
    clip_l = [0, "transformer.text_model.", listed("sd15.ldm.clip_l")]
    encoders = {
        "sd15": [clip_l],
        "sd21": [[0, "model.", listed("sd21.ldm.openclip_h")]],
        "sdxl": [clip_l, [1, "model.", listed("sdxl.ldm.openclip_g")]],
    }
    entries = [
        {
            "file": str(files[family]),
            "sdxl": family == "sdxl",
            "parts": [["model", "diffusion_model.", listed(UNETS[family])], *parts],
        }
        for family, parts in encoders.items()
    ]
    found = ran("a1111_keys.py", host, entries, tmp_path_factory.mktemp("a1111"))
    return dict(zip(encoders, found, strict=True))


@pytest.mark.host("a1111")
@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a1111_matches_every_key_with_a_module_of_its_shape_and_reads_its_scale(a1111: dict, family: str) -> None:
    found = a1111[family]
    assert found["missed"] == []
    assert len(found["modules"]) == len(adapter(family).layers)
    for key, (up, down, shape, scale) in found["modules"].items():
        assert (up[0], prod(down[1:]), scale) == (shape[0], prod(shape[1:]), 0.5), key


@pytest.fixture(scope="module")
def forge(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    host = Path(os.environ["FORGE_PATH"]).expanduser()
    entries = [
        {
            "file": str(files[family]),
            "huggingface_repo": "black-forest-labs/FLUX.1-dev" if family == "flux" else family,
            "config": CONFIGS[family],
            "unet": {f"diffusion_model.{name}.weight": shape for name, shape in listed(UNETS[family]).items()},
            "clip": {
                f"{part.id}.transformer.{name}.weight": module.shape
                for part in keymap(family).family.components
                if part.id != "denoiser"
                for name, module in keymap(family).modules(part.id).items()
            },
        }
        for family in UNETS
    ]
    found = ran("forge_keys.py", host, entries, tmp_path_factory.mktemp("forge"))
    return dict(zip(UNETS, found, strict=True))


@pytest.mark.host("forge")
@pytest.mark.parametrize("family", UNETS)
def test_forge_matches_every_key_with_a_weight_of_its_shape(forge: dict, family: str) -> None:
    assert forge[family] == {"patched": len(adapter(family).layers), "missed": [], "wrong": []}
