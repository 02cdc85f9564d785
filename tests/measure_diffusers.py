"""Measures which layers of each key dump Diffusers loads: its own loaders, on models of the right names, weightless.

python tests/measure_diffusers.py [DUMP ...]: with names of dumps it only shows what it finds; without, it records it.
It takes some minutes.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import measuring

measuring.alias_root()

import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from diffusers.loaders import PeftAdapterMixin, lora_pipeline  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from torch import nn  # noqa: E402

from lorasmith.convert.architectures import architecture  # noqa: E402
from lorasmith.convert.keymap import keymap  # noqa: E402

UNEXPECTED = "unexpected keys found in the model: "
HOW = "its pipelines' load_lora_weights on the dump's keys, models without weights"
SD3 = ("sd3-medium", "sd35-medium", "sd35-large")
LOADERS = {  # family -> the class that its pipelines load LoRA files with; families not here have none
    **dict.fromkeys(("sd15", "sd21"), "StableDiffusionLoraLoaderMixin"),
    **dict.fromkeys(("sdxl", "sdxl-refiner"), "StableDiffusionXLLoraLoaderMixin"),
    **dict.fromkeys(SD3, "SD3LoraLoaderMixin"),
    **dict.fromkeys(("flux", "chroma", "bria-fibo"), "FluxLoraLoaderMixin"),
    **dict.fromkeys(("flux2-dev", "flux2-klein4b", "flux2-klein9b"), "Flux2LoraLoaderMixin"),
    **dict.fromkeys(("wan21-14b-t2v", "wan21-14b-i2v", "wan21-1.3b-t2v", "wan22-5b"), "WanLoraLoaderMixin"),
    **dict.fromkeys(("hunyuan-video", "framepack"), "HunyuanVideoLoraLoaderMixin"),
    **dict.fromkeys(("qwen-image", "qwen-image21"), "QwenImageLoraLoaderMixin"),
    **dict.fromkeys(("ernie-image", "ernie-image-8b"), "ErnieImageLoraLoaderMixin"),
    "ace-step": "AceStepLoraLoaderMixin",
    "anima": "AnimaLoraLoaderMixin",
    "auraflow": "AuraFlowLoraLoaderMixin",
    "cogvideox": "CogVideoXLoraLoaderMixin",
    "cogview4": "CogView4LoraLoaderMixin",
    "cosmos-predict2": "CosmosLoraLoaderMixin",
    "flux3": "Flux3LoraLoaderMixin",
    "hidream": "HiDreamImageLoraLoaderMixin",
    "ideogram4": "Ideogram4LoraLoaderMixin",
    "kandinsky5": "KandinskyLoraLoaderMixin",
    "krea2": "Krea2LoraLoaderMixin",
    "ltx-video": "LTXVideoLoraLoaderMixin",
    "ltx2": "LTX2LoraLoaderMixin",
    "lumina2": "Lumina2LoraLoaderMixin",
    "minimax-h3": "MiniMaxH3LoraLoaderMixin",
    "mochi": "Mochi1LoraLoaderMixin",
    "sana": "SanaLoraLoaderMixin",
    "skyreels-v2": "SkyReelsV2LoraLoaderMixin",
    "z-image": "ZImageLoraLoaderMixin",
}
COMPONENTS = {  # what a pipeline calls the parts whose layers it may load
    "denoiser": ("unet", "transformer"),
    **dict.fromkeys(("clip_l", "clip_h"), ("text_encoder",)),
    "clip_g": ("text_encoder_2",),
    "llm_adapter": ("text_conditioner",),
    "connectors": ("connectors",),
}
FURTHER = ("text_encoder", "text_encoder_2", "transformer_2", "transformer_ref", "connectors", "text_conditioner")
UNETS = {  # the parts of a UNet's configuration that its block names follow from
    "sdxl": {"layers_per_block": 2, "down_block_types": ["", "", ""], "block_out_channels": [320, 640, 1280]},
    "sdxl-refiner": {"layers_per_block": 2, "down_block_types": [""] * 4, "block_out_channels": [384, 768, 1536, 1536]},
}
CLIPS = {  # width, layers, heads, feed-forward
    "clip_l": (768, 12, 12, 3072),
    "clip_h": (1024, 23, 16, 4096),
    "clip_g": (1280, 32, 20, 5120),
}


class Unexpected(logging.Handler):
    """Collects the keys that PEFT says no module took."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the keys."""
        _, found, keys = record.getMessage().partition(UNEXPECTED)
        self.keys += keys.rstrip(". ").split(", ") if found else []


class Branch(nn.Module):
    """What has parts, numbered or named."""

    def __getitem__(self, index: int) -> nn.Module:
        return self._modules[str(index)]

    def __len__(self) -> int:
        return len(self._modules)


