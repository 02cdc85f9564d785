"""The verbs that turn files into files. The core is imported when one runs, so that help and refusals are quick."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from .output import escaped, json_text, refused

if TYPE_CHECKING:
    from pathlib import Path

    from ..convert.detect import Match
    from ..lora_core.adapter import Adapter
    from ..lora_core.ops.merge import Weighted
    from ..lora_core.ops.report import Report

INPUTS = ("IN", "BASE", "TUNED")  # arguments that name a file to read
ROUNDING = 3e-7  # relative; a few times float32's unit of 6e-8


def info(options: Namespace) -> int:
    """Say what a LoRA file is, and whether it fits a model."""
    from ..convert import inspect
    from . import portrait
    from .redo import recipes

    if options.recipe:
        return recipes(options)
    portrait.check(options)
    results = [facts_of(file, options) for file in options.FILE]
    if options.json:
        print(json_text(results if len(results) > 1 else results[0], indent=2))
    for result in () if options.json else results:
        if "error" in result:
            refused(result["error"], as_json=False)
        else:
            print(inspect.text(result), *(f"  {escaped(line)}".rstrip() for line in portrait.lines(result)), sep="\n")
        for key, what in result.get("keys", {}).items():
            print(f"  {escaped(key)}  {what['dtype']} {what['shape']}")
    return 2 if any("error" in result for result in results) else 0


def facts_of(file: str, options: Namespace) -> dict[str, Any]:
    """Return what `info` tells of one file; what cannot be read is an error beside the others' facts."""
    from ..convert.inspect import info
    from ..lora_core.errors import LorasmithError
    from . import portrait

    try:
        told = info(file, against=options.against, fast=options.fast, keys=options.keys)
        return {**told, **portrait.facts(file, options)} if portrait.wanted(options) else told
    except LorasmithError as error:
        return {"error": error.details()}


def convert(options: Namespace) -> int:
    """Write a LoRA in another program's key format, and check that it still does the same."""
    from ..convert import load
    from ..lora_core.ops.health import refuse_bad_values
    from ..lora_core.ops.merge import Weighted

    check_output(options)
    source = load(options.IN, mapped=True)
    refuse_bad_values(source.adapter, options.IN)
    result = baked(source.adapter, options)
    if options.trust:
        return said("converted", written_unproved(result, options), options)
    return said("converted", written(result, [Weighted(source.adapter)], options.to, options), options)


def baked(adapter: Adapter, options: Namespace) -> Adapter:
    """Return the adapter, with its layers of other algorithms as LoRA where that was asked for."""
    from ..lora_core.errors import BadConfig
    from ..lora_core.ops.bake import to_lora

    if (options.bake_to is None) != (options.rank is None):
        raise BadConfig("--bake-to and --rank go together: write --bake-to lora --rank 32")
    return adapter if options.bake_to is None else to_lora(adapter, options.rank)


def scale(options: Namespace) -> int:
    """Write a LoRA whose effect at strength 1 is that of the given one at another strength, of all or some blocks."""
    from ..convert import load, selection
    from ..lora_core.ops.health import refuse_bad_values
    from .blocks import strengths_of

    check_output(options)
    source = load(options.IN, mapped=True)
    refuse_bad_values(source.adapter, options.IN)
    blocks = strengths_of(source.adapter, options.block)
    result = selection.scaled(source.adapter, options.strength, options.text_encoder, blocks)
    wanted = selection.weighted(source.adapter, options.strength, options.text_encoder, blocks)
    return said("scaled", written(result, wanted, options.to or source.match, options), options)


def part_of(text: str) -> tuple[str, float, float | None]:
    """Return the file and the strengths that `FILE[@STRENGTH[@TE_STRENGTH]]` names; raises BadConfig for no number."""
    from ..lora_core.errors import BadConfig
    from .call import weighted_name

    name, strength, text_encoder = weighted_name(text)
    file, at, tail = name.rpartition("@")
    if at and not os.path.exists(name) and os.path.exists(file):
        raise BadConfig(f"{text}: {tail!r} is no strength; write a number after the @, such as {file}@0.8", file=file)
    return name, strength, text_encoder


