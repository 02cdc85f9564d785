"""The picture of a LoRA as an IMAGE of a real ComfyUI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comfy_client import Comfy
from graphs import node
from PIL import Image

pytestmark = pytest.mark.host("comfyui")


def test_the_picture_of_two_loras_is_saved(comfy: Comfy, base: Path) -> None:
    graph = {
        "a": node("LorasmithLoadLora", lora="first.safetensors"),
        "b": node("LorasmithLoadLora", lora="second.safetensors"),
        "look": node("LorasmithInspectLora", lora=["a", 0], other=["b", 0]),
        "drawn": node("SaveImage", images=["look", 1], filename_prefix="spectrum"),
    }
    outputs = comfy.run(graph)
    entry = outputs["drawn"]["images"][0]
    picture = np.asarray(Image.open(base / "output" / entry["filename"]).convert("RGB"))
    assert min(picture.shape[:2]) > 600 and picture.std() > 5 and (picture == 255).mean() > 0.5
    assert "cosine with second: " in outputs["look"]["text"][0]
