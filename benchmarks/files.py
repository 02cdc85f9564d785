"""Times converting, scaling and merging a file against reading and writing the same bytes with safetensors.

    python benchmarks/files.py [--megabytes 500] [--rounds 3] [--keep FOLDER]

Each command runs as a process of its own, as a person starts it. CPU and wall seconds, medians over rounds, less those
of an interpreter that imports torch, which all of them need; the copy is flushed to the disk as the results are, and
one run of each takes turns with the other. Peak memory is that of the process less that of one that imports torch: of
all pages, those of mapped files included (the sources; the system takes them back when it needs them), and of the
process's own alone (from /proc, every 10 ms; 0 where there is none).
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
from dataclasses import dataclass, fields
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
    memory: float  # MB, with the pages of mapped files
    own: float  # MB, without


def run(*command: str) -> Run:
    """Run a command, and return its times and peak memory. Raises CalledProcessError."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    pid, own = 0, 0.0
    while not pid:
        own = max(own, own_memory(process.pid))
        time.sleep(0.01)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Run(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024, own)


def own_memory(pid: int) -> float:
    """Return the MB of a running process that no file backs; 0 where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)


def medians(commands: list[tuple[list[str], Path]], rounds: int) -> list[Run]:
    """Return the medians of several runs of each command, which take turns; each writes its file anew."""
    found: list[list[Run]] = [[] for _ in commands]
    for _ in range(rounds):
        for runs, (command, out) in zip(found, commands, strict=True):
            out.unlink(missing_ok=True)
            runs.append(run(*command))
    return [
        Run(*(statistics.median(getattr(one, item.name) for one in runs) for item in fields(Run))) for runs in found
    ]


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
    idle = medians([([sys.executable, "-c", IDLE], out)], rounds)[0]
    verbs = {
        "convert": ["convert", whole, str(out), "--to", "diffusers"],
        "scale": ["scale", whole, str(out), "--strength", "0.7"],
        "merge": ["merge", str(out), f"{first}@0.5", second, "--dtype", "fp16"],
        "merge fp32": ["merge", str(out), f"{first}@0.7", second],
    }
    print(f"{torch.get_num_threads()} threads; an interpreter with torch: {idle.seconds:.2f} s, {idle.memory:.0f} MB")
    copied = out.with_name("copied.safetensors")
    for name, call in verbs.items():
        copying = [sys.executable, "-c", COPY, str(out), str(copied)]
        found, copy = medians([([sys.executable, str(ROOT), *call], out), (copying, copied)], rounds)
        size = out.stat().st_size / 1e6
        seconds, plain = found.seconds - idle.seconds, copy.seconds - idle.seconds
        wall, plain_wall = found.wall - idle.wall, copy.wall - idle.wall
        memory, own = (found.memory - idle.memory) * 1.048576, (found.own - idle.own) * 1.048576
        print(
            f"{name}: {size:.0f} MB in {seconds:.2f} CPU s, read and written alone {plain:.2f}, ratio "
            f"{seconds / plain:.2f}; wall {wall:.2f} s, alone {plain_wall:.2f}, ratio {wall / plain_wall:.2f}; "
            f"peak memory {own:.0f} MB, {own / size:.2f} of the output, with mapped files {memory / size:.2f}"
        )


if __name__ == "__main__":
    main()
