"""What the nodes do, each a few calls on the line path -> adapter -> path. Training has a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .. import convert
from ..convert import regroup
from ..convert.codec import decode, encode
from ..convert.detect import detect
from ..convert.proof import write_proved
from ..lora_core.adapter import Adapter
from ..lora_core.errors import FileProblem, UnknownFormat
from ..lora_core.ops.merge import Order, Weighted
from ..lora_core.ops.methods import Settings
from ..lora_core.ops.methods import method as method_named
from ..lora_core.ops.provenance import made
from ..lora_core.ops.report import wished_error
from ..lora_core.ops.scale import scale
from .fit import fit, refuse_misfit
from .paths import below, free_name
from .portrait import looked_at
from .seam import Host
from .spec import Result
from .verdict import describe, exactness, fitness, summary


def load_lora(host: Host, lora: str) -> Result:
    """Read a file from the loras folders, in whatever dialect it is."""
    path = host.lora_path(lora)
    if path is None:
        raise FileProblem(f"{lora}: is not in the loras folders any more; refresh the list and choose again", file=lora)
    loaded = convert.load(path)
    adapter = replace(loaded.adapter, metadata={**loaded.adapter.metadata, "ss_output_name": path.stem})
    return Result((adapter,), f"{path.name}: {summary(adapter)}, {loaded.match.format} keys")


def lora_fingerprint(host: Host, lora: str | None = None) -> Any:
    """Return what changes when the file behind a name is written anew."""
    path = host.lora_path(lora) if lora else None
    status = path.stat() if path and path.exists() else None
    return [lora, status.st_mtime_ns, status.st_size] if status else [lora]


def apply_lora(
    host: Host,
    lora: Adapter,
    strength_model: float,
    strength_clip: float,
    allow_partial: bool = False,
    model: Any = None,
    clip: Any = None,
) -> Result:
    """Patch MODEL and CLIP with a LoRA, or refuse before anything is patched."""
    found = fit(lora, host.weights(model, clip))
    refuse_misfit(lora, found, allow_partial)
    patched = host.patched(model, clip, found.layers, strength_model, strength_clip)
    return Result(patched, fitness(found))


def scale_lora(lora: Adapter, strength: float, text_encoder: float) -> Result:
    """Return the same LoRA at another strength, its weights untouched."""
    return Result((scale(lora, strength, text_encoder),))


def merge_loras(
    lora_a: Adapter,
    strength_a: float,
    lora_b: Adapter,
    strength_b: float,
    strength_c: float,
    strength_d: float,
    method: str,
    rank: int,
    lora_c: Adapter | None = None,
    lora_d: Adapter | None = None,
    energy: float = 0.0,
    density: float = 0.0,
    seed: int = 0,
) -> Result:
    """Merge up to four LoRAs into one and measure how near it is to what the method wants; 0 stands for not set."""
    offered = ((lora_a, strength_a), (lora_b, strength_b), (lora_c, strength_c), (lora_d, strength_d))
    given = [(lora, strength) for lora, strength in offered if lora is not None]
    alike = regroup.alike([lora for lora, _ in given])
    parts = [Weighted(lora, strength) for lora, (_, strength) in zip(alike, given, strict=True)]
    sizes = (None, None) if method == "exact" else (rank or None, energy or None)
    used = method_named(method).settings
    settings = Settings(density=density or None if "density" in used else None, seed=seed if "seed" in used else None)
    order = Order(parts, method, *sizes, settings)
    merged = order.result()
    error = wished_error(merged, order.wishes()).relative_error
    report = f"merged {len(parts)} LoRAs, {summary(merged)}, {exactness(error)}"
    return Result((merged, report), report)


def save_lora(host: Host, lora: Adapter, filename_prefix: str, format: str, dtype: str) -> Result:
    """Write a LoRA below `output/loras` under a name that is still free, once it is proved to do the same there."""
    folder = host.output_folder() / "loras"
    path = free_name(below(folder, filename_prefix), ".safetensors")
    proof = write_proved(lora, path, format, dtype=dtype)
    error = exactness(proof.report.relative_error)
    report = f"{path.relative_to(folder.resolve()).as_posix()}: {summary(lora)}, {format} keys, {error}"
    return Result((str(path), report), report)


def inspect_lora(
    host: Host, lora: Adapter, model: Any = None, clip: Any = None, other: Adapter | None = None, picture: bool = True
) -> Result:
    """Say what a LoRA is and, where models are wired, whether it fits them; draw its spectra and blocks."""
    more, drawing = looked_at(lora, other, picture)
    lines = [*describe(lora), *more]
    if model is not None or clip is not None:
        lines.append(fitness(fit(lora, host.weights(model, clip))))
    text = "\n".join(lines)
    return Result((text, drawing), text)


def to_lora_model(lora: Adapter) -> Result:
    """Return a LoRA as ComfyUI's own LORA_MODEL: a state dict under ComfyUI's names."""
    return Result((encode(lora, "comfy"),))


def from_lora_model(lora_model: Mapping[str, Tensor]) -> Result:
    """Return ComfyUI's own LORA_MODEL as a LoRA of these nodes."""
    match = detect({key: tuple(tensor.shape) for key, tensor in lora_model.items()})
    if match.unplaced:
        raise UnknownFormat.closest(None, match.candidates[0], len(match.places), len(lora_model), match.unplaced)
    adapter = replace(decode(lora_model, match, {}), origin=made("taken from a LORA_MODEL"))
    return Result((adapter,), summary(adapter))
