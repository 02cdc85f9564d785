"""Diffusers' own training script, run as it is shipped, for the benchmarks that compare with it.

DIFFUSERS_PATH names a checkout of diffusers; `train_text_to_image_lora.py` is taken from there and not changed. Of
torchvision it needs seven transforms; where torchvision is missing, a stand-in of them over Pillow is put in its place.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = "examples/text_to_image/train_text_to_image_lora.py"
STAND_IN = """
import random
from enum import Enum

import numpy as np
import torch
from PIL import Image


class InterpolationMode(Enum):
    NEAREST = 0
    LANCZOS = 1
    BILINEAR = 2
    BICUBIC = 3


def Compose(steps):
    def run(value):
        for step in steps:
            value = step(value)
        return value
    return run


def Lambda(function):
    return function


def Resize(side, interpolation):
    def run(image):
        scale = side / min(image.size)
        size = tuple(max(side, int(length * scale)) for length in image.size)
        return image if size == image.size else image.resize(size, Image.Resampling(interpolation.value))
    return run


def _cut(image, left, top, side):
    return image.crop((left, top, left + side, top + side))


def CenterCrop(side):
    return lambda image: _cut(image, round((image.width - side) / 2), round((image.height - side) / 2), side)


def RandomCrop(side):
    def run(image):
        left = torch.randint(0, image.width - side + 1, (1,)).item()
        return _cut(image, left, torch.randint(0, image.height - side + 1, (1,)).item(), side)
    return run


def RandomHorizontalFlip():
    return lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


def ToTensor():
    return lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255


def Normalize(mean, std):
    return lambda tensor: (tensor - mean[0]) / std[0]
"""
RUNNER = """
import json, runpy, sys, time
import datasets, peft, torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import CLIPTextModel, CLIPTokenizer

torch.set_num_threads(1)
out, stand_in, times = sys.argv[1], sys.argv[2], []
sys.path.append(stand_in)  # only now: the libraries above ask whether torchvision is there, and mean all of it
register_optimizer_step_post_hook(lambda *_: times.append(time.process_time()))
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open(out, "w") as file:
    json.dump(times, file)
"""


def script() -> Path | None:
    """Return diffusers' script, None where DIFFUSERS_PATH does not name a checkout."""
    path = Path(os.environ.get("DIFFUSERS_PATH") or "nowhere") / SCRIPT
    return path if path.is_file() else None


def as_imagefolder(pictures: Path, folder: Path) -> Path:
    """Copy a folder of pictures with their `.txt` into the form that `datasets` reads, captions in metadata.jsonl."""
    folder.mkdir(parents=True)
    lines = []
    for picture in sorted(pictures.glob("*.png")):
        (folder / picture.name).write_bytes(picture.read_bytes())
        lines.append(json.dumps({"file_name": picture.name, "text": picture.with_suffix(".txt").read_text().strip()}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def run_script(work: Path, model: Path, data: Path, **flags: Any) -> list[float]:
    """Run the script on the CPU, one thread; return the process's CPU seconds at the end of each step.

    `flags` are its options; True stands for one without a value. The result is `work/pytorch_lora_weights.safetensors`.
    """
    found = script()
    assert found is not None
    work.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("torchvision") is None:
        (work / "stand_in/torchvision").mkdir(parents=True, exist_ok=True)
        (work / "stand_in/torchvision/__init__.py").touch()
        (work / "stand_in/torchvision/transforms.py").write_text(STAND_IN, encoding="utf-8")
    (work / "runner.py").write_text(RUNNER, encoding="utf-8")
    options = {"pretrained_model_name_or_path": model, "train_data_dir": data, "output_dir": work, **flags}
    words = [word for key, value in options.items() for word in (f"--{key}", *([] if value is True else [str(value)]))]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "cache"), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(work / "runner.py"), str(work / "times.json"), str(work / "stand_in"), str(found)]
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the script failed:\n{done.stderr[-2000:]}")
    times: list[float] = json.loads((work / "times.json").read_text())
    return times
