"""Times merging two SD 1.5 adapters of rank 32 (264 modules, fp16), exact and by SVD, and measures each one's error.

    python benchmarks/merge.py [--rank 32] [--rounds 3]

One thread; process CPU seconds, medians over rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def alias_root() -> None:
    """Make this checkout importable as `lorasmith`, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]


def adapter(seed: int, rank: int) -> Any:
    """Return random layers on the modules that kohya's trainer adapts: attention, feed-forward and CLIP-L."""
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core.adapter import Adapter
    from lorasmith.lora_core.layers import LoRA

    map, generator = keymap("sd15"), torch.Generator().manual_seed(seed)
    layers = {}
    for component in ("denoiser", "clip_l"):
        for name, target in map.targets(component, "diffusers").items():
            shape = map.shape(target) or ()
            if len(shape) > 1 and (".attentions." in name or ".layers." in name):
                down = torch.randn(rank, *shape[1:], generator=generator) / shape[1] ** 0.5
                up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) / rank**0.5
                layers[target] = LoRA(down.half(), up.half(), float(rank))
    return Adapter("sd15", layers)


def timed(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the median CPU seconds of a call, and its last result."""
    seconds, result = [], None
    for _ in range(rounds):
        began = time.process_time()
        result = work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds), result


def main() -> None:
    """Print one line per method."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rank", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(1)
    alias_root()
    from lorasmith.lora_core.ops.merge import Weighted, merge
    from lorasmith.lora_core.ops.report import relative_error

    parts = [Weighted(adapter(1, given.rank), 0.7), Weighted(adapter(2, given.rank), -0.4)]
    print(f"{len(parts[0].adapter.layers)} layers, rank {given.rank}")
    for method, rank in (("exact", None), ("svd", given.rank)):
        seconds, merged = timed(lambda m=method, r=rank: merge(parts, m, r), given.rounds)  # type: ignore[misc]
        proof, report = timed(lambda made=merged: relative_error(made, parts), 1)  # type: ignore[misc]
        print(f"{method}: {seconds:.2f} s, relative error {report.relative_error:.1e}, measured in {proof:.2f} s")


if __name__ == "__main__":
    main()
