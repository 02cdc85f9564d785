"""What `info` adds about the weights themselves: spectra, the likeness with another LoRA, and the picture of both."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import plot


def arguments(verb: ArgumentParser) -> None:
    """Add the options to `info`."""
    spectrum = "norms, singular values, stable and effective rank of every layer and block"
    verb.add_argument("--spectrum", action="store_true", help=spectrum)
    verb.add_argument("--compare", metavar="LORA", help="the cosine between FILE and another LoRA, block by block")
    picture = "draw the spectra and the blocks into PICTURE (.png, .svg, .pdf); needs matplotlib"
    verb.add_argument("--plot", metavar="PICTURE", help=picture)
    verb.add_argument("--force", action="store_true", help="--plot: replace the picture if it is there")


def check(options: Namespace) -> None:
    """Raise, before anything is read, for options that do not go together and for a picture that cannot be drawn."""
    from ..lora_core import store
    from ..lora_core.errors import BadConfig

    if options.fast and wanted(options):
        raise BadConfig("--fast looks at no values, which --spectrum, --compare and --plot are about: leave it out")
    if options.plot is None:
        return
    if len(options.FILE) > 1:
        raise BadConfig("--plot draws one LoRA: name one FILE, and another one with --compare if you like")
    plot.check(options.plot)
    if not options.force:
        store.refuse_existing(options.plot)


def wanted(options: Namespace) -> bool:
    """Tell whether the weights are asked about at all."""
    return bool(options.spectrum or options.compare or options.plot)


def facts(file: str, options: Namespace) -> dict[str, Any]:
    """Return what was asked about a file's weights, under "spectrum", "compare" and "plot"; the picture is drawn."""
    from ..convert import load
    from ..convert.figure import figure
    from ..convert.portrait import compared, portrait

    adapter = load(file).adapter
    other = load(options.compare).adapter if options.compare else None
    found: dict[str, Any] = {}
    if options.spectrum or options.plot:
        seen = portrait(adapter, other if options.plot else None, Path(file).name, Path(options.compare or "").name)
        found |= {"spectrum": seen.data()} if options.spectrum else {}
        found |= {"plot": str(plot.plot(figure(seen), options.plot, options.force))} if options.plot else {}
    if other is not None:
        found["compare"] = compared(adapter, other, str(options.compare))
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `facts` found, for people."""
    from ..convert.portrait import compare_table, spectrum_table

    if "spectrum" in found:
        yield from ("", *spectrum_table(found["spectrum"]))
    if "compare" in found:
        yield from ("", f"Compared with {found['compare']['with']}:", *compare_table(found["compare"]))
    if "plot" in found:
        yield from ("", f"drawn into {found['plot']}")
