"""Runs inside ComfyUI's interpreter: its own models of all families, without weights, and its own LoRA loader on them.

families_in_process.py COMFYUI PACK MODELS LAYOUTS FAMILY ...: LAYOUTS is JSON, family -> name of a parameter list in
MODELS. Without one, the family's table stands in: ComfyUI only recognises the model by it, and its class then makes its
own parameters. Prints for each family what ComfyUI took it for and what its loader did with a LoRA on every linear and
convolution.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import logging
import math
import os
import sys
from pathlib import Path

HOST, PACK, MODELS = (Path(one) for one in sys.argv[1:4])
LAYOUTS, FAMILIES = json.loads(sys.argv[4]), sys.argv[5:]
sys.argv = [sys.argv[0], "--cpu"]
os.chdir(HOST)
sys.path.insert(0, str(HOST))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

logging.getLogger().setLevel(logging.ERROR)
ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)
ENCODERS = {  # families whose text encoders are never in one file with the model: module, maker
    "hidream": ("comfy.text_encoders.hidream", "hidream_clip"),
    "ltx2": ("comfy.text_encoders.lt", "ltxav_te"),
    "ovis-image": ("comfy.text_encoders.ovis", "te"),
}
REAL = ("ace-step",)  # its class computes while it is made; the memory of the weights is never touched
ALONE = {  # parameters, not of modules that tables name, by which ComfyUI recognises a family that has no list
    "ace-step": {
        "encoder.lyric_encoder.layers.0.input_layernorm.weight": (2048,),
        "encoder.lyric_encoder.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "encoder.lyric_encoder.layers.0.mlp.gate_proj.weight": (6144, 2048),
    },
    "krea2": {"txtfusion.layerwise_blocks.0.prenorm.scale": (2560,)},
    "minimax-h3": {"rope.inv_freq": (16,)},
    "ovis-image": {"double_blocks.0.img_mlp.gate_proj.weight": (12288, 3072)},
    "skyreels-v2": {"head.modulation": (1, 2, 2048)},
}


def pack() -> None:
    """Import the pack as ComfyUI does: by its file, under a name of no meaning."""
    spec = importlib.util.spec_from_file_location(
        "somewhere", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["somewhere"] = module
    spec.loader.exec_module(module)


def zeros(shape) -> torch.Tensor:
    """Return a tensor of that shape that takes no memory."""
    return torch.zeros(()).expand(shape)


def parameters(map, layout: str | None) -> dict[str, torch.Tensor]:
    """Return a denoiser's parameters by name: as released, or made from the table."""
    if layout:
        listed = json.loads(gzip.decompress((MODELS / f"{layout}.json.gz").read_bytes()))["keys"]
        return {name: zeros(shape) for name, shape in listed.items()}
    made = {}
    for name, module in map.modules("denoiser").items():
        made[f"{name}.weight"] = zeros(module.shape)
        made[f"{name}.bias"] = zeros(module.shape[:1])
    return {**made, **{name: zeros(shape) for name, shape in ALONE.get(map.family.id, {}).items()}}


def model_of(map, layout: str | None):
    """Return ComfyUI's model of a family without weights, or None where it does not know one."""
    state = parameters(map, layout)
    config = comfy.model_detection.model_config_from_unet(state, "")
    if config is None:
        return None
    return config.get_model(state, "", device="cpu" if map.family.id in REAL else "meta")


def clip_of(map, model):
    """Return ComfyUI's text encoders of a family without weights, or None where the family's table has none."""
    if map.family.id in ENCODERS:
        module, maker = ENCODERS[map.family.id]
        return getattr(importlib.import_module(module), maker)()(device="meta", dtype=torch.float32)
    state = {}
    for part in map.family.components:
        prefix = part.prefixes["comfy"][0]
        for name, module in map.modules(part.id).items() if prefix.startswith("text_encoders.") else ():
            state[f"{prefix}.{name}.weight"] = zeros(module.shape)
            state[f"{prefix}.{name}.bias"] = zeros(module.shape[:1])
    if not state:
        return None
    model.model_config.text_encoder_key_prefix = ["text_encoders."]
    target = model.model_config.clip_target(state_dict=state)
    return target.clip(device="meta", dtype=torch.float32, model_options={}) if target else None


def place(part, model, clip) -> tuple[nn.Module | None, str]:
    """Return the host's model that a component is in, and what stands before its modules' names there."""
    kind, _, inside = part.prefixes["comfy"][0].partition(".")
    if kind == "diffusion_model":
        return model, f"{part.prefixes['comfy'][0]}."
    if clip is None or (inside and not hasattr(clip, inside.partition(".")[0])):
        return None, inside
    return clip, f"{inside}." if inside else ""


