"""The verb `resize`: a smaller file, by a rank, by what is kept of each layer, or for a size."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import TYPE_CHECKING, Any

from .verbs import check_output, said, written

if TYPE_CHECKING:
    from ..convert.detect import Match
    from ..convert.files import Loaded
    from ..lora_core.adapter import Adapter

UNITS = {"": 1.0, "KB": 1e-3, "MB": 1.0, "GB": 1e3, "KIB": 1.024e-3, "MIB": 1.048576, "GIB": 1073.741824}  # megabytes
RULES = {  # option -> the core's rule
    "rank": "rank",
    "energy": "energy",
    "ratio": "sv_ratio",
    "fro": "sv_fro",
    "cumulative": "sv_cumulative",
    "size": "size",
    "knee": "knee",
}


def arguments(verb: ArgumentParser, formats: str) -> None:
    """Add the options of `resize`."""
    rule = verb.add_argument_group("what to keep (exactly one)").add_mutually_exclusive_group(required=True)
    rule.add_argument("--rank", type=int, metavar="N", help="this rank in every layer")
    rule.add_argument("--energy", type=float, metavar="E", help="share of the squares of the singular values: 0.95")
    rule.add_argument("--size", type=megabytes, metavar="40MB", help="file size; ranks where they count most")
    rule.add_argument("--ratio", type=float, metavar="R", help="singular values down to the largest / R (sv_ratio)")
    rule.add_argument("--fro", type=float, metavar="F", help="share of the Frobenius norm: 0.9 (sv_fro)")
    rule.add_argument("--cumulative", type=float, metavar="C", help="share of the singular values' sum (sv_cumulative)")
    rule.add_argument("--knee", action="store_const", const=0.0, help="up to the knee of each layer's singular values")
    verb.add_argument("--conv-rank", type=int, metavar="N", help="rank of convolutions (1x1 aside), whatever the rule")
    verb.add_argument("--to", metavar="FORMAT", help=f"default: as IN; else one of: {formats}")
    verb.add_argument("--device", default="cpu", help="where to compute: cpu (default) or cuda")


def resize(options: Namespace) -> int:
    """Write a smaller LoRA: each layer the best one of a lower rank."""
    from ..convert import load
    from ..convert.sizes import dialect_for
    from ..lora_core.ops.merge import Weighted

    check_output(options)
    source = load(options.IN)
    format = dialect_for(source, options.to)
    result = resized(source, format, options)
    facts = written(result, [Weighted(source.adapter)], format, options)
    facts["ranks"] = ranks(result)
    facts["bytes"] = size_at(options.OUT)
    told = "resized to {bytes_} MB, ranks {min} to {max} (mean {mean:.1f}),"
    return said(told.format(bytes_=f"{facts['bytes'] / 1e6:.3g}", **facts["ranks"]), facts, options)


def resized(source: Loaded, format: str | Match, options: Namespace) -> Adapter:
    """Return the smaller adapter that the options ask for."""
    from ..convert.sizes import resized_to_fit
    from ..lora_core.ops.resize import resize

    option, value = next((name, given) for name in RULES if (given := getattr(options, name)) is not None)
    common = {"conv_rank": options.conv_rank, "dtype": options.dtype, "device": options.device}
    if option == "size":
        return resized_to_fit(named(source), value, options.OUT, format, **common)
    return resize(named(source), RULES[option], value, **common)


def named(source: Loaded) -> Adapter:
    """Return a file's adapter under the file's name, by which refusals call it."""
    from dataclasses import replace

    return replace(source.adapter, metadata={**source.adapter.metadata, "ss_output_name": source.path.name})


def ranks(adapter: Adapter) -> dict[str, Any]:
    """Return the least, the mean and the largest rank of the LoRA layers; zeros where there are none."""
    from ..lora_core.ops.resize import ranks_of

    found = ranks_of(adapter) or [0]
    return {"min": min(found), "mean": round(sum(found) / len(found), 3), "max": max(found)}


def size_at(path: str) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    from pathlib import Path

    place = Path(path)
    return sum(file.stat().st_size for file in ([place] if place.is_file() else place.iterdir()))


def megabytes(text: str) -> float:
    """Return the size that a text names, in megabytes; a bare number counts those.

    >>> megabytes("40MB"), megabytes("1.5GB"), megabytes("0.5 MiB")
    (40.0, 1500.0, 0.524288)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmg]i?b)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no size; write 40MB, 1.5GB or 800KB")
    return float(found[1]) * UNITS[(found[2] or "").upper()]
