"""The verb `bake`: LoRAs into a checkpoint, or out of it again."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import Any

from .extract import shown
from .output import json_text, note
from .verbs import ROUNDING, part_of


def arguments(verb: ArgumentParser) -> None:
    """Add the options of `bake`."""
    verb.add_argument("FILE", nargs="+", metavar="FILE[@STRENGTH[@TE_STRENGTH]]")
    verb.add_argument("--unbake", action="store_true", help="take the LoRAs out again, up to the rounding of the dtype")
    verb.add_argument("--allow-partial", action="store_true", help="leave out, and list, layers that find no weight")


def bake(options: Namespace) -> int:
    """Write a checkpoint with LoRAs baked into it: same layout, same dtypes; a diffusers folder gives a new folder."""
    from ..convert import load
    from ..convert.baked_files import bake as baked
    from ..convert.checkpoint import open_checkpoint
    from ..lora_core.ops.merge import Weighted

    given = [part_of(text) for text in options.FILE]
    loaded = [load(name) for name, _, _ in given]
    parts = [
        Weighted(one.adapter, strength, text_encoder, one.path.name)
        for one, (_, strength, text_encoder) in zip(loaded, given, strict=True)
    ]
    result = baked(
        open_checkpoint(options.CHECKPOINT),
        parts,
        options.OUT,
        files=[name for name, _, _ in given],
        dtype=options.dtype,
        unbake=options.unbake,
        allow_partial=options.allow_partial,
        overwrite=options.force,
        seen=shown,
    )
    for name in result.edits.unplaced:
        note(f"left out {name}: no weight of its shape in {options.CHECKPOINT}")
    facts = {
        "adapters": len(parts),
        "layers": result.edits.count,
        "unplaced": list(result.edits.unplaced),
        "relative_error": result.report.relative_error,
        "dtype": options.dtype,
        "out": str(result.path),
    }
    print(json_text(facts) if options.json else line(facts, options))
    return 0


def line(facts: dict[str, Any], options: Namespace) -> str:
    """Return the result in words; the error is the stored change's against the wanted one's."""
    what = "took out" if options.unbake else "baked"
    error = facts["relative_error"]
    told = "0.0 (exact)" if error == 0 else f"{error:.2g} (rounding of the stored weights)"
    told = f"{error:.1e} (float32 rounding)" if 0 < error < ROUNDING else told
    return f"{what} {facts['adapters']} adapters, {facts['layers']} layers, relative error {told}"