def named(map, part, owner: nn.Module, before: str) -> dict:
    """Compare a component's table with the host's model."""
    weights = {name: tuple(value.shape) for name, value in owner.state_dict().items()}
    table = map.modules(part.id)
    ways = ("{}.weight", "{}.scale", "{}")
    found = {
        name: next((weights[key] for way in ways if (key := before + way.format(name)) in weights), None)
        for name in table
    }
    listed = set(table)
    for other in map.family.components:
        prefix = other.prefixes["comfy"][0] + "."
        if prefix.startswith(before):
            listed |= {f"{prefix.removeprefix(before)}{name}" for name in map.modules(other.id)}
    own = {
        name.removeprefix(before)
        for name, module in owner.named_modules()
        if isinstance(module, ADAPTED) and name.startswith(before)
    }
    return {
        "absent": sorted(name for name, shape in found.items() if shape is None),
        "shapes": [f"{name} {table[name].shape} {shape}" for name, shape in found.items()
                   if shape and shape != table[name].shape],
        "unlisted": sorted(own - listed),
    }  # fmt: skip


def lora(api, map, part, owner: nn.Module, before: str):
    """Return a LoRA of rank 1 on every linear and convolution of a component."""
    known = dict(owner.named_modules())
    layers = {}
    for name, module in map.modules(part.id).items():
        if isinstance(known.get(before + name), ADAPTED):
            out, inner, *kernel = module.shape
            down, up = torch.ones(1, inner, *kernel), torch.ones(out, 1, *[1] * len(kernel))
            layers[api.Target(part.id, name)] = api.LoRA(down, up, 0.5)
    return api.Adapter(map.family.id, layers)


def loaded(tensors: dict[str, torch.Tensor], keys: dict, weights: dict[str, torch.Tensor]) -> dict:
    """Let the host's loader read tensors; return what it missed and what does not fit the weight it is meant for."""
    read: set[str] = set()
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(tensors)), keys, log_missing=False)
    wrong = []
    for key, patch in patches.items():
        up, down = patch.weights[0], patch.weights[1]
        read |= patch.loaded_keys
        shape = tuple(weights[key].shape)
        if up.shape[0] != shape[0] or math.prod(down.shape[1:]) != math.prod(shape[1:]):
            wrong.append(f"{key} {shape} {tuple(up.shape)} {tuple(down.shape)}")
    missed = [key for key in tensors if key not in read and not key.endswith(".alpha")]
    return {"patched": len(patches), "missed": missed, "wrong": wrong}


def written(api, adapter, format: str) -> dict[str, torch.Tensor] | str:
    """Return what the pack writes, or why it does not."""
    try:
        return api.encode(adapter, format)
    except api.Refused as refusal:
        return str(refusal)


def findings(api, map, layout: str | None) -> dict:
    """Return all that is to be known of a family."""
    model = model_of(map, layout)
    if model is None:
        return {"class": None}
    clip = clip_of(map, model)
    found = {"class": type(model.model_config).__name__, "named": {}, "loaded": {}}
    weights = {**model.state_dict(), **(clip.state_dict() if clip is not None else {})}
    keys = comfy.lora.model_lora_keys_unet(model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip, keys)
    for part in map.family.components:
        owner, before = place(part, model, clip)
        found["named"][part.id] = None if owner is None else named(map, part, owner, before)
        if owner is None:
            continue
        adapter = lora(api, map, part, owner, before)
        for format in ("comfy", "kohya"):
            tensors = written(api, adapter, format)
            result = {"refused": tensors} if isinstance(tensors, str) else loaded(tensors, keys, weights)
            found["loaded"][f"{part.id} {format}"] = {"layers": len(adapter.layers), **result}
    return found


def main() -> None:
    """Go through the families that are named."""
    pack()
    from types import SimpleNamespace

    from somewhere.convert.codec import encode
    from somewhere.convert.keymap import keymap
    from somewhere.lora_core.adapter import Adapter, Target
    from somewhere.lora_core.errors import UnsupportedLayer
    from somewhere.lora_core.layers import LoRA

    api = SimpleNamespace(encode=encode, Adapter=Adapter, Target=Target, LoRA=LoRA, Refused=UnsupportedLayer)
    found = {name: findings(api, keymap(name), LAYOUTS.get(name)) for name in FAMILIES}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


main()
