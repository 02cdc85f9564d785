"""Runs Forge's own LoRA reader in a process of its own, on the names and shapes of its models' parameters.

forge_keys.py FORGE LISTS: LISTS is a JSON file, [{"file": ..., "huggingface_repo": ..., "config": {...},
"unet": {name: shape}, "clip": {name: shape}}]. Prints for each file how many weights get a patch, the keys that nothing
matched, and the patches whose factors do not have the shape of their weight.

Of the host `backend/patcher/lora.py` and the key tables below `packages_3rdparty` are imported; memory management,
which they import but do not need to match keys, is stood in for here.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import load_file

HOST = Path(sys.argv[1])
LISTS = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))


def reader() -> ModuleType:
    """Import the host's `backend/patcher/lora.py` alone."""
    backend = sys.modules["backend"] = ModuleType("backend")
    for name in ("memory_management", "utils", "operations"):
        setattr(backend, name, ModuleType(f"backend.{name}"))
    sys.path.insert(0, str(HOST))
    spec = importlib.util.spec_from_file_location("forge_lora", HOST / "backend/patcher/lora.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return parameters without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read(lora: ModuleType, entry: dict) -> dict:
    """Return what the reader makes of a file."""
    unet, clip = weights(entry["unet"]), weights(entry["clip"])
    model = SimpleNamespace(
        state_dict=lambda: unet,
        diffusion_model=SimpleNamespace(config=entry["config"]),
        config=SimpleNamespace(huggingface_repo=entry["huggingface_repo"]),
    )
    encoders = SimpleNamespace(state_dict=lambda: clip)
    rest, wrong, patched = load_file(entry["file"]), [], 0
    for keys, own in ((lora.model_lora_keys_unet(model, {}), unet), (lora.model_lora_keys_clip(encoders, {}), clip)):
        patches, rest = lora.load_lora(rest, keys)
        patched += len(patches)
        for key, (_, (up, down, *_)) in patches.items():
            shape = own[key].shape
            if up.shape[0] != shape[0] or math.prod(down.shape[1:]) != math.prod(shape[1:]):
                wrong.append(f"{key} {tuple(shape)} {tuple(up.shape)} {tuple(down.shape)}")
    return {"patched": patched, "missed": list(rest), "wrong": wrong}


def main() -> None:
    """Read all files."""
    lora = reader()
    sys.stdout.write("\n" + json.dumps([read(lora, entry) for entry in LISTS]) + "\n")


main()
