"""Times making LoRA layers of SDXL's UNet out of weight changes: this project's sketch against a full SVD per layer.

    python benchmarks/extract.py [--rank 32] [--shapes 10] [--spectrum flat] [--threads 1] [--device cpu]
    python benchmarks/extract.py --bake
    python benchmarks/extract.py --memory

One random change for each of the most costly distinct shapes, and the times multiplied by how often each shape occurs:
"whole UNet" is so extrapolated, and says of how many of its weights. Spectra: "tuned" is a change of rank 48 with
falling singular values over noise that has as much energy; "flat" is noise alone, the worst case. "captured" is the
share of the energy that the exact truncated SVD captures, the least over the shapes. Where SD_SCRIPTS_PATH names a
checkout of sd-scripts, the `svd` of its `extract_lora_from_models.py` does the same layers, with stand-ins for the
models that it would load; its time and its error are beside ours.

`--bake` times instead the writing of a checkpoint of SDXL's UNet in fp16 with a LoRA in it, from file to file.
`--memory` extracts from two fp16 files of two blocks of SD 1.5's UNet, and tells how far the process grew.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from checkout import alias_root
from torch import Tensor

Shape = tuple[int, ...]


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


Peer = Callable[[Tensor, int], Tensor]


def peer(checkout: Path) -> Peer:
    """Return `change -> the product that extract_lora_from_models.py stores`; what it imports for models stands in."""
    names = (
        "library",
        "library.sai_model_spec",
        "library.model_util",
        "library.sdxl_model_util",
        "library.utils",
        "lora",
    )
    made = {name: ModuleType(name) for name in names}
    sys.modules.update(made)
    for name in names[1:5]:
        setattr(made["library"], name.partition(".")[2], made[name])
    kept: dict[str, Tensor] = {}

    def network(*given: Any, **_settings: Any) -> Any:
        layer = SimpleNamespace(lora_name="a", org_module=SimpleNamespace(weight=given[5]))
        return SimpleNamespace(text_encoder_loras=[], unet_loras=[layer])

    def result(*_given: Any, weights_sd: dict[str, Tensor]) -> Any:
        kept.update(weights_sd)
        nothing = lambda *_given: None  # noqa: E731
        return SimpleNamespace(apply_to=nothing, load_state_dict=nothing, save_weights=nothing), weights_sd

    made["library.utils"].setup_logging = lambda *_given: None  # type: ignore[attr-defined]
    models: Any = made["library.model_util"]
    models.load_models_from_stable_diffusion_checkpoint = lambda _v2, weight: (None, None, weight)
    models.get_model_version_str_for_sd1_sd2 = lambda *_given: ""
    made["lora"].create_network = network  # type: ignore[attr-defined]
    made["lora"].create_network_from_weights = result  # type: ignore[attr-defined]
    path = checkout / "networks" / "extract_lora_from_models.py"
    spec = importlib.util.spec_from_file_location("extract_lora_from_models", path)
    module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    module.args = SimpleNamespace(device=None)  # that its function reads as a global

    def run(change: Tensor, rank: int) -> Tensor:
        before, after = torch.zeros_like(change), change
        with redirect_stderr(StringIO()):
            module.svd(before, after, "out.safetensors", rank, False, False, no_metadata=True, save_precision="float")
        return kept["a.lora_up.weight"] @ kept["a.lora_down.weight"]

    return run


def measured(shape: Shape, kind: str, rank: int, device: str, theirs: Peer | None) -> dict[str, float]:
    """Return seconds and errors of all ways on one shape."""
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
    row = {"peer": 0.0, "peer error": 0.0}
    if theirs is not None:
        began = clock(device)
        product = theirs(matrix, rank)
        row["peer"] = clock(device) - began
        row["peer error"] = (float((matrix - product).double().square().sum()) / squares) ** 0.5
    return {
        **row,
        "ours": ours,
        "full": full,
        "captured": (squares - error) / best,
        "error": (error / squares) ** 0.5,
    }


def clock(device: str) -> float:
    """Return the seconds now: the processor's own for one thread; on a GPU once it has finished."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def table(given: argparse.Namespace) -> None:
    """Print a line per shape and one for the whole UNet, for each spectrum."""
    shapes, every = costly(given.shapes), len(matrices())
    theirs = peer(Path(os.environ["SD_SCRIPTS_PATH"])) if os.environ.get("SD_SCRIPTS_PATH") else None
    for kind in given.spectrum:
        print(f"{kind}: rank {given.rank}, {given.device}, {torch.get_num_threads()} threads")
        total: Counter[str] = Counter()
        least, covered = 1.0, 0
        for shape, count in shapes:
            row = measured(shape, kind, given.rank, given.device, theirs)
            total.update({name: row[name] * count for name in ("ours", "full", "peer")})
            least, covered = min(least, row["captured"]), covered + count
            text = f"{count:4} x {'x'.join(map(str, shape)):14} {row['ours']:7.3f} s, full SVD {row['full']:8.3f} s"
            times, share = f"{row['full'] / row['ours']:5.1f}x", f"captured {row['captured']:.5f}"
            print(f"  {text}, {times}, {share}, error {row['error']:.3f}", flush=True)
            if theirs is not None:
                print(f"       sd-scripts {row['peer']:.3f} s, error {row['peer error']:.3f}", flush=True)
        times = f"{total['ours']:.0f} s against {total['full']:.0f} s, {total['full'] / total['ours']:.1f}x"
        print(f"  whole UNet ({covered} of {every} weights, extrapolated): {times}, captured at least {least:.5f}")
        if theirs is not None:
            print(f"  sd-scripts: {total['peer']:.0f} s, {total['peer'] / total['ours']:.1f}x", flush=True)


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
        began = time.perf_counter()
        result = baked(open_checkpoint(source), [Weighted(Adapter("sdxl", layers))], out)
        seconds = time.perf_counter() - began
    print(f"bake: {len(layers)} layers of rank {rank} into {size / 1e9:.2f} GB: {seconds:.1f} s")
    print(f"  the file read whole and written: {copied:.1f} s; relative error {result.report.relative_error:.2g}")


