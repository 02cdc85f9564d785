"""Tells how planning, caching and memory grow with the data set: 250, 500 and 1,000 generated pictures.

    python benchmarks/train_data.py [--counts 250 500 1000] [--rounds 3]

JPEG pictures of four shapes, about 0.8 megapixels each, in aspect-ratio buckets of 512 x 512 pixels, each with a
caption of its own. The encoders are stubs with the outputs of SD 1.5's (latents of an eighth of the size, 77 x 768
embeddings), so the times are those of the data path alone. Each figure comes from a process of its own: process CPU
seconds, medians over rounds, and what the peak of the resident memory grows by while everything is cached and an epoch
of batches is assembled.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkout import alias_root
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

SHAPES = ((1024, 768), (768, 1024), (896, 896), (1200, 640))


class Encoders:
    """Stands in for a model: latents are means over 8 x 8 pixels, embeddings come from the caption's length."""

    fingerprint, dtype, device = "stub", torch.float32, torch.device("cpu")

    def encode_image(self, pixels: Tensor) -> Any:
        """Return latents (4, h, w)."""
        from lorasmith.lora_core.train.protocols import Moments

        mean = avg_pool2d(pixels[[0, 1, 2, 0]], 8)
        return Moments(mean, torch.full_like(mean, 0.1))

    def encode_text(self, caption: str) -> Mapping[str, Tensor]:
        """Return embeddings (1, 77, 768)."""
        return {"context": torch.full((1, 77, 768), float(len(caption)))}


def generate(folder: Path, count: int) -> None:
    """Write pictures with soft noise, which compresses as photographs do, and their captions."""
    folder.mkdir(parents=True)
    for index in range(count):
        width, height = SHAPES[index % len(SHAPES)]
        source = np.random.default_rng(index).integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        Image.fromarray(source).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{index:04d}.jpg")
        (folder / f"{index:04d}.txt").write_text(f"picture number {index}, soft noise")


def peak() -> float:
    """Return the largest resident size so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(data: Path, out: Path, cache_kind: str) -> dict[str, float]:
    """Plan, cache and draw an epoch in this process."""
    alias_root()
    from lorasmith.lora_core.train import data as data_module
    from lorasmith.lora_core.train.cache import open_cache
    from lorasmith.lora_core.train.config import TrainConfig

    torch.set_num_threads(1)
    keys: dict[str, Any] = {"model": "stub", "data": str(data), "out": str(out), "buckets": True, "batch_size": 4}
    config = TrainConfig.from_json({**keys, "cache": cache_kind, "random_flip": True})
    found: dict[str, float] = {}
    for threads in (1, 4):
        data_module.THREADS = threads
        began = time.perf_counter()
        data_module.plan(config)
        found[f"wall_{threads}"] = time.perf_counter() - began
    began = time.process_time()
    plan = data_module.plan(config)
    steps = plan.epoch(0, 10**6)
    views = list(plan.drawn(steps))
    found["plan"] = time.process_time() - began
    cache = open_cache(config, Encoders())  # type: ignore[arg-type]
    cache.fill(views[:40])  # what is allocated once
    base, began = peak(), time.process_time()
    cache.fill(views)
    found["fill"] = time.process_time() - began
    began = time.process_time()
    for step in steps:
        cache.batch(plan.views(step)[0], 0, "train", step, 0, 1.0)
    found["batch"] = (time.process_time() - began) / len(steps)
    found["growth"] = peak() - base
    return found


def rounds(data: Path, kind: str, count: int) -> Iterator[dict[str, float]]:
    """Yield what `measured` finds in processes of their own."""
    for _ in range(count):
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, __file__, "--child", str(data), str(Path(out) / "run"), kind]
            yield json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--counts", type=int, nargs="+", default=[250, 500, 1000])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        print(json.dumps(measured(Path(given.child[0]), Path(given.child[1]), given.child[2])))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in given.counts:
            generate(Path(folder) / str(count), count)
        print("pictures  cache   plan s  (wall s, 1 and 4 threads)  cache s  per picture ms  batch ms  memory MB")
        for kind in ("memory", "disk"):
            for count in given.counts:
                found = list(rounds(Path(folder) / str(count), kind, given.rounds))
                middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
                walls = f"({middle['wall_1']:.2f} {middle['wall_4']:.2f})"
                each = 1000 * (middle["plan"] + middle["fill"]) / count
                print(
                    f"{count:8d}  {kind:6s} {middle['plan']:7.2f}  {walls:>26s} {middle['fill']:8.2f} {each:15.2f}"
                    f" {1000 * middle['batch']:9.2f} {middle['growth']:10.0f}"
                )


if __name__ == "__main__":
    main()
