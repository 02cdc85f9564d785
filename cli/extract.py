"""The verb `extract`: a LoRA out of the difference of two models."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from .output import note
from .verbs import check_output, facts_about, said

if TYPE_CHECKING:
    from ..lora_core.ops.extract import Extraction


def arguments(verb: ArgumentParser, formats: str) -> None:
    """Add the options of `extract`."""
    verb.add_argument("--kind", default="lora", metavar="KIND", help="lora (default), or lokr: a Kronecker product")
    verb.add_argument("--rank", type=int, metavar="N", help="of each layer; default 32 (lokr: whole factors)")
    verb.add_argument("--energy", type=float, metavar="E", help="lora: share of the squares of singular values to keep")
    verb.add_argument("--conv-rank", type=int, metavar="N", help="rank of convolutions (1x1 aside); default as --rank")
    verb.add_argument("--vectors", action="store_true", help="norms, biases, embeddings too; few hosts read them")
    verb.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, mps")
    verb.add_argument("--to", metavar="FORMAT", default="kohya", help=f"default: kohya; else one of: {formats}")


def extract(options: Namespace) -> int:
    """Write the LoRA that makes the model BASE into the model TUNED; files or diffusers folders, read bit by bit."""
    from ..convert.checkpoint import open_checkpoint
    from ..convert.difference import extracted, lacking
    from ..lora_core.ops.extract import Settings

    check_output(options)
    names = ("kind", "rank", "energy", "conv_rank", "vectors", "dtype", "device")
    settings = Settings(**{name: getattr(options, name) for name in names}).checked()
    result = extracted(options.BASE, options.TUNED, settings, shown)
    for part in lacking(open_checkpoint(options.BASE), open_checkpoint(options.TUNED)):
        note(f"skipped {part}")
    return said("extracted", {**stored(result, options), **left_out(result)}, options)


def stored(result: Extraction, options: Namespace) -> dict[str, Any]:
    """Write what was extracted, proved as every result, and return its facts."""
    from ..convert.files import store_plan
    from ..convert.proof import prove

    proof = prove(result.adapter, options.OUT, options.to)  # the factors are rounded already where that was asked for
    facts = facts_about(proof.adapter, proof.plan.path, proof.match.format, result.report)
    store_plan(proof.plan, options.force)
    return facts


def left_out(result: Extraction) -> dict[str, Any]:
    """Return, and say, how much of the difference no layer was made for."""
    if result.vectors:
        note(f"{result.vectors} norms, biases and embeddings differ and were left out (--vectors takes them)")
    if result.rounding:
        note(f"{result.rounding} weights differ by rounding alone and got no layer")
    if result.left_out:
        note(f"of the whole difference {result.left_out:.2%} lies in what was left out; it counts in the error")
    return {
        "equal": result.equal,
        "rounding": result.rounding,
        "vectors_left_out": result.vectors,
        "left_out": result.left_out,
    }


def shown(done: int, total: int) -> None:
    """Draw how far the work is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total} weights", end="\n" if done == total else "", file=sys.stderr, flush=True)
