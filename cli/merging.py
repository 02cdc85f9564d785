"""The verb `merge`: several LoRAs become one, by the plain sum or another method."""

from __future__ import annotations

import importlib.util
import os
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from textwrap import fill
from typing import TYPE_CHECKING, Any

from .resize import megabytes
from .verbs import check_output, facts_about, part_of, said

if TYPE_CHECKING:
    from ..convert.detect import Match
    from ..convert.files import Loaded
    from ..lora_core.adapter import Adapter
    from ..lora_core.ops.merge import Order, Weighted


def arguments(verb: ArgumentParser, formats: str) -> None:
    """Add the options of `merge`; `formats` is empty unless its help page is asked for."""
    verb.add_argument("FILE", nargs="+", metavar="FILE[@STRENGTH[@TE_STRENGTH]]")
    verb.add_argument("--method", default="exact", help="exact (default), or one of those below")
    size = verb.add_argument_group(
        "how large the result is (not with exact; without any, as large as the method needs)"
    )
    size.add_argument("--rank", type=int, metavar="N", help="rank of each layer at most")
    size.add_argument("--energy", type=float, metavar="E", help="share of the squares of singular values to keep: 0.99")
    size.add_argument("--size", type=megabytes, metavar="40MB", help="file size; ranks where they count most")
    how = verb.add_argument_group("settings of some methods")
    how.add_argument("--density", type=float, metavar="D", help="share of the entries that stay: 0.5, breadcrumbs 0.9")
    how.add_argument("--seed", type=int, metavar="N", help="dare-linear, dare-ties, della: of the lots; default 0")
    mean = "average where several LoRAs change the same entry (default of ties, dare-ties, della, knots), or add up"
    how.add_argument("--normalise", action=BooleanOptionalAction, default=None, help=mean)
    how.add_argument("--epsilon", type=float, metavar="E", help="della: how much likelier large entries stay: 0.2")
    how.add_argument("--gamma", type=float, metavar="G", help="breadcrumbs: share of the largest entries to drop: 0.01")
    baked = "checkpoint or diffusers folder that the LoRAs are for: bakes layers whose effect depends on it (DoRA, OFT)"
    verb.add_argument("--base", metavar="MODEL", help=baked)
    verb.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, mps")
    verb.add_argument("--to", metavar="FORMAT", help=f"default: as the first file, or kohya; else one of: {formats}")
    verb.formatter_class = RawDescriptionHelpFormatter
    verb.epilog = methods_text() if formats else None


def methods_text() -> str:
    """Return when to use which method, a paragraph each; without torch nothing, so that help never fails."""
    if importlib.util.find_spec("torch") is None:
        return ""
    from ..lora_core.ops.methods import METHODS

    width = 2 + max(len(row.id) for row in METHODS)
    lines = (
        fill(row.when, 116, initial_indent=f"  {row.id:<{width}}", subsequent_indent=" " * (width + 2))
        for row in METHODS
    )
    return "\n".join(("when to use which method:", *lines))


def merge(options: Namespace) -> int:
    """Merge LoRAs into one, by the sum of their effects or another method."""
    from ..convert import load
    from ..convert.formats import WRITABLE
    from ..convert.regroup import alike
    from ..lora_core import store

    check_output(options)
    parts = [part_of(text) for text in options.FILE]
    store.refuse_inputs(options.OUT, [name for name, _, _ in parts])
    sources = [load(name, mapped=True) for name, _, _ in parts]
    order = ordered(weighted(sources, alike([source.adapter for source in sources]), parts), options)
    first = sources[0].match.format
    format = options.to or (first if first in WRITABLE else "kohya")
    return said(
        f"merged {len(parts)} adapters,", written(fitted(order, format, options), order, format, options), options
    )


def weighted(
    sources: list[Loaded], adapters: list[Adapter], parts: list[tuple[str, float, float | None]]
) -> list[Weighted]:
    """Return the adapters with their strengths and names."""
    from ..lora_core.ops.merge import Weighted

    return [
        Weighted(adapter, strength, text_encoder, source.path.name)
        for adapter, source, (_, strength, text_encoder) in zip(adapters, sources, parts, strict=True)
    ]


def ordered(adapters: list[Weighted], options: Namespace) -> Order:
    """Return the merge that the options ask for."""
    from ..lora_core.dtypes import device_named
    from ..lora_core.errors import BadConfig
    from ..lora_core.ops.merge import Order
    from ..lora_core.ops.methods import Settings

    if options.size is not None and (options.rank is not None or options.energy is not None):
        raise BadConfig("--size already settles every rank: leave --rank and --energy out")
    if options.size is not None and options.method == "exact":
        raise BadConfig("the exact merge keeps every rank: leave --size out, or choose --method svd")
    device_named(options.device)
    settings = Settings(options.density, options.seed, options.normalise, options.epsilon, options.gamma)
    energy = 1.0 if options.size is not None and options.method == "svd" else options.energy
    base = base_weights(options.base, adapters) if options.base else None
    return Order(
        adapters,
        options.method,
        options.rank,
        energy,
        settings,
        base,
        options.device,
        os.path.basename(options.base or ""),
    )


def base_weights(path: str, adapters: list[Weighted]) -> Any:
    """Open the base checkpoint; raises WrongArchitecture where it is of another family than the adapters."""
    from ..convert.checkpoint import open_checkpoint
    from ..lora_core.errors import WrongArchitecture

    checkpoint = open_checkpoint(path)
    for part in adapters:
        if part.adapter.architecture not in (None, checkpoint.architecture):
            raise WrongArchitecture(
                f"{part.name} is made for {part.adapter.architecture}, {path} is {checkpoint.architecture}: name the "
                "checkpoint that the LoRAs were made for"
            )
    return checkpoint.weight


def fitted(order: Order, format: str, options: Namespace) -> Adapter:
    """Return the merged adapter, made to fit the size that was asked for."""
    from ..convert.sizes import resized_to_fit
    from ..lora_core.dtypes import dtype_named
    from ..lora_core.ops.provenance import beside

    early = options.size is None and order.method == "exact"  # rounded layer by layer, never all of it in float32
    result = order.result(dtype_named(options.dtype) if early else None)
    if options.base:
        result = beside(result, options.base)
    if options.size is None:
        return result
    return resized_to_fit(result, options.size, options.OUT, format, None, options.dtype, options.device)


def written(result: Adapter, order: Order, format: str | Match, options: Namespace) -> dict[str, Any]:
    """Write a merge, and return what a reader of the file finds, with its error against what the method wants."""
    from ..convert.files import store_plan
    from ..convert.proof import prove
    from ..convert.regroup import alike, wishes_like
    from ..lora_core.ops.report import wished_error

    proof = prove(result, options.OUT, format, dtype=options.dtype)
    back = alike([proof.adapter, result])[0]
    report = wished_error(back, wishes_like(order.wishes(), back))
    facts = facts_about(proof.adapter, proof.plan.path, proof.match.format, report)
    store_plan(proof.plan, options.force)
    return facts
