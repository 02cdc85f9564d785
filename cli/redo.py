"""The verb `redo`: a result made again from its recipe, and held against the first."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import json_text, note
from .verbs import facts_about, said, written

if TYPE_CHECKING:
    from ..convert.baked_files import Baked
    from ..convert.detect import Match
    from ..lora_core.adapter import Adapter
    from ..lora_core.ops.recipe import Recipe


def arguments(verb: ArgumentParser) -> None:
    """Add the options of `redo`."""
    verb.add_argument("RECIPE", help="a result of Lorasmith, or its recipe as 'info --recipe FILE' prints it")
    verb.add_argument("OUT", nargs="?", help="default: the name of RECIPE with -redone")
    where = "a folder to look for inputs in, besides RECIPE's and the current one; may be given several times"
    verb.add_argument("--in", dest="folders", action="append", default=[], metavar="FOLDER", help=where)
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.add_argument("--json", action="store_true", help="print the result, or the error, as JSON")


def redo(options: Namespace) -> int:
    """Make a result again from its recipe, once all of its inputs are found."""
    from ..convert.redo import read_recipe, redo
    from ..lora_core import store
    from ..lora_core.adapter import Adapter

    path = Path(options.RECIPE)
    options.OUT = options.OUT or f"{path.stem}-redone.safetensors"
    if not options.force:
        store.refuse_existing(options.OUT)
    recipe = read_recipe(path)
    made = redo(recipe, [path.parent, Path(), *options.folders])
    store.refuse_inputs(options.OUT, [options.RECIPE, *made.inputs])
    options.dtype = made.dtype
    if not isinstance(made.adapter, Adapter):
        return model_again(made.adapter(Path(options.OUT), options.force), options)
    facts = again(made.adapter, made.format, recipe, options)
    same = "the same bit for bit" if facts["identical"] else "not the same bit for bit"
    return said(f"redone, {same}:", facts, options)


def recipes(options: Namespace) -> int:
    """Print the recipes of the files as JSON, several as a list."""
    from ..convert.redo import read_recipe

    found = [read_recipe(file).data() for file in options.FILE]
    print(json_text(found if len(found) > 1 else found[0], indent=2))
    return 0


def model_again(baked: Baked, options: Namespace) -> int:
    """Say how a model that was written again compares with the first result, where that is one file and at hand."""
    from ..lora_core.hashes import autov3

    files = (options.RECIPE, options.OUT)
    known = all(Path(file).is_file() and file.lower().endswith(".safetensors") for file in files)
    same = autov3(files[0]) == autov3(files[1]) if known else None
    words = {True: "the same bit for bit", False: "not the same bit for bit", None: "not compared with the first"}
    facts = {"layers": baked.edits.count, "out": str(baked.path), "identical": same}
    print(json_text(facts) if options.json else f"redone, {words[same]}: {facts['layers']} layers baked")
    return 0


def again(adapter: Adapter, format: str | Match, recipe: Recipe, options: Namespace) -> dict[str, Any]:
    """Write what was made again and return its facts; "identical" tells whether its tensors are the first result's."""
    import torch

    from ..convert import load
    from ..convert.blocks import namer
    from ..convert.files import store_plan
    from ..convert.proof import prove
    from ..lora_core.hashes import model_hash
    from ..lora_core.ops.merge import Weighted

    proof = prove(adapter, options.OUT, format, dtype=options.dtype)
    if model_hash(proof.plan.tensors) == recipe.tensors:
        facts = facts_about(proof.adapter, store_plan(proof.plan, options.force), proof.match.format, None)
        per_block = dict.fromkeys(map(namer(proof.adapter), proof.adapter.layers), 0.0)
        return {**facts, "relative_error": 0.0, "per_block": per_block, "identical": True}
    if recipe.torch != torch.__version__:
        note(f"warning: the first result was made with torch {recipe.torch}, whose rounding may differ")
    if options.RECIPE.lower().endswith(".json"):
        facts = facts_about(proof.adapter, store_plan(proof.plan, options.force), proof.match.format, None)
        return {**facts, "identical": False}
    return {**written(adapter, [Weighted(load(options.RECIPE).adapter)], format, options), "identical": False}
