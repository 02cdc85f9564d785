"""The nodes that make a LoRA smaller, or write the same one in another way."""

from __future__ import annotations

from ..lora_core.adapter import Adapter
from ..lora_core.ops.prune import dropped, prune
from ..lora_core.ops.ranks import RULES, SIZE
from ..lora_core.ops.report import difference
from ..lora_core.ops.rescale import rescale
from ..lora_core.ops.resize import ranks_of, resize
from .spec import ADAPTER, Choice, Node, Number, Output, Result, Socket
from .verdict import exactness, summary

ADAPTER_OUT = Output("lora", ADAPTER, "The LoRA, for the other Lorasmith nodes.")
REPORT = Output("report", "STRING", "What was done, and the measured relative error.")


def resize_lora(lora: Adapter, rule: str, value: float, conv_rank: int, dtype: str) -> Result:
    """Lower the ranks of a LoRA by a rule, and measure what that costs."""
    made = resize(lora, rule, value, conv_rank or None, dtype)
    ranks = ranks_of(made) or [0]
    spread = f"ranks {min(ranks)} to {max(ranks)} (mean {sum(ranks) / len(ranks):.1f})"
    report = f"resized, {summary(made)}, {spread}, {exactness(difference(made, lora).relative_error)}"
    return Result((made, report), report)


def prune_lora(lora: Adapter, below: float, alpha: str) -> Result:
    """Leave out of a LoRA what does nothing or next to nothing; where asked for, move alpha into the weights."""
    made = prune(lora, below)
    gone = dropped(lora, made)
    made = rescale(made) if alpha == "rank" else made
    error = exactness(difference(made, lora).relative_error)
    report = f"dropped {len(gone.layers)} layers and {gone.ranks} ranks; left {summary(made)}, {error}"
    return Result((made, report), report)


RESIZE = Node(
    "LorasmithResizeLora",
    "Resize LoRA (Lorasmith)",
    "Makes a LoRA smaller: each layer becomes the best one of a lower rank, and the error is measured.",
    inputs=(
        Socket("lora", ADAPTER, "The LoRA to make smaller."),
        Choice(
            "rule",
            (*RULES, SIZE),
            "rank: the same everywhere. size: megabytes, ranks where they count most. Others: what is kept.",
            "rank",
        ),
        Number("value", 32.0, 0.0, 100_000.0, 0.01, "The rule's number: a rank, a share, a ratio or megabytes."),
        Number("conv_rank", 0, 0, 1024, 1, "Rank of the convolutions, 1x1 aside; 0: as the rule says."),
        Choice("dtype", ("keep", "fp32", "fp16", "bf16"), "Number format of the weights; keep: as it is.", "keep"),
    ),
    outputs=(ADAPTER_OUT, REPORT),
    run=resize_lora,
    aliases=("lora rank", "shrink lora", "compress lora", "lora size"),
)

PRUNE = Node(
    "LorasmithPruneLora",
    "Prune LoRA (Lorasmith)",
    "Leaves out layers and ranks that do nothing, or next to nothing; can also set alpha to the rank.",
    inputs=(
        Socket("lora", ADAPTER, "The LoRA to prune."),
        Number("below", 0.0, 0.0, 0.999, 0.0001, "Also drop what is less than this share of the whole LoRA's norm."),
        Choice(
            "alpha",
            ("keep", "rank"),
            "rank: alpha becomes each layer's rank, for programs that leave alpha out; the effect stays.",
            "keep",
        ),
    ),
    outputs=(ADAPTER_OUT, REPORT),
    run=prune_lora,
    aliases=("clean lora", "remove empty layers", "rescale alpha"),
)
