"""Writing with a proof: what a file would hold is read back first, and compared layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..lora_core.adapter import Adapter
from ..lora_core.errors import BadValues, UnsupportedLayer
from ..lora_core.ops.health import refuse_bad_values
from ..lora_core.ops.report import Report, difference
from .codec import decode
from .detect import Match, detect
from .files import Plan, plan, store_plan
from .regroup import alike

TOLERANCE = 1e-6  # relative, over all layers; a few float32 roundings


@dataclass(frozen=True)
class Proof:
    """What a file holds, or will hold, as a reader of it finds it."""

    plan: Plan
    adapter: Adapter  # read back from what is to be stored
    match: Match
    report: Report  # its error against the adapter that was to be written


def prove(adapter: Adapter, path: str | Path, format: str | Match = "kohya", *, dtype: str = "keep") -> Proof:
    """Plan a file as `write` does, read it back and find that it does the same. Nothing is written.

    With dtype "keep" or "fp32" the weight changes must agree to a relative 1e-6; a narrower dtype is a wish to round,
    so that there the error is only reported.

    Raises:
        UnsupportedLayer: the file would do something else.
        BadValues: values that are no finite numbers, or too large for the dtype.
        LorasmithError: as `write`.
    """
    refuse_bad_values(adapter, path)
    planned = plan(adapter, path, format, dtype)
    back, match = _read_back(planned)
    report = difference(*alike([back, adapter]))
    _refuse(report, planned, dtype)
    return Proof(planned.hashing(), back, match, report)


def write_proved(
    adapter: Adapter, path: str | Path, format: str | Match = "kohya", *, dtype: str = "keep", overwrite: bool = False
) -> Proof:
    """Write an adapter as `write` does, but only after `prove` found what the file will hold to do the same."""
    proof = prove(adapter, path, format, dtype=dtype)
    store_plan(proof.plan, overwrite)
    return proof


def _read_back(planned: Plan) -> tuple[Adapter, Match]:
    metadata = {**planned.metadata, **planned.configs}
    match = detect({key: tuple(tensor.shape) for key, tensor in planned.tensors.items()}, metadata, planned.path)
    return decode(planned.tensors, match, metadata, planned.path), match


def _refuse(report: Report, planned: Plan, dtype: str) -> None:
    name = planned.path.name
    if not report.relative_error < float("inf"):  # NaN as well
        where = next(target for target, error in report.per_target.items() if not error < float("inf"))
        raise BadValues(
            f"{name}: not written, {where.component}.{where.module} holds values that are not finite"
            + (f" as {dtype}; choose bf16 or fp32" if dtype == "fp16" else "; repair or retrain the LoRA"),
            file=planned.path,
        )
    if dtype in ("keep", "fp32") and report.relative_error > TOLERANCE:
        raise UnsupportedLayer(
            f"{name}: not written, its weight changes would differ by {report.relative_error:.1e} from the source. "
            f"Please report this file's keys (info --keys)",
            file=planned.path,
        )
