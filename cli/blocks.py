"""The verb `blocks`: the names that `--block` takes, and what they hold; and that option itself."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .output import json_text

if TYPE_CHECKING:
    from ..lora_core.adapter import Adapter


def arguments(verb: ArgumentParser) -> None:
    """Add the options of `blocks`."""
    verb.add_argument("FILE", nargs="?", help="a LoRA: its blocks, with ranks and each block's share of the effect")
    verb.add_argument("--architecture", metavar="ID", help="a model family: all of its blocks; such as sdxl or flux")
    strengths(verb)
    verb.add_argument("--json", action="store_true", help="print the result, or the error, as JSON")


def strengths(verb: ArgumentParser) -> None:
    """Add the option `--block`."""
    told = "strength of a block, a label (IN04), a range (double.0-9), a group (down, all); or a preset (OUTALL), or a "
    told += "whole line of numbers; 0 leaves the block out. May be given several times; 'blocks' lists the names"
    verb.add_argument("--block", action="append", default=[], metavar="NAME=S", help=told)


def strengths_of(adapter: Adapter, given: Sequence[str]) -> dict[str, float]:
    """Return what `--block` says of an adapter's family, by the names of blocks."""
    from ..convert.block_weights import strengths
    from ..convert.regroup import family_of

    return strengths(family_of(adapter), "\n".join(given)) if given else {}


def blocks(options: Namespace) -> int:
    """List the blocks of a model family, or of a LoRA, with their labels and layers."""
    from ..convert import load
    from ..convert.regroup import family_of
    from ..lora_core.errors import BadConfig

    if (options.FILE is None) == (options.architecture is None):
        raise BadConfig("give a LoRA file, or --architecture with a family's id such as sdxl")
    adapter = load(options.FILE).adapter if options.FILE else None
    family = family_of(adapter) if adapter else checked(options.architecture)
    facts = facts_about(family, adapter, options.block)
    print(json_text(facts, indent=2) if options.json else text(facts))
    return 0


def checked(id: str) -> str:
    """Return a family's id; raises BadConfig, which names the nearest ones, for an unknown one."""
    import difflib

    from ..convert.architectures import ARCHITECTURES
    from ..lora_core.errors import BadConfig

    known = [family.id for family in ARCHITECTURES]
    if id not in known:
        near = difflib.get_close_matches(id.lower(), known, 3, 0.4) or known
        raise BadConfig(f"no model family {id!r}: choose one, such as {', '.join(near)}")
    return id


def facts_about(family: str, adapter: Adapter | None, given: Sequence[str]) -> dict[str, Any]:
    """Return the JSON of `blocks`."""
    from ..convert import block_weights
    from ..convert.blocks import blocks

    weights = block_weights.strengths(family, "\n".join(given))
    held = {} if adapter is None else held_by(adapter)
    rows = []
    for block in blocks(family):
        if adapter is None or block.name in held:
            own = held.get(block.name, {"layers": len(block.targets)})
            strength = {"strength": weights.get(block.name, 1.0)} if given else {}
            rows.append({"name": block.name, "aliases": list(block.aliases), **own, **strength})
    present = None if adapter is None else list(held)
    return {
        "architecture": family,
        "blocks": rows,
        "line_lengths": [len(one.labels) for one in block_weights.conventions(family)],
        "presets": block_weights.presets(family),
        **({"line": line(family, weights, present)} if given else {}),
    }


def line(family: str, weights: dict[str, float], present: Sequence[str] | None) -> str | None:
    """Return strengths as a line of numbers, or None where none says them all."""
    from ..convert import block_weights
    from ..lora_core.errors import BadConfig

    try:
        return block_weights.line(family, weights, present=present)
    except BadConfig:
        return None


def held_by(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """Return, by block, the number of an adapter's layers, their ranks, and their share of the squared norm."""
    from collections import Counter, defaultdict

    from ..convert.blocks import namer
    from ..lora_core.layers import rank_of
    from ..lora_core.ops.shares import shares

    name = namer(adapter)
    targets = defaultdict(list)
    for target in adapter.layers:
        targets[name(target)].append(target)
    parts = shares(adapter, name)
    return {
        block: {
            "layers": len({(target.component, target.module) for target in found}),
            "ranks": {str(rank): n for rank, n in Counter(rank_of(adapter.layers[at]) for at in found).items() if rank},
            "share": None if parts is None else parts[block],
        }
        for block, found in targets.items()
    }


def text(facts: dict[str, Any]) -> str:
    """Return the facts as a table for people; the last line is that of numbers, or how many there are in one."""
    head = {"name": "block", "aliases": "labels", "layers": "layers", "ranks": "ranks", "share": "share"}
    head["strength"] = "strength"
    columns = [key for key in head if any(key in row for row in facts["blocks"])]
    rows = [[head[key] for key in columns]] + [[cell(key, row[key]) for key in columns] for row in facts["blocks"]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lengths = " or ".join(map(str, facts["line_lengths"]))
    lines.append(f"presets: {', '.join(facts['presets'])}{f'; a line of {lengths} numbers' if lengths else ''}")
    if facts.get("line"):
        lines.append(f"as numbers: {facts['line']}")
    return "\n".join(lines)


def cell(key: str, value: Any) -> str:
    """Return one fact as a cell of the table."""
    if key == "aliases":
        return " ".join(value)
    if key == "ranks":
        return " ".join(f"{rank}" for rank in sorted(value, key=int))
    if key == "share":
        return "-" if value is None else f"{100 * value:.1f} %"
    return f"{value:g}" if isinstance(value, float) else str(value)
