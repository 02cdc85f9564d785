"""Runs inside ComfyUI's interpreter: what its patcher makes of layers of every algorithm, as JSON.

algorithms_in_process.py COMFYUI PACK: the models are a few modules of ComfyUI's own under the names of real ones.
The Apply node adds layers and the weights are patched as for sampling; they should be what the layers' `apply` makes.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

HOST, PACK = (Path(one) for one in sys.argv[1:3])
sys.argv = [sys.argv[0], "--cpu"]
os.chdir(HOST)
sys.path.insert(0, str(HOST))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

logging.getLogger().setLevel(logging.ERROR)
STRENGTHS = (0.5, 1.0, -1.0)
AS_THE_HOST = ("lora", "lora-flat", "loha", "lokr", "norm")  # what ComfyUI's own loader computes as the trainer does
ops = comfy.ops.disable_weight_init
BLOCK = "input_blocks.1.1.transformer_blocks.0"
LINEAR, BIASED, CONV = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", "input_blocks.1.0.in_layers.2"
SD15 = {
    LINEAR: lambda: ops.Linear(320, 320, bias=False),
    f"{BLOCK}.attn2.to_k": lambda: ops.Linear(768, 320, bias=False),
    BIASED: lambda: ops.Linear(320, 320),
    f"{BLOCK}.norm1": lambda: ops.LayerNorm(320),
    CONV: lambda: ops.Conv2d(320, 320, 3),
    "out.2": lambda: ops.Conv2d(320, 4, 3),
}
QKV, LINEAR1, IN = "double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "img_in"
FLUX = {
    QKV: lambda: ops.Linear(128, 384),
    LINEAR1: lambda: ops.Linear(128, 896),
    IN: lambda: ops.Linear(64, 128),
    "guidance_in.in_layer": lambda: ops.Linear(256, 128),
}


def pack() -> None:
    """Import the pack as ComfyUI does: by its file, under a name of no meaning."""
    spec = importlib.util.spec_from_file_location(
        "somewhere", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["somewhere"] = module
    spec.loader.exec_module(module)


def random(*shape: int, scale: float = 0.05) -> torch.Tensor:
    """Return the next random numbers."""
    return torch.randn(shape) * scale


def live(made: dict, dtype: torch.dtype = torch.float32):
    """Return a patcher over modules under ComfyUI's names."""
    root = nn.Module()
    root.diffusion_model = nn.Module()
    for name, make in made.items():
        *path, last = name.split(".")
        place = root.diffusion_model
        for step in path:
            if not hasattr(place, step):
                place.add_module(step, nn.Module())
            place = getattr(place, step)
        found = make()
        if isinstance(found, nn.Parameter):
            place.register_parameter(last, found)
        else:
            place.add_module(last, found)
    for parameter in root.parameters():
        parameter.data = random(*parameter.shape, scale=0.3).to(dtype)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(root, cpu, cpu)


def patched(patcher) -> dict[str, torch.Tensor]:
    """Return copies of all weights as they are with the patches applied, and take the patches off again."""
    patcher.patch_model(device_to=torch.device("cpu"))
    found = {key: value.clone() for key, value in patcher.model.state_dict().items()}
    patcher.unpatch_model(device_to=torch.device("cpu"))
    return found