def check_output(options: Namespace) -> None:
    """Raise, before anything is read, for an OUT that is there and for a FORMAT or dtype that does not exist."""
    from ..convert.files import tensors_for
    from ..lora_core import store
    from ..lora_core.adapter import Adapter

    tensors_for(Adapter(None, {}), options.to or "kohya", options.dtype)  # an adapter of no layers fits all there is
    store.refuse_inputs(options.OUT, [vars(options)[name] for name in INPUTS if name in options])
    if not options.force:
        store.refuse_existing(options.OUT)


def written(result: Adapter, wanted: list[Weighted], format: str | Match, options: Namespace) -> dict[str, Any]:
    """Write a result, and return what a reader of the file finds, with its error against what was wanted."""
    from dataclasses import replace

    from ..convert.files import store_plan
    from ..convert.proof import prove
    from ..convert.regroup import alike
    from ..lora_core.ops.report import relative_error

    proof = prove(result, options.OUT, format, dtype=options.dtype)
    back, *adapters = alike([proof.adapter, *(part.adapter for part in wanted)])
    parts = [replace(part, adapter=adapter) for part, adapter in zip(wanted, adapters, strict=True)]
    facts = facts_about(proof.adapter, proof.plan.path, proof.match.format, relative_error(back, parts))
    store_plan(proof.plan, options.force)
    return facts


def written_unproved(result: Adapter, options: Namespace) -> dict[str, Any]:
    """Write a result without a comparison, and return its facts; values that are no finite numbers are refused."""
    from ..convert.files import plan, store_plan
    from ..lora_core.errors import BadValues
    from ..lora_core.ops.health import finite, refuse_bad_values

    refuse_bad_values(result, options.IN)
    planned = plan(result, options.OUT, options.to, options.dtype)
    bad = next((key for key, tensor in planned.tensors.items() if not finite(tensor)), None)
    if bad is not None:
        message = f"{options.OUT}: not written, {bad!r} is too large as {options.dtype}; choose bf16 or fp32"
        raise BadValues(message, file=options.OUT)
    return facts_about(result, store_plan(planned, options.force), options.to, None)


def facts_about(adapter: Adapter, out: Path, format: str, report: Report | None) -> dict[str, Any]:
    """Return the JSON of a verb that writes; the errors are None where nothing was measured."""
    from ..convert.blocks import namer
    from ..lora_core.layers import rank_of

    return {
        "layers": len({(target.component, target.module) for target in adapter.layers}),
        "rank": max((rank_of(layer) or 0 for layer in adapter.layers.values()), default=0),
        "relative_error": report and report.relative_error,
        "per_block": report and report.grouped(namer(adapter)),
        "format": format,
        "architecture": adapter.architecture,
        "out": str(out),
    }


def said(what: str, facts: dict[str, Any], options: Namespace) -> int:
    """Print the result's line, or the facts as JSON."""
    error = error_text(facts["relative_error"])
    line = f"{what} {facts['layers']} layers, rank {facts['rank']}, relative error {error}"
    print(json_text(facts) if options.json else line)
    return 0


def error_text(error: float | None) -> str:
    """Return a relative error as people read it.

    >>> error_text(0.0), error_text(2e-8), error_text(0.0123)
    ('0.0 (exact)', '2.0e-08 (float32 rounding)', '0.0123')
    """
    if error is None:
        return "not measured"
    if error == 0:
        return "0.0 (exact)"
    return f"{error:.1e} (float32 rounding)" if error < ROUNDING else f"{error:.3g}"


def demo(options: Namespace) -> int:
    """Try everything on a tiny model and pictures that come along, on the CPU."""
    from ..examples.demo import run

    run(options.out)
    return 0