def memory(rank: int) -> None:
    """Extract from two files, and print how far the process grew, beside the result and the largest weight."""
    from lorasmith.convert.difference import extracted
    from lorasmith.convert.keymap import keymap
    from lorasmith.lora_core import store
    from lorasmith.lora_core.ops.extract import Settings

    map = keymap("sd15")
    shapes = {name: map.shape(target) for name, target in map.targets("denoiser", "original").items()}
    outlines = {
        f"model.diffusion_model.{name}.weight": torch.empty(shape, dtype=torch.float16, device="meta")
        for name, shape in shapes.items()
        if shape and (name.startswith("middle_block.") or name.startswith("output_blocks.3."))
    }

    def tuned(name: str) -> Tensor:
        shape = outlines[name].shape
        if len(shape) < 2:
            return torch.full(shape, 0.02, dtype=torch.float16)
        return (0.02 + change(tuple(shape), "tuned").reshape(shape)).half()

    with tempfile.TemporaryDirectory() as folder:
        base, other = Path(folder) / "base.safetensors", Path(folder) / "tuned.safetensors"
        store.save_pieces(base, outlines, lambda name: torch.full(outlines[name].shape, 0.02, dtype=torch.float16))
        store.save_pieces(other, outlines, tuned)
        gc.collect()
        before, most, done = anonymous(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.005):
                most[0] = max(most[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        found = extracted(base, other, Settings(rank=rank))
        seconds = time.perf_counter() - began
        done.set()
        watcher.join()
        size = base.stat().st_size
    result = sum(t.numel() * t.element_size() for layer in found.adapter.layers.values() for t in layer.tensors())
    largest = max(tensor.numel() for tensor in outlines.values()) * 4
    print(
        f"extract: two files of {size / 1e9:.2f} GB, {len(found.adapter.layers)} layers of rank {rank}: {seconds:.1f} s"
    )
    print(f"  grew by {(most[0] - before) / 1e6:.0f} MB at most; the result has {result / 1e6:.0f} MB,")
    print(f"  the largest weight {largest / 1e6:.0f} MB in float32")


def anonymous() -> int:
    """Return the process's own memory in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rank", type=int, default=32)
    options.add_argument("--shapes", type=int, default=10)
    options.add_argument("--spectrum", choices=("tuned", "flat"), nargs="*", default=("tuned", "flat"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    options.add_argument("--bake", action="store_true")
    options.add_argument("--memory", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    alias_root()
    if given.memory:
        memory(given.rank)
    elif given.bake:
        bake(given.rank)
    else:
        table(given)


if __name__ == "__main__":
    main()