class Model(PeftAdapterMixin, nn.Module):
    """A model with a family's module names in Diffusers, on the meta device."""

    def __init__(self, family: str, component: str):
        super().__init__()
        config = {"image_dim": 1280 if "i2v" in family else None, **UNETS.get(family, {})}
        self.config = SimpleNamespace(**config)
        map = keymap(family)
        for name, target in map.targets(component, "diffusers").items():
            place(self, name.split("."), module(map.shape(target) or ()))

    dtype = torch.float16
    device = torch.device("meta")


def module(shape: tuple[int, ...]) -> nn.Module:
    """Return a module of Diffusers' kind for a weight of that shape."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], device="meta")
    kinds = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
    if len(shape) in kinds:
        return kinds[len(shape)](shape[1], shape[0], shape[2:], device="meta")
    return nn.LayerNorm(shape or (1,), device="meta")


def place(root: nn.Module, path: list[str], leaf: nn.Module) -> None:
    """Put a module at a dotted path, making what is above it."""
    for step in path[:-1]:
        if step not in root._modules:
            root.add_module(step, Branch())
        root = root._modules[step]
    for name, child in root._modules.get(path[-1], nn.Module())._modules.items():
        leaf.add_module(name, child)
    root.add_module(path[-1], leaf)


def clip(component: str, projected: bool) -> Any:
    """Return a CLIP text encoder of transformers' own, without weights."""
    width, layers, heads, inner = CLIPS[component]
    config = transformers.CLIPTextConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        projection_dim=width,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    with torch.device("meta"):
        return kind(config).to(torch.float16)


def pipeline(family: str) -> Any:
    """Return a pipeline with its parts, or None where Diffusers loads no LoRA for the family."""
    if family not in LOADERS:
        return None
    loader = getattr(lora_pipeline, LOADERS[family])
    made = type("Pipeline", (loader,), {})()
    made.components = {}
    made.hf_device_map = None
    for part in architecture(family).components:
        names = [name for name in COMPONENTS.get(part.id, ()) if name in loader._lora_loadable_modules]
        if names:
            projected = part.id == "clip_g" or family in SD3
            made.components[names[0]] = clip(part.id, projected) if part.id in CLIPS else Model(family, part.id)
    for name in FURTHER:
        made.components.setdefault(name, None)
    for name, model in made.components.items():
        setattr(made, name, model)
    return made


def measure(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Diffusers does with a dump."""
    wanted = measuring.layers(content)
    nothing = dict.fromkeys(wanted, False)
    made = pipeline(content["family"])
    if made is None:
        return measuring.finding(nothing, refusal="its pipelines load no LoRA for this family")
    file = {key: tensor.clone() for key, tensor in measuring.file(content).items()}  # it scales them in place
    unexpected = Unexpected()
    logger = logging.getLogger("diffusers")
    logger.addHandler(unexpected)
    try:
        made.load_lora_weights(file, adapter_name="it")
    except Exception as error:  # noqa: BLE001 - whatever stops the host is a finding
        return measuring.finding(nothing, refusal=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    finally:
        logger.removeHandler(unexpected)
    left = {key.partition(".lora_")[0] for key in unexpected.keys}
    taken = {name: loaded(model, left) for name, model in made.components.items() if model is not None}
    return measuring.finding({target: takes(content["family"], target, taken) for target in wanted})


def loaded(model: nn.Module, left: set[str]) -> dict[str, Any]:
    """Return the modules that got an adapter and its tensors."""
    return {name: module for name, module in model.named_modules() if _filled(module) and name not in left}


def _filled(module: nn.Module) -> bool:
    names = module.adapter_layer_names if isinstance(module, BaseTunerLayer) else ()
    return any("it" in getattr(module, name, {}) for name in names)


def takes(family: str, target: Any, taken: Mapping[str, Mapping[str, Any]]) -> bool:
    """Tell whether a layer, in all its row blocks, is in the pipeline."""
    map = keymap(family)
    part = next((name for name in COMPONENTS.get(target.component, ()) if name in taken), None)
    if part is None:
        return False
    module = map.module(target)
    names = module.diffusers if target.block is None else (module.diffusers[target.block],)
    found = taken[part]
    modules = [found.get(name) or found.get(name.removeprefix("text_model.")) for name in names]
    if target.parameter == "bias":
        return all(one is not None and one.lora_bias.get("it") for one in modules)
    return all(one is not None for one in modules)


def main() -> None:
    """Measure and write."""
    only = sys.argv[1:]
    logger = logging.getLogger("diffusers")
    logger.handlers.clear()
    logger.propagate = False
    torch.set_num_threads(1)
    found = {name: measure(content) for name, content in measuring.dumps() if not only or name in only}
    if only:
        sys.stdout.write(f"{json.dumps(found, indent=1)}\n")
        return
    version = f"{diffusers.__version__}, transformers {transformers.__version__}"
    measuring.record("diffusers", {"host": "Diffusers", "version": version, "how": HOW, "dumps": found})


main()
