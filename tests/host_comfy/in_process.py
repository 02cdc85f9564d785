"""Runs inside ComfyUI's interpreter: compares weights, which HTTP cannot show, and prints the findings as JSON.

in_process.py COMFYUI PACK CHECKPOINT LORAS PICTURES OUTPUT [--fp16-unet ...]: each file of LORAS is added to the models
by ComfyUI's own loader and by these nodes; then a LoRA is trained for two steps and the models are looked at again.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

HOST, PACK, CHECKPOINT, LORAS, PICTURES, OUTPUT = (Path(one) for one in sys.argv[1:7])
sys.argv = [sys.argv[0], "--cpu", *sys.argv[7:]]
os.chdir(HOST)
sys.path.insert(0, str(HOST))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

logging.getLogger().setLevel(logging.ERROR)


def pack() -> None:
    """Import the pack as ComfyUI does: by its file, under a name of no meaning."""
    spec = importlib.util.spec_from_file_location(
        "somewhere", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["somewhere"] = module
    spec.loader.exec_module(module)


def patched_weights(model, clip) -> dict[str, torch.Tensor]:
    """Return copies of all weights as they are with the patches applied, and take the patches off again."""
    found = {}
    for name, patcher in (("model", model), ("clip", clip.patcher)):
        patcher.patch_model(device_to=torch.device("cpu"))
        found.update({f"{name}.{key}": value.clone() for key, value in patcher.model.state_dict().items()})
        patcher.unpatch_model(device_to=torch.device("cpu"))
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of weights agree bit for bit."""
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key].view(torch.uint8), other[key].view(torch.uint8))
        for key in one
        if one[key].dim()
    )


def compared(actions, host, model, clip, plain, path: Path) -> dict:
    """Add one file both ways and compare."""
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    theirs = patched_weights(*comfy.sd.load_lora_for_models(model, clip, tensors, 0.8, 0.6))
    lora = actions.load_lora(host, path.name).values[0]
    ours = patched_weights(*actions.apply_lora(host, lora, 0.8, 0.6, False, model, clip).values)
    changed = [key for key in plain if not torch.equal(plain[key], theirs[key])]
    return {
        "equal": same(theirs, ours),
        "changed": len(changed),
        "dtypes": sorted({str(theirs[key].dtype) for key in changed}),
    }


def forwards(model, clip) -> list:
    """Return what hangs on the instances of the models' modules: forwards, hooks, parameters by identity."""
    modules = [*model.model.modules(), *clip.cond_stage_model.modules()]
    return [
        (id(part.__dict__.get("forward")), len(part._forward_pre_hooks), [id(p) for p in part._parameters.values()],
         [(p.requires_grad, p.grad is None) for p in part._parameters.values() if p is not None])
        for part in modules
    ]  # fmt: skip


def trained(training, host, model, clip, vae, plain) -> dict:
    """Train two steps and say whether the models are what they were."""
    before = forwards(model, clip)
    state = torch.get_rng_state()
    result = training.train_lora(
        host, model, clip, vae, pictures=PICTURES.name, name="inside", steps=2, learning_rate=1e-3, rank=2, alpha=2.0,
        batch_size=2, resolution=64, targets="all", text_encoder=True, scheduler="constant", seed=3,
    )  # fmt: skip
    lora = result.values[0]
    return {
        "layers": len(lora.layers),
        "attached": forwards(model, clip) != before,
        "weights": same(plain, patched_weights(model, clip)),
        "random": torch.equal(state, torch.get_rng_state()),
        "inference": sum(p.is_inference() for p in model.model.parameters()),
        "moved": sum(bool(layer.up.float().any()) for layer in lora.layers.values()),
    }


def main() -> None:
    """Do all of it in inference mode, as ComfyUI does."""
    pack()
    from somewhere.nodes import actions, training
    from somewhere.nodes.host import ComfyHost

    folder_paths.add_model_folder_path("loras", str(LORAS))
    folder_paths.set_input_directory(str(PICTURES.parent))
    folder_paths.set_output_directory(str(OUTPUT))
    host = ComfyHost()
    with torch.inference_mode():
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), output_vae=True, output_clip=True)
        plain = patched_weights(model, clip)
        files = [path for path in sorted(LORAS.glob("*.safetensors")) if path.stem not in ("broken", "sdxl", "wide")]
        found = {path.stem: compared(actions, host, model, clip, plain, path) for path in files}
        found["trained"] = trained(training, host, model, clip, vae, plain)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


main()
