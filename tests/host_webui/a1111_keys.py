"""Runs A1111's own LoRA reader in a process of its own, on models that are nothing but named modules.

a1111_keys.py A1111 LISTS: LISTS is a JSON file, [{"file": ..., "sdxl": bool, "parts": [[where, prefix, {name: shape}],
...]}, ...]. Where is "model" or the number of a text encoder. Prints for each file the modules that were read, by the
reader's name, with the shapes of the factors and of the weight and the scale, and which keys it matched with nothing.

Of the host only the extension `extensions-builtin/Lora` is imported; what it imports of the rest is stood in for here.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import nn

HOST = Path(sys.argv[1])
LISTS = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))


class Anything(ModuleType):
    """A module in which a capitalised name is an empty class, and any other a module of the same kind."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {}) if name[0].isupper() else importlib.import_module(f"{self.__name__}.{name}")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for the WebUI's own modules and for gradio."""

    def find_spec(self, name, path=None, target=None):
        """Return a spec for the names that are stood in for."""
        if name.partition(".")[0] in ("modules", "gradio"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        """Return the empty module."""
        return Anything(spec.name)

    def exec_module(self, module):
        """Nothing to run."""


def tree(parts: list) -> nn.Module:
    """Return modules without weights that have these names and shapes."""
    root = nn.Module()
    for prefix, shapes in parts:
        for name, shape in shapes.items():
            *path, last = f"{prefix}{name}".split(".")
            inside = root
            for word in path:
                if not hasattr(inside, word):
                    inside.add_module(word, nn.Module())
                inside = getattr(inside, word)
            inside.add_module(last, leaf(shape))
    return root


def leaf(shape: list[int]) -> nn.Module:
    """Return a module of a weight's shape: a convolution, a linear, a norm, or (by a fused one's) torch's attention."""
    if len(shape) == 4:
        return nn.Conv2d(shape[1], shape[0], shape[2:], device="meta")
    if len(shape) == 3:  # [3, width, width]
        return nn.MultiheadAttention(shape[1], 1, device="meta")
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], device="meta")
    return nn.LayerNorm(shape[0], device="meta")


def model_of(entry: dict) -> SimpleNamespace:
    """Return a model as the reader expects it."""
    encoders = [SimpleNamespace(wrapped=tree([part[1:] for part in entry["parts"] if part[0] == n])) for n in range(2)]
    return SimpleNamespace(
        is_sdxl=entry["sdxl"],
        model=tree([part[1:] for part in entry["parts"] if part[0] == "model"]),
        conditioner=SimpleNamespace(embedders=encoders),
        cond_stage_model=encoders[0],
    )


def read(networks, shared, entry: dict) -> dict:
    """Return what the reader makes of a file."""
    shared.sd_model = model_of(entry)
    networks.assign_network_names_to_compvis_modules(shared.sd_model)
    on_disk = SimpleNamespace(filename=entry["file"], name="ours")
    missed: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: missed.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    net = networks.load_network("ours", on_disk)
    logging.getLogger().removeHandler(handler)
    return {
        "missed": [line for line in missed if "match" in line],
        "modules": {
            key: [list(module.up_model.weight.shape), list(module.down_model.weight.shape), list(module.shape),
                  module.calc_scale()]
            for key, module in net.modules.items()
        },
    }  # fmt: skip


def main() -> None:
    """Read all files."""
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, str(HOST / "extensions-builtin/Lora"))
    from modules import devices, sd_models, shared

    devices.cpu, devices.dtype, devices.device = torch.device("cpu"), torch.float32, torch.device("cpu")
    shared.opts = shared.cmd_opts = SimpleNamespace(
        lora_dir=str(Path(sys.argv[2]).parent / "none"), lyco_dir_backcompat="", lora_preferred_name="Filename"
    )
    shared.walk_files = lambda *_arguments, **_options: ()
    sd_models.read_state_dict = load_file
    import networks

    sys.stdout.write("\n" + json.dumps([read(networks, shared, entry) for entry in LISTS]) + "\n")


main()
