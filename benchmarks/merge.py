"""Times an SVD merge of three SDXL adapters of rank 32 to rank 32 against the full SVD of their dense sum.

    python benchmarks/merge.py [--rank 32] [--rounds 3] [--threads 1]

All 722 attention and feed-forward modules of the UNet, fp16. The dense way is timed on one layer of each shape and
multiplied by how many there are; so is `svd_merge_lora.py` of sd-scripts, where SD_SCRIPTS_PATH names a checkout of it,
by a call of its merging function. Process CPU seconds, medians over rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from checkout import alias_root
from torch import Tensor

STRENGTHS = (0.8, 0.6, -0.4)


def adapter(seed: int, rank: int) -> Any:
    """Return random layers on the UNet's attention and feed-forward modules, singular values falling as in training."""
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core.adapter import Adapter
    from lorasmith.lora_core.layers import LoRA

    map, generator = keymap("sdxl"), torch.Generator().manual_seed(seed)
    fall = torch.logspace(0, -1.5, rank)
    layers = {}
    for name, target in map.targets("denoiser", "diffusers").items():
        shape = map.shape(target) or ()
        if len(shape) == 2 and ".attentions." in name:
            down = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
            up = torch.randn(shape[0], rank, generator=generator) / shape[0] ** 0.5 * fall
            layers[target] = LoRA(down.half(), up.half(), float(rank))
    return Adapter("sdxl", layers)


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the median CPU seconds of a call, and its last result."""
    seconds, result = [], None
    for _ in range(rounds):
        began = time.process_time()
        result = work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), result


def one_of_each(parts: list[Any]) -> tuple[list[Any], Counter[tuple[int, ...]]]:
    """Return the parts with one layer of each shape, and how many layers have that shape."""
    from dataclasses import replace

    layers = parts[0].adapter.layers
    counts = Counter(layer.shape for layer in layers.values())
    first = {layer.shape: target for target, layer in reversed(layers.items())}
    few = [
        replace(part, adapter=replace(part.adapter, layers={t: part.adapter.layers[t] for t in first.values()}))
        for part in parts
    ]
    return few, counts


def dense_sum(parts: list[Any], target: Any) -> Tensor:
    """Return the weighted sum of the parts' changes at a target."""
    return torch.stack([part.adapter.layers[target].delta() * part.strength for part in parts]).sum(0)


def full_svd(parts: list[Any], rank: int) -> dict[Any, Tensor]:
    """Return the best changes of the rank, by the full SVD of each dense sum."""
    best = {}
    for target in parts[0].adapter.layers:
        left, values, right = torch.linalg.svd(dense_sum(parts, target), full_matrices=False)
        best[target] = (left[:, :rank] * values[:rank]) @ right[:rank]
    return best


def by_count(
    parts: list[Any], counts: Counter[tuple[int, ...]], work: Callable[[list[Any]], dict[Any, Tensor]]
) -> tuple[float, dict[Any, Tensor]]:
    """Return the CPU seconds that work on one layer of each shape takes, times its count, and the changes it makes."""
    from dataclasses import replace

    total, changes = 0.0, {}
    for target, layer in parts[0].adapter.layers.items():
        one = [
            replace(part, adapter=replace(part.adapter, layers={target: part.adapter.layers[target]})) for part in parts
        ]
        seconds, made = timed(lambda given=one: work(given), 1)  # type: ignore[misc]
        total += counts[layer.shape] * seconds
        changes |= made
    return total, changes


def error_of(changes: dict[Any, Tensor], parts: list[Any]) -> float:
    """Return the relative distance of changes to the parts' sum."""
    wanted = {target: dense_sum(parts, target).double() for target in changes}
    error = math.hypot(*(float((changes[target].double() - wanted[target]).norm()) for target in changes))
    return error / math.hypot(*(float(change.norm()) for change in wanted.values()))


