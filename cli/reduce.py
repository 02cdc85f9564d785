"""The verbs `prune` and `rescale`: less of nothing, and the same with another alpha."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from .resize import named
from .verbs import check_output, said, written


def pruning(verb: ArgumentParser, formats: str) -> None:
    """Add the options of `prune`."""
    small = "also drop layers and ranks whose norm is less than this share of the whole LoRA's: 0.001"
    verb.add_argument("--below", type=float, default=0.0, metavar="X", help=small)
    verb.add_argument("--to", metavar="FORMAT", help=f"default: as IN; else one of: {formats}")


def rescaling(verb: ArgumentParser, formats: str) -> None:
    """Add the options of `rescale`."""
    new = "the new alpha: a number, or 'rank' for each layer's own rank, with which it may be ignored"
    verb.add_argument("--alpha", type=alpha, required=True, metavar="A", help=new)
    verb.add_argument("--to", metavar="FORMAT", help=f"default: as IN; else one of: {formats}")


def prune(options: Namespace) -> int:
    """Leave out layers and ranks that are zero, or too small to matter."""
    from ..convert import load
    from ..lora_core.ops import prune
    from ..lora_core.ops.merge import Weighted

    check_output(options)
    source = load(options.IN)
    result = prune.prune(named(source), options.below)
    gone = prune.dropped(source.adapter, result)
    facts = written(result, [Weighted(source.adapter)], options.to or source.match, options)
    facts["dropped"] = {
        "layers": [f"{target.component}.{target.module}" for target in gone.layers],
        "ranks": gone.ranks,
    }
    return said(f"dropped {len(gone.layers)} layers and {gone.ranks} ranks, left", facts, options)


def rescale(options: Namespace) -> int:
    """Write the same LoRA with another alpha, for programs that leave alpha out or want a certain one."""
    from ..convert import load
    from ..lora_core.ops import rescale
    from ..lora_core.ops.merge import Weighted

    check_output(options)
    source = load(options.IN)
    result = rescale.rescale(named(source), options.alpha, options.dtype)
    facts = written(result, [Weighted(source.adapter)], options.to or source.match, options)
    name = "each layer's rank" if options.alpha is None else f"{options.alpha:g}"
    return said(f"rescaled to alpha {name},", facts, options)


def alpha(text: str) -> float | None:
    """Return the alpha that a text names; None stands for each layer's rank.

    >>> alpha("16"), alpha("rank")
    (16.0, None)
    """
    try:
        return None if text == "rank" else float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no alpha; give a number above 0, or 'rank'") from None
