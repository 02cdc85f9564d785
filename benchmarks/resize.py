"""Times resizing an SDXL LoRA (attention and feed-forward, fp16) from rank 128 to 32, and measures the error.

    python benchmarks/resize.py [--from 128] [--to 32] [--rounds 3] [--conv] [--threads 1]

The dense way, a full SVD of each layer's `up @ down`, takes too long: it is timed on one layer of each distinct shape
and multiplied by how many there are. So is `resize_lora.py` of sd-scripts, where SD_SCRIPTS_PATH names a checkout of
it, by a call of its resizing function. Process CPU seconds, medians over rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from checkout import alias_root


def adapter(rank: int, conv: bool) -> Any:
    """Return random layers on SDXL's transformer blocks, their singular values falling as those of trained ones do."""
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core.adapter import Adapter
    from lorasmith.lora_core.layers import LoRA

    map, generator = keymap("sdxl"), torch.Generator().manual_seed(1)
    fall = torch.logspace(0, -2, rank)
    layers = {}
    for name, target in map.targets("denoiser", "diffusers").items():
        shape = map.shape(target) or ()
        if len(shape) > 1 and (".attentions." in name or (conv and len(shape) == 4)):
            down = torch.randn(rank, *shape[1:], generator=generator) * fall.reshape(-1, *[1] * (len(shape) - 1))
            up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / shape[0]
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


def samples(whole: Any) -> tuple[Any, Counter[tuple[int, ...]]]:
    """Return an adapter of one layer of each shape, and how many layers of it there are."""
    from dataclasses import replace

    counts = Counter(layer.shape for layer in whole.layers.values())
    first = {layer.shape: target for target, layer in reversed(whole.layers.items())}
    return replace(whole, layers={target: whole.layers[target] for target in first.values()}), counts


def dense(few: Any, rank: int, counts: Mapping[tuple[int, ...], int]) -> tuple[float, Any]:
    """Return the CPU seconds of the dense way for all layers, and the sampled layers' best approximations."""
    from dataclasses import replace

    from lorasmith.lora_core.ops.parts import low_rank

    total, layers = 0.0, {}
    for target, layer in few.layers.items():
        seconds, found = timed(lambda layer=layer: torch.linalg.svd(layer.delta().flatten(1), full_matrices=False), 1)  # type: ignore[misc]
        total += seconds * counts[layer.shape]
        left, values, right = (part[..., :rank] if part is not found[2] else part[:rank] for part in found)
        layers[target] = low_rank(left * values, right, layer.shape)
    return total, replace(few, layers=layers)


def optimum(few: Any, rank: int) -> float:
    """Return the least relative error of a rank, by float64 singular values of the factors' cores."""
    from lorasmith.lora_core.ops.lowrank import factors

    left = total = 0.0
    for layer in few.layers.values():
        product = factors(layer)
        cores = (torch.linalg.qr(side, mode="r").R for side in (product.rows, product.columns.T))
        squares = torch.linalg.svdvals(next(cores) @ next(cores).T).square()
        left, total = left + float(squares[rank:].sum()), total + float(squares.sum())
    return (left / total) ** 0.5


def peer(checkout: Path) -> Callable[..., Any]:
    """Return the function of `resize_lora.py` that resizes a state dict; what it imports for files is left out."""
    for name in ("library", "library.train_util", "library.model_util", "library.utils"):
        sys.modules[name] = ModuleType(name)
    for name in ("train_util", "model_util"):
        setattr(sys.modules["library"], name, sys.modules[f"library.{name}"])
    sys.modules["library.utils"].setup_logging = lambda *_given: None  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("resize_lora", checkout / "networks" / "resize_lora.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module.resize_lora_model  # type: ignore[no-any-return]


def theirs(few: Any, rank: int, counts: Mapping[tuple[int, ...], int], checkout: Path) -> tuple[float, Any]:
    """Return the CPU seconds of `resize_lora.py` for all layers, and what it makes of the sampled ones."""
    from dataclasses import replace

    from lorasmith.lora_core.layers import LoRA

    run, total, layers = peer(checkout), 0.0, {}
    for target, layer in few.layers.items():
        given = {"a.lora_down.weight": layer.down.float(), "a.lora_up.weight": layer.up.float()}
        given["a.alpha"] = torch.tensor(layer.alpha)
        with redirect_stderr(StringIO()):  # its progress bars
            seconds, (made, *_) = timed(
                lambda d=given: run(d, rank, rank, torch.float32, "cpu", None, None, False),  # type: ignore[misc]
                1,
            )
        total += seconds * counts[layer.shape]
        layers[target] = LoRA(made["a.lora_down.weight"], made["a.lora_up.weight"], float(made["a.alpha"]))
    return total, replace(few, layers=layers)


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--from", dest="old", type=int, default=128)
    options.add_argument("--to", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--conv", action="store_true", help="convolutions too")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    alias_root()
    from lorasmith.lora_core.ops.report import difference
    from lorasmith.lora_core.ops.resize import ranks_of, resize

    whole = adapter(given.old, given.conv)
    few, counts = samples(whole)
    size = sum(tensor.numel() * tensor.element_size() for layer in whole.layers.values() for tensor in layer.tensors())
    print(f"{len(whole.layers)} layers of {len(counts)} shapes, rank {given.old}, {size / 1e6:.0f} MB, to {given.to}")
    ours, made = timed(lambda: resize(whole, "rank", given.to), given.rounds)
    proof, report = timed(lambda: difference(made, whole), 1)
    full, best = dense(few, given.to, counts)
    fine = resize(few, "rank", given.to, dtype="fp32")
    lines = [
        ("ours", ours, difference(fine, few).relative_error),
        ("full SVD of dense layers *", full, difference(best, few).relative_error),
    ]
    if os.environ.get("SD_SCRIPTS_PATH"):
        seconds, found = theirs(few, given.to, counts, Path(os.environ["SD_SCRIPTS_PATH"]))
        lines.append(("sd-scripts resize_lora.py *", seconds, difference(found, few).relative_error))
    least = optimum(few, given.to)
    print(f"{'':<30}{'CPU s':>10}{'ratio':>9}{'error **':>11}{'above the least':>18}")
    for name, seconds, error in lines:
        print(f"{name:<30}{seconds:>10.2f}{seconds / ours:>8.1f}x{error:>11.6f}{error - least:>18.1e}")
    print(
        f"* one layer of each shape, times how many there are  ** of one float32 layer of each shape; least {least:.6f}"
    )
    print(f"distance between ours and what the dense SVD keeps: {difference(fine, best).relative_error:.1e}")
    print(f"the fp16 result's error over all layers: {report.relative_error:.6f}, measured in {proof:.1f} s")
    fitted, sized = timed(lambda: resize(whole, "size", size / 4e6), 1)
    found = ranks_of(sized)
    error = difference(sized, whole).relative_error
    print(f"a quarter of the size: {fitted:.1f} s, ranks {min(found)} to {max(found)}, error {error:.6f}")


if __name__ == "__main__":
    main()