def theirs(rank: int, checkout: Path) -> Callable[[list[Any]], dict[Any, Tensor]]:
    """Return a call of sd-scripts' merging function, which gives its changes; its ratios are the strengths."""
    script = loaded(checkout)
    from lorasmith.convert import read, write

    def merged(given: list[Any]) -> dict[Any, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            files = [
                str(write(part.adapter, Path(folder) / f"{index}.safetensors")) for index, part in enumerate(given)
            ]
            found = script.merge_lora_models(
                files, [part.strength for part in given], [], rank, rank, None, torch.float
            )
            out = Path(folder) / "out.safetensors"
            script.save_to_file(str(out), {key: tensor.contiguous() for key, tensor in found[0].items()}, {})
            return {target: layer.delta() for target, layer in read(out).layers.items()}

    return merged


def loaded(checkout: Path) -> Any:
    """Import `svd_merge_lora.py` with stand-ins for the training library, of which merging takes nothing but names."""
    names = ("library", "library.sai_model_spec", "library.train_util", "library.model_util", "library.utils", "lora")
    for name in names:
        sys.modules[name] = ModuleType(name)
    for name in names[1:4]:
        setattr(sys.modules["library"], name.split(".")[1], sys.modules[name])
    vars(sys.modules["library.utils"])["setup_logging"] = lambda: None
    util = vars(sys.modules["library.train_util"])
    util |= {"load_metadata_from_safetensors": lambda file: {}, "build_minimum_network_metadata": lambda *_: {}}
    util |= {"SS_METADATA_KEY_V2": "ss_v2", "SS_METADATA_KEY_BASE_MODEL_VERSION": "ss_base_model_version"}
    spec = importlib.util.spec_from_file_location("svd_merge_lora", checkout / "networks" / "svd_merge_lora.py")
    script = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(script)  # type: ignore[union-attr]
    return script


def main() -> None:
    """Print one line per way, then the error of the whole."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rank", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    alias_root()
    from lorasmith.lora_core.ops.merge import Weighted, merge
    from lorasmith.lora_core.ops.report import relative_error

    parts = [Weighted(adapter(seed, given.rank), strength) for seed, strength in enumerate(STRENGTHS)]
    few, counts = one_of_each(parts)
    print(f"{len(parts)} adapters, {len(parts[0].adapter.layers)} layers of {len(counts)} shapes, rank {given.rank}")
    ours, whole = timed(lambda: merge(parts, "svd", given.rank), given.rounds)
    exact, _ = timed(lambda: merge(parts), given.rounds)
    found = {target: layer.delta() for target, layer in merge(few, "svd", given.rank).layers.items()}
    dense, best = by_count(few, counts, lambda one: full_svd(one, given.rank))
    rows = [("ours, svd", ours, found), ("ours, exact", exact, None), ("full SVD of the dense sum *", dense, best)]
    if os.environ.get("SD_SCRIPTS_PATH"):
        call = theirs(given.rank, Path(os.environ["SD_SCRIPTS_PATH"]))
        rows.append(("sd-scripts svd_merge_lora.py *", *by_count(few, counts, call)))
    print(f"{'':<32}{'CPU s':>9}{'ratio':>9}{'error **':>11}")
    for name, seconds, made in rows:
        error = 0.0 if made is None else error_of(made, few)
        print(f"{name:<32}{seconds:>9.2f}{seconds / ours:>8.1f}x{error:>11.6f}")
    print("* one layer of each shape, times how many there are  ** of one layer of each shape")
    apart = math.hypot(*(float((found[target] - best[target]).double().norm()) for target in best))
    size = math.hypot(*(float(change.double().norm()) for change in best.values()))
    print(f"distance between ours and the best of rank {given.rank}: {apart / size:.1e}")
    proof, report = timed(lambda: relative_error(whole, parts), 1)
    print(f"error over all layers: {report.relative_error:.6f}, measured in {proof:.1f} s")


if __name__ == "__main__":
    main()
