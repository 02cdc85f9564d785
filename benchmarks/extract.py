"""Times making LoRA layers of SDXL's UNet out of weight changes: this project's sketch against a full SVD per layer.

    python benchmarks/extract.py [--rank 32] [--shapes 10] [--spectrum flat] [--threads 1] [--device cpu] [--bake]

One random change for each of the most costly distinct shapes, and the times multiplied by how often each shape occurs:
"whole UNet" is so extrapolated, and says of how many of its weights. Spectra: "tuned" is a change of rank 48 with
falling singular values over noise that has as much energy; "flat" is noise alone, the worst case. "captured" is the
share of the energy that the exact truncated SVD captures, the least over the shapes. "clamped" is what sd-scripts'
extract_lora_from_models.py makes of the same SVD: factors clamped at their 0.99 quantile; its error beside ours.
`--bake` times instead the writing of a checkpoint of SDXL's UNet in fp16 with a LoRA in it, from file to file.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
Shape = tuple[int, ...]


def alias_root() -> None:
    """Make this checkout importable as `lorasmith`, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]


def matrices() -> dict[str, Shape]:
    """Return the shapes of the weights of SDXL's UNet that have a rank, by name."""
    from lorasmith.convert.keymap import keymap

    map = keymap("sdxl")
    shapes = {name: map.shape(target) for name, target in map.targets("denoiser", "original").items()}
    return {name: shape for name, shape in shapes.items() if shape and len(shape) > 1}


def costly(count: int) -> list[tuple[Shape, int]]:
    """Return the shapes on which a full SVD of the whole UNet spends the most, and how often each occurs."""
    counts = Counter(matrices().values())

    def cost(shape: Shape) -> float:
        sides = sorted((shape[0], torch.Size(shape[1:]).numel()))
        return float(sides[0] ** 2 * sides[1] * counts[shape])

    return [(shape, counts[shape]) for shape in sorted(counts, key=cost, reverse=True)[:count]]


def change(shape: Shape, kind: str) -> Tensor:
    """Return a random change `(out, in * kernel)` of a weight."""
    generator = torch.Generator().manual_seed(sum(shape))
    out, inner = shape[0], torch.Size(shape[1:]).numel()
    noise = torch.randn(out, inner, generator=generator) * 1e-3
    if kind == "flat":
        return noise
    values = torch.arange(1, 49, dtype=torch.float32) ** -0.7
    left, right = torch.randn(out, 48, generator=generator), torch.randn(48, inner, generator=generator)
    tuned = (left * values) @ right
    return noise + tuned * (noise.norm() / tuned.norm())


def clamped(left: Tensor, values: Tensor, right: Tensor, rank: int) -> Tensor:
    """Return the product that sd-scripts stores: both factors clamped at the 0.99 quantile of their values."""
    rows, columns = left[:, :rank] * values[:rank], right[:rank]
    high = torch.quantile(torch.cat([rows.flatten(), columns.flatten()]), 0.99)
    return rows.clamp(-high, high) @ columns.clamp(-high, high)


def measured(shape: Shape, kind: str, rank: int, device: str) -> dict[str, float]:
    """Return seconds and errors of both ways on one shape."""
    from lorasmith.lora_core.ops.sketch import residual, sketch

    matrix = change(shape, kind).to(device)
    squares = float(matrix.double().square().sum())
    began = clock(device)
    found = sketch(matrix, rank)
    ours = clock(device) - began
    error = residual(matrix.clone(), found.factors) ** 2
    began = clock(device)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    full = clock(device) - began
    best = float(values[:rank].double().square().sum())
    peer = float((matrix - clamped(left, values, right, rank)).double().square().sum())
    return {
        "ours": ours,
        "full": full,
        "captured": (squares - error) / best,
        "error": (error / squares) ** 0.5,
        "clamped": (peer / squares) ** 0.5,
    }


def clock(device: str) -> float:
    """Return the seconds now: the processor's own for one thread; on a GPU once it has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def table(given: argparse.Namespace) -> None:
    """Print a line per shape and one for the whole UNet, for each spectrum."""
    shapes, every = costly(given.shapes), len(matrices())
    for kind in given.spectrum:
        print(f"{kind}: rank {given.rank}, {given.device}, {torch.get_num_threads()} threads")
        total: Counter[str] = Counter()
        least, covered = 1.0, 0
        for shape, count in shapes:
            row = measured(shape, kind, given.rank, given.device)
            total.update({"ours": row["ours"] * count, "full": row["full"] * count})
            least, covered = min(least, row["captured"]), covered + count
            text = f"{count:4} x {'x'.join(map(str, shape)):14} {row['ours']:7.3f} s, full SVD {row['full']:8.3f} s"
            times, share = f"{row['full'] / row['ours']:5.1f}x", f"captured {row['captured']:.5f}"
            print(f"  {text}, {times}, {share}, error {row['error']:.3f}, clamped {row['clamped']:.3f}", flush=True)
        times = f"{total['ours']:.0f} s against {total['full']:.0f} s, {total['full'] / total['ours']:.1f}x"
        print(f"  whole UNet ({covered} of {every} weights, extrapolated): {times}, captured at least {least:.5f}")


def bake(rank: int) -> None:
    """Time reading, changing and writing every weight of SDXL's UNet, and copying the file."""
    from lorasmith.convert.baked_files import bake as baked
    from lorasmith.convert.checkpoint import open_checkpoint
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core import store
    from lorasmith.lora_core.adapter import Adapter
    from lorasmith.lora_core.layers import LoRA
    from lorasmith.lora_core.ops.merge import Weighted

    generator, targets = torch.Generator().manual_seed(0), keymap("sdxl").targets("denoiser", "original")
    layers: dict[Any, Any] = {}
    outlines = {}
    for name, shape in matrices().items():
        outlines[f"model.diffusion_model.{name}.weight"] = torch.empty(shape, dtype=torch.float16, device="meta")
        down, up = (torch.randn(sides, generator=generator).half() for sides in ((rank, *shape[1:]), (shape[0], rank)))
        layers[targets[name]] = LoRA(down, up.reshape(*up.shape, *[1] * (len(shape) - 2)) / 100, float(rank))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "base.safetensors", Path(folder) / "out.safetensors"
        store.save_pieces(source, outlines, lambda name: torch.full(outlines[name].shape, 0.02, dtype=torch.float16))
        began = time.perf_counter()
        store.save(Path(folder) / "copy.safetensors", store.load(source).tensors)
        copied = time.perf_counter() - began
        size = source.stat().st_size
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = baked(open_checkpoint(source), [Weighted(Adapter("sdxl", layers))], out)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"bake: {len(layers)} layers of rank {rank} into {size / 1e9:.2f} GB: {seconds:.1f} s")
    print(f"  the file read whole and written: {copied:.1f} s; relative error {result.report.relative_error:.2g}")
    print(f"  peak memory {peak / 1e6:.1f} GB, of which {before / 1e6:.1f} were taken before")


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rank", type=int, default=32)
    options.add_argument("--shapes", type=int, default=10)
    options.add_argument("--spectrum", choices=("tuned", "flat"), nargs="*", default=("tuned", "flat"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    options.add_argument("--bake", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    alias_root()
    bake(given.rank) if given.bake else table(given)


if __name__ == "__main__":
    main()
