"""The call taken apart: verbs, their options, and the one argument with a grammar of its own."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..lora_core.errors import BadConfig
from . import bake, blocks, extract, merging, portrait, redo, reduce, resize, verbs
from .training import train

WRITERS = ("convert", "scale", "merge", "resize", "prune", "rescale", "extract")  # verbs whose help lists the formats
NEGATIVE = ("--strength", "--text-encoder")  # options whose value may begin with a minus


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as every other refusal."""

    def error(self, message: str) -> NoReturn:
        """Raise BadConfig for a call that does not fit."""
        raise BadConfig(f"{message}. Run '{self.prog} --help'")


def parser(given: Sequence[str]) -> Parser:
    """Build the parser; the list of formats is looked up only for a help page, which `given` may ask for."""
    made = Parser(prog="lorasmith", description="A LoRA workbench: inspect, convert, scale, merge and train.")
    known = made.add_subparsers(metavar="VERB", required=True)
    formats = known_formats() if {"-h", "--help"} & set(given) and set(WRITERS) & set(given) else ""

    def verb(run: Callable[[argparse.Namespace], int], *names: str) -> Parser:
        found: Parser = known.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        found.set_defaults(run=run, json=False, trust=False)
        for name in names:
            found.add_argument(name)
        return found

    _info(verb(verbs.info))
    _convert(verb(verbs.convert, "IN", "OUT"), formats)
    _scale(verb(verbs.scale, "IN", "OUT"), formats)
    blocks.arguments(verb(blocks.blocks))
    merging.arguments(_writing(verb(merging.merge, "OUT")), formats)
    resize.arguments(_writing(verb(resize.resize, "IN", "OUT")), formats)
    reduce.pruning(_writing(verb(reduce.prune, "IN", "OUT")), formats)
    reduce.rescaling(_writing(verb(reduce.rescale, "IN", "OUT")), formats)
    bake.arguments(_writing(verb(bake.bake, "CHECKPOINT", "OUT")))
    extract.arguments(_writing(verb(extract.extract, "BASE", "TUNED", "OUT")), formats)
    _train(verb(train, "CONFIG"))
    redo.arguments(verb(redo.redo))
    _demo(verb(verbs.demo))
    return made


def _info(verb: Parser) -> None:
    verb.add_argument("FILE", nargs="+")
    verb.add_argument("--keys", action="store_true", help="list every key with its dtype and shape")
    verb.add_argument("--against", metavar="MODEL", help="a checkpoint or diffusers folder: does the LoRA fit it?")
    verb.add_argument("--fast", action="store_true", help="read the header alone; the values are not looked at")
    verb.add_argument("--recipe", action="store_true", help="print how a result was made as JSON, for 'redo'")
    portrait.arguments(verb)
    _json(verb)


def _convert(verb: Parser, formats: str) -> None:
    verb.add_argument("--to", metavar="FORMAT", required=True, help=f"one of: {formats}")
    verb.add_argument("--trust", action="store_true", help="write without comparing the result with IN first")
    verb.add_argument("--bake-to", choices=("lora",), help="approximate layers of other algorithms; states the error")
    verb.add_argument("--rank", type=int, metavar="N", help="--bake-to: rank of the approximated layers at most")
    _writing(verb)


def _scale(verb: Parser, formats: str) -> None:
    verb.add_argument("--strength", type=float, default=1.0, metavar="S", help="default: 1")
    verb.add_argument("--text-encoder", type=float, metavar="S", help="default: as --strength")
    blocks.strengths(verb)
    verb.add_argument("--to", metavar="FORMAT", help=f"default: as IN; else one of: {formats}")
    _writing(verb)


def _train(verb: Parser) -> None:
    verb.epilog = "CONFIG's entries: docs/training-options.md, beside the code"
    verb.add_argument("--resume", action="store_true", help="go on where the run ended")
    verb.add_argument("--plan", action="store_true", help="measure one step, say what the run will need, and end")
    verb.add_argument("--json", action="store_true", help="--plan: as JSON")
    verb.add_argument("--events", metavar="FILE", help="add one JSON object a line to FILE; '-' is stdout")


def _demo(verb: Parser) -> None:
    verb.add_argument("--out", metavar="DIR", help="default: lorasmith-demo, or the next free name")


def _writing(verb: Parser) -> Parser:
    verb.add_argument("--dtype", default="keep", help="keep (default), fp32, fp16 or bf16")
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    _json(verb)
    return verb


def _json(verb: Parser) -> None:
    verb.add_argument("--json", action="store_true", help="print the result, or the error, as JSON")


def known_formats() -> str:
    """Return the ids that can be written; without torch none, so that help never fails."""
    if importlib.util.find_spec("torch") is None:
        return "kohya, ..."
    from ..convert.formats import WRITABLE

    return ", ".join(WRITABLE)


def joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a number as value of a strength tied to its option, for argparse reads -1e-1 as one.

    >>> joined(["IN", "OUT", "--strength", "-1e-1"])
    ['IN', 'OUT', '--strength=-1e-1']
    """
    result: list[str] = []
    for argument in arguments:
        if result and result[-1] in NEGATIVE and number(argument) is not None:
            result[-1] = f"{result[-1]}={argument}"
        else:
            result.append(argument)
    return result


def number(text: str) -> float | None:
    """Return the number that the text spells, if any."""
    try:
        return float(text)
    except ValueError:
        return None


def weighted_name(text: str) -> tuple[str, float, float | None]:
    """Split `FILE[@STRENGTH[@TE_STRENGTH]]`; names may hold an @, and a file of exactly that name comes first.

    >>> weighted_name("C:/loras/me@home.safetensors@-0.5")
    ('C:/loras/me@home.safetensors', -0.5, None)
    """
    readings: list[tuple[str, list[float]]] = [(text, [])]
    for count in (1, 2):
        name, *tail = text.rsplit("@", count)
        strengths = [found for found in map(number, tail) if found is not None]
        if name and len(tail) == len(strengths) == count:
            readings.append((name, strengths))
    name, strengths = next((reading for reading in readings if os.path.exists(reading[0])), readings[-1])
    strength = strengths[0] if strengths else 1.0
    return name, strength, strengths[1] if len(strengths) == 2 else None
