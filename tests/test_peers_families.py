"""What we write as Diffusers files, in Diffusers' own readers: every key stays, on a real module."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from lorasmith.convert.codec import encode
from lorasmith.convert.keymap import keymap
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import LoRA

pytestmark = pytest.mark.filterwarnings("ignore")
loaders = pytest.importorskip("diffusers.loaders.lora_pipeline")
pytest.importorskip("peft")

MODELS = Path(__file__).parent / "models"
NUMBER = re.compile(r"\d+")
FAMILIES = (  # family, the loader's class, the model's parameter list
    ("sd15", "StableDiffusion", "sd15.diffusers.unet"),
    ("sd21", "StableDiffusion", "sd21.diffusers.unet"),
    ("sdxl", "StableDiffusionXL", "sdxl.diffusers.unet"),
    ("sdxl-refiner", "StableDiffusionXL", "sdxl-refiner.diffusers.unet"),
    ("flux", "Flux", "flux-dev.diffusers"),
    ("chroma", "Flux", "chroma.diffusers"),
    ("flux2-dev", "Flux2", "flux2-dev.diffusers"),
    ("flux2-klein4b", "Flux2", "flux2-klein4b.diffusers"),
    ("flux2-klein9b", "Flux2", "flux2-klein9b.diffusers"),
    ("flux3", "Flux3", "flux3.diffusers"),
    ("sd3-medium", "SD3", "sd3-medium.diffusers"),
    ("sd35-medium", "SD3", "sd35-medium.diffusers"),
    ("sd35-large", "SD3", "sd35-large.diffusers"),
    ("auraflow", "AuraFlow", "auraflow.diffusers"),
    ("sana", "Sana", "sana-1.6b.diffusers"),
    ("lumina2", "Lumina2", "lumina2.diffusers"),
    ("z-image", "ZImage", "z-image.diffusers"),
    ("qwen-image", "QwenImage", "qwen-image.diffusers"),
    ("qwen-image21", "QwenImage", "qwen-image21.diffusers"),
    ("wan21-14b-t2v", "Wan", "wan21-14b-t2v.diffusers"),
    ("wan21-14b-i2v", "Wan", "wan21-14b-i2v.diffusers"),
    ("wan21-1.3b-t2v", "Wan", "wan21-1.3b-t2v.diffusers"),
    ("wan22-5b", "Wan", "wan22-5b-ti2v.diffusers"),
    ("skyreels-v2", "SkyReelsV2", "skyreels-v2.diffusers"),
    ("hunyuan-video", "HunyuanVideo", "hunyuan-video.diffusers"),
    ("hunyuan-video15", "HunyuanVideo", "hunyuan-video15.diffusers"),
    ("hunyuan-image21", "QwenImage", "hunyuan-image21.diffusers"),
    ("ltx-video", "LTXVideo", "ltx-video-2b.diffusers"),
    ("ltx2", "LTX2", "ltx2.diffusers"),
    ("mochi", "Mochi1", "mochi.diffusers"),
    ("cogvideox", "CogVideoX", "cogvideox-5b.diffusers"),
    ("cogview4", "CogView4", "cogview4.diffusers"),
    ("hidream", "HiDreamImage", "hidream-i1.diffusers"),
    ("kandinsky5", "Kandinsky", "kandinsky5.diffusers"),
    ("krea2", "Krea2", "krea2.diffusers"),
    ("ernie-image", "ErnieImage", "ernie-image.diffusers"),
    ("ideogram4", "Ideogram4", "ideogram4.diffusers"),
    ("cosmos-predict2", "Cosmos", "cosmos-predict2-2b.diffusers"),
    ("ace-step", "AceStep", "ace-step.diffusers"),
    ("minimax-h3", "MiniMaxH3", "minimax-h3.diffusers"),
)


def sample(family: str, folders: list[str]) -> Adapter:
    """A LoRA of rank 1 on the last module of each kind (names that differ in numbers alone are one kind)."""
    map = keymap(family)
    layers = {}
    for part in map.family.components:
        if part.folder in folders:
            kinds = {NUMBER.sub("#", name): module for name, module in map.modules(part.id).items()}
            for module in kinds.values():
                if len(module.shape) > 1 and not module.original.endswith("modulation"):  # Wan's is a bare parameter
                    out, inner, *kernel = module.shape
                    down, up = torch.ones(1, inner, *kernel), torch.ones(out, 1, *[1] * len(kernel))
                    layers[Target(part.id, module.original)] = LoRA(down, up, 1.0)
    return Adapter(family, layers)


@pytest.mark.parametrize(("family", "loader", "listing"), FAMILIES, ids=[row[0] for row in FAMILIES])
def test_diffusers_reader_finds_every_layer_on_a_real_module(family: str, loader: str, listing: str) -> None:
    mixin = getattr(loaders, f"{loader}LoraLoaderMixin", None)
    if mixin is None:
        pytest.skip(f"this version of Diffusers has no {loader}LoraLoaderMixin")
    parameters = json.loads(gzip.decompress((MODELS / f"{listing}.json.gz").read_bytes()))["keys"]
    folders = mixin._lora_loadable_modules
    tensors = encode(sample(family, folders), "diffusers")
    found = mixin.lora_state_dict(dict(tensors))
    read = found[0] if isinstance(found, tuple) else found
    assert read.keys() == tensors.keys() and len(tensors) > 10
    denoiser = folders[0]
    for key, tensor in read.items():
        folder, _, name = key.partition(".")
        module, dot, side = name.rpartition(".lora_")
        assert folder in folders and dot and side in ("A.weight", "B.weight"), key
        if folder == denoiser:
            axis = 0 if side == "B.weight" else 1
            assert f"{module}.weight" in parameters, key
            assert tensor.shape[axis] == parameters[f"{module}.weight"][axis], key