def offloaded(patcher, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what ComfyUI makes of the weights of modules that it keeps elsewhere, its moving of patches included."""
    found = {}
    for key, weight in before.items():
        patch = comfy.model_patcher.LowVramPatch(key, patcher.patches)
        if key in patcher.patches and hasattr(patch, "prepare"):
            room = torch.empty(patch.memory_required(), dtype=torch.uint8)
            patch.prepare(room, None)
        found[key] = patch(weight.clone()) if key in patcher.patches else weight
    return found


def algorithms(layers) -> dict[str, dict[str, object]]:
    """Return layers of every algorithm by name of the case and of the module in SD 1.5 (with `.bias`: its bias)."""
    lora = {
        "linear": layers.LoRA(random(4, 320), random(320, 4), 3.0),
        "conv": layers.LoRA(random(4, 320, 3, 3), random(320, 4, 1, 1), 3.0),
        "flat": layers.LoRA(random(4, 320 * 9), random(320, 4), 3.0),
        "tucker": layers.LoRA(random(4, 320, 1, 1), random(320, 4, 1, 1), 3.0, mid=random(4, 4, 3, 3)),
        "scalar": layers.LoRA(random(4, 320), random(320, 4), 3.0, scalar=torch.tensor(0.7)),
    }
    loha = layers.LoHa(random(320, 4), random(4, 320), random(320, 4), random(4, 320), 3.0)
    flat = [random(320, 4), random(4, 2880), random(320, 4), random(4, 2880)]
    loha_conv = layers.LoHa(*flat, 3.0, shape=(320, 320, 3, 3))
    loha_core = layers.LoHa(
        random(4, 320), random(4, 320), random(4, 320), random(4, 320), 3.0, random(4, 4, 3, 3), random(4, 4, 3, 3)
    )
    lokr = layers.LoKr(3.0, w1=random(8, 8), w2_a=random(40, 4), w2_b=random(4, 40))
    lokr_whole = layers.LoKr(3.0, w1=random(8, 8), w2=random(40, 40, 3, 3))
    lokr_core = layers.LoKr(3.0, w1=random(8, 8), w2_a=random(4, 40), w2_b=random(4, 40), t2=random(4, 4, 3, 3))
    lokr_peft = layers.LoKr(3.0, w1=random(8, 8), w2=random(40, 40), r=6)
    out, inner = random(320, 1) + 5, random(1, 320) + 5
    conv_out, conv_in = random(320, 1, 1, 1) + 15, random(1, 320, 1, 1) + 15
    glora = [random(320, 4), random(4, 320), random(320, 4), random(4, 320)]
    glora_conv = [random(320, 4, 1, 1), random(4, 320, 1, 1), random(320, 4, 1, 1), random(4, 320, 3, 3)]
    blocks, stages = random(20, 16, 16), random(4, 40, 8, 8)
    rescale, rescale_conv = 1 + random(320, 1), 1 + random(320, 1, 1, 1)
    inputs = random(40, 28)
    both = {
        "oft": (layers.DiagOFT(blocks), layers.DiagOFT(blocks, 0.001, rescale_conv)),
        "oft-rescale": (layers.DiagOFT(blocks, 0.001, rescale), layers.DiagOFT(blocks)),
        "oft-kohya": (layers.KohyaOFT(blocks, 0.001), layers.KohyaOFT(blocks, 0.01)),
        "boft": (layers.BOFT(stages, 0.001, rescale), layers.BOFT(stages, 0.0, rescale_conv)),
        "oft2": (layers.OFTv2(inputs), layers.OFTv2(random(360, 28), terms=None)),
        "oft2-shared": (layers.OFTv2(random(1, 28)), layers.OFTv2(random(1, 28), coft=1e-3, scaled_down=True)),
        "boft-peft": (
            layers.PeftBOFT(stages[:2], rescale),
            layers.PeftBOFT(random(1, 360, 8, 8), rescale.reshape(1, 320)),
        ),
        "ia3-out": (layers.IA3(random(320), False), layers.IA3(random(320, 1, 1, 1), False)),
        "ia3-in": (layers.IA3(random(320), True), layers.IA3(random(320), True)),
        "replace": (layers.Replace(random(320, 320)), layers.Replace(random(320, 320, 3, 3))),
        "dora-out": (layers.DoRA(lora["linear"], out), layers.DoRA(lora["conv"], conv_out)),
        "dora-in": (layers.DoRA(lora["linear"], inner), layers.DoRA(lora["conv"], conv_in)),
        "dora-peft": (
            layers.DoRA(lora["linear"], out.flatten(), True),
            layers.DoRA(lora["conv"], conv_out.reshape(1, 320, 1, 1), True),
        ),
        "dora-loha": (layers.DoRA(loha, out), layers.DoRA(loha_core, conv_out)),
        "dora-lokr": (layers.DoRA(lokr, inner), layers.DoRA(lokr_whole, conv_in)),
        "lora": (lora["linear"], lora["conv"]),
        "lora-odd": (lora["scalar"], lora["tucker"]),
        "lora-flat": (lora["linear"], lora["flat"]),
        "loha": (loha, loha_conv),
        "loha-core": (loha, loha_core),
        "lokr": (lokr, lokr_whole),
        "lokr-odd": (lokr_peft, lokr_core),
        "glora": (layers.GLoRA(*glora, 3.0), layers.GLoRA(*glora_conv, 3.0)),
        "full": (layers.Full(random(320, 320)), layers.Full(random(320, 320, 3, 3), scale=0.3)),
    }
    return {
        **{name: {BIASED: linear, CONV: conv} for name, (linear, conv) in both.items()},
        "norm": {f"{BLOCK}.norm1": layers.Norm(random(320)), f"{BLOCK}.norm1.bias": layers.Norm(random(320))},
        "biases": {f"{BIASED}.bias": layers.Full(random(320)), "out.2.bias": layers.Replace(random(4))},
        "ia3-absolute": {
            LINEAR: layers.IA3(1 + random(320, 1), False, True),
            BIASED: layers.IA3(1 + random(320, 1), False, True),
        },
    }


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number."""
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


class Check:
    """Applies adapters with the pack's node and holds the patched weights against what they should be."""

    def __init__(self):
        from somewhere.convert.codec import encode
        from somewhere.lora_core.adapter import Adapter, Target
        from somewhere.nodes import actions
        from somewhere.nodes.host import ComfyHost

        self.encode, self.Adapter, self.Target, self.apply = encode, Adapter, Target, actions.apply_lora
        self.host = ComfyHost()

    def target(self, name: str, block=None):
        """Return the target of a module, or of its bias."""
        parameter = "bias" if name.endswith(".bias") else "weight"
        return self.Target("denoiser", name.removesuffix(".bias"), block, parameter)

    def errors(self, patcher, family: str, layers: dict, wanted) -> dict:
        """Return the largest error of whole and of offloaded weights, and which weights moved, over all strengths."""
        before = {key: value.clone() for key, value in patcher.model.state_dict().items()}
        worst = {"whole": 0.0, "offloaded": 0.0}
        for strength in STRENGTHS:
            made, _ = self.apply(self.host, self.Adapter(family, layers), strength, 0.0, False, patcher, None).values
            right = {**before, **wanted(before, strength)}
            for way, found in (("whole", patched(made)), ("offloaded", offloaded(made, before))):
                worst[way] = max(worst[way], *(error(found[key], right[key]) for key in right))
            moved = sorted(key for key in right if not torch.equal(right[key], before[key]))
        return {**worst, "moved": moved}

    def algorithm(self, patcher, named: dict) -> dict:
        """Check one algorithm."""
        layers = {self.target(name): layer for name, layer in named.items()}

        def wanted(before, strength):
            found = {}
            for target, layer in layers.items():
                key = f"diffusion_model.{target.module}.{target.parameter}"
                found[key] = layer.apply(before[key], strength)
                bias = f"diffusion_model.{target.module}.bias"
                if getattr(layer, "absolute", False) and bias in before:
                    found[bias] = before[bias] * (1 + strength * (layer.scale.flatten() - 1))
            return found

        return self.errors(patcher, "sd15", layers, wanted)

    def as_host(self, patcher, named: dict) -> bool:
        """Tell whether ComfyUI's own loader makes the same of the same layers, bit for bit."""
        adapter = self.Adapter("sd15", {self.target(name): layer for name, layer in named.items()})
        tensors = self.encode(adapter, "comfy")
        names = {f"diffusion_model.{name}": f"diffusion_model.{name}.weight" for name in SD15}
        same = True
        for strength in STRENGTHS:
            made, _ = self.apply(self.host, adapter, strength, 0.0, False, patcher, None).values
            theirs = patcher.clone()
            theirs.add_patches(comfy.lora.load_lora(dict(tensors), names, log_missing=False), strength)
            ours, theirs = patched(made), patched(theirs)
            same = same and all(torch.equal(ours[key], theirs[key]) for key in ours)
        return same

    def blocks(self, layers) -> dict:
        """Check row blocks of fused weights, in a Flux that is smaller than the released one."""
        heights = {QKV: (128, 128, 128), LINEAR1: (128, 128, 128, 512)}
        given = {
            (QKV, 0): layers.LoRA(random(4, 128), random(128, 4), 2.0),
            (QKV, 2): layers.DoRA(layers.LoRA(random(4, 128), random(128, 4), 2.0), random(1, 128) + 4),
            (LINEAR1, 1): layers.Replace(random(128, 128)),
            (LINEAR1, 3): layers.KohyaOFT(random(32, 16, 16), 0.001),
        }

        def wanted(before, strength):
            found = {name: before[f"diffusion_model.{name}.weight"].clone() for name in heights}
            for (name, block), layer in given.items():
                start, rows = sum(heights[name][:block]), heights[name][block]
                part = found[name][start : start + rows]
                part.copy_(layer.apply(part, strength))
            return {f"diffusion_model.{name}.weight": weight for name, weight in found.items()}

        targets = {self.target(name, block): layer for (name, block), layer in given.items()}
        return self.errors(live(FLUX), "flux", targets, wanted)

    def widened(self, layers) -> dict:
        """Check a layer that gives the weight more inputs."""
        layer = layers.LoRA(random(4, 96), random(128, 4), 2.0, reshape=torch.tensor([128, 96]))
        key = f"diffusion_model.{IN}.weight"
        scalar = layers.LoRA(layer.down, layer.up, 2.0, None, layer.reshape, torch.tensor(0.7))
        found = {}
        for name, one in (("plain", layer), ("scalar", scalar)):
            patcher = live(FLUX)
            weight = patcher.model.state_dict()[key].clone()
            adapter = self.Adapter("flux", {self.target(IN): one})
            made, _ = self.apply(self.host, adapter, 0.5, 0.0, False, patcher, None).values
            found[name] = error(patched(made)[key], one.apply(weight, 0.5))
        return found

    def modulation(self, layers) -> dict:
        """Check a parameter that is no module's weight."""
        name = "blocks.0.modulation"
        made = {
            "blocks.0.self_attn.q": lambda: ops.Linear(1536, 1536),
            name: lambda: nn.Parameter(torch.ones(1, 6, 1536)),
        }
        layer = layers.Full(random(1, 6, 1536))

        def wanted(before, strength):
            return {f"diffusion_model.{name}": layer.apply(before[f"diffusion_model.{name}"], strength)}

        return self.errors(live(made), "wan21-1.3b-t2v", {self.target(name): layer}, wanted)

    def stored(self, layers, dtype: torch.dtype) -> float:
        """Return the error, in steps of a storage's rounding, of a DoRA on weights in a storage of fewer bits."""
        patcher = live(SD15, dtype)
        layer = layers.DoRA(layers.LoRA(random(4, 320), random(320, 4), 3.0), random(320, 1) + 5)
        key = f"diffusion_model.{LINEAR}.weight"
        weight = patcher.model.state_dict()[key].float()
        adapter = self.Adapter("sd15", {self.target(LINEAR): layer})
        found = patched(self.apply(self.host, adapter, 0.5, 0.0, False, patcher, None).values[0])[key]
        right = layer.apply(weight, 0.5)
        smallest = torch.finfo(dtype).smallest_normal
        step = right.abs().clamp(min=smallest) * torch.finfo(dtype).eps
        return float(((found.float() - right).abs() / step).max()) if found.dtype == dtype else float("inf")


def main() -> None:
    """Do all of it in inference mode, as ComfyUI does."""
    pack()
    from somewhere.lora_core import layers

    torch.manual_seed(0)
    check = Check()
    with torch.inference_mode():
        patcher = live(SD15)
        made = algorithms(layers)
        found = {name: check.algorithm(patcher, named) for name, named in made.items()}
        found["as the host"] = {name: check.as_host(patcher, made[name]) for name in AS_THE_HOST}
        found["blocks"] = check.blocks(layers)
        found["widened"] = check.widened(layers)
        found["modulation"] = check.modulation(layers)
        kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
        found["stored"] = {name: check.stored(layers, dtype) for name, dtype in kinds.items()}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


main()
