"""Times converting, scaling and merging a file against reading and writing the same bytes with safetensors.

    python benchmarks/files.py [--megabytes 500] [--rounds 3] [--keep FOLDER]

Each command runs as a process of its own, as a person starts it. CPU and wall seconds, medians over rounds, less those
of an interpreter that imports torch, which all of them need; the copy is flushed to the disk as the results are. Peak
memory is that of the process less that of one that imports torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
IDLE = "import torch, safetensors.torch"
COPY = (
    "import sys, os, torch; from safetensors.torch import load_file, save_file; "
    "tensors = load_file(sys.argv[1]); save_file(tensors, sys.argv[2]); "
    "file = os.open(sys.argv[2], os.O_RDONLY); os.fsync(file)"
)


@dataclass(frozen=True)
class Run:
    """What a process took."""

    seconds: float  # of the CPU, all threads together
    wall: float
    memory: float  # MB


def run(*command: str) -> Run:
    """Run a command, and return its times and peak memory. Raises CalledProcessError."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def median(command: list[str], rounds: int, out: Path) -> Run:
    """Return the median of several runs, each of which writes `out` anew."""
    found = []
    for _ in range(rounds):
        out.unlink(missing_ok=True)
        found.append(run(*command))
    seconds, wall = (
        statistics.median(times) for times in zip(*((one.seconds, one.wall) for one in found), strict=True)
    )
    return Run(seconds, wall, max(one.memory for one in found))


def alias_root() -> None:
    """Make this checkout importable as `lorasmith`, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]


def made(path: Path, megabytes: float, seed: int) -> None:
    """Write a kohya file for SDXL of about that size: all 722 attention and feed-forward modules, fp16."""
    from lorasmith.convert import write
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core.adapter import Adapter
    from lorasmith.lora_core.layers import LoRA

    map, generator = keymap("sdxl"), torch.Generator().manual_seed(seed)
    shapes: dict[Any, tuple[int, ...]] = {}
    for name, target in map.targets("denoiser", "diffusers").items():
        shape = map.shape(target) or ()
        if len(shape) == 2 and ".attentions." in name:
            shapes[target] = shape
    rank = max(1, round(megabytes * 1e6 / 2 / sum(map_shape[0] + map_shape[1] for map_shape in shapes.values())))
    layers = {}
    for target, (out, inner) in shapes.items():
        down = torch.randn(rank, inner, generator=generator).half() / inner**0.5
        layers[target] = LoRA(down, torch.randn(out, rank, generator=generator).half(), float(rank))
    write(Adapter("sdxl", layers), path, "kohya")


def main() -> None:
    """Print one line per command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=float, default=500)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--keep", help="folder for the files; default: a temporary one")
    given = options.parse_args()
    alias_root()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.keep or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        sources = [folder / "a.safetensors", folder / "b.safetensors", folder / "whole.safetensors"]
        for seed, (path, share) in enumerate(zip(sources, (0.5, 0.5, 1.0), strict=True)):
            if not path.exists():
                made(path, given.megabytes * share, seed)
        compare(sources, folder / "out.safetensors", given.rounds)


def compare(sources: list[Path], out: Path, rounds: int) -> None:
    """Time the copy and the verbs."""
    first, second, whole = map(str, sources)
    idle = median([sys.executable, "-c", IDLE], rounds, out)
    verbs = {
        "convert": ["convert", whole, str(out), "--to", "diffusers"],
        "scale": ["scale", whole, str(out), "--strength", "0.7"],
        "merge": ["merge", str(out), f"{first}@0.5", second, "--dtype", "fp16"],
        "merge fp32": ["merge", str(out), f"{first}@0.7", second],
    }
    print(f"{torch.get_num_threads()} threads; an interpreter with torch: {idle.seconds:.2f} s, {idle.memory:.0f} MB")
    for name, call in verbs.items():
        found = median([sys.executable, str(ROOT), *call], rounds, out)
        size = out.stat().st_size / 1e6
        copied = out.with_name("copied.safetensors")
        copy = median([sys.executable, "-c", COPY, str(out), str(copied)], rounds, copied)
        seconds, plain = found.seconds - idle.seconds, copy.seconds - idle.seconds
        wall, plain_wall = found.wall - idle.wall, copy.wall - idle.wall
        memory = (found.memory - idle.memory) * 1.048576
        print(
            f"{name}: {size:.0f} MB in {seconds:.2f} CPU s, read and written alone {plain:.2f}, ratio "
            f"{seconds / plain:.2f}; wall {wall:.2f} s, alone {plain_wall:.2f}, ratio {wall / plain_wall:.2f}; "
            f"peak memory {memory:.0f} MB, {memory / size:.2f} of the output"
        )


if __name__ == "__main__":
    main()
