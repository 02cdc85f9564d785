"""The node that makes a LoRA out of the difference of two loaded models."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..convert.against import UNKNOWN, model_of
from ..convert.checkpoint import Checkpoint, Entry
from ..convert.difference import pairs, refuse_strangers
from ..lora_core.errors import BadConfig
from ..lora_core.ops.extract import KINDS, RANK, Settings, extract
from .seam import Host
from .spec import ADAPTER, Choice, Node, Number, Output, Result, Socket, Switch
from .verdict import exactness, summary


def extract_lora(
    host: Host,
    tuned: Any,
    base: Any,
    kind: str,
    rank: int,
    energy: float,
    conv_rank: int,
    vectors: bool,
    tuned_clip: Any = None,
    base_clip: Any = None,
) -> Result:
    """Make a LoRA that turns one loaded model into the other, and say how near it comes."""
    if (tuned_clip is None) != (base_clip is None):
        raise BadConfig("only one of the two CLIPs is wired: wire both, or none to leave the text encoders out")
    settings = Settings(kind, rank or None, energy or None, conv_rank or None, vectors).checked()
    one, two = loaded(host, base, base_clip, "base"), loaded(host, tuned, tuned_clip, "tuned")
    refuse_strangers(one, two)
    shown = partial(_shown, host.progress(len(one.targets)))
    made = extract(pairs(one, two, shown), settings, one.architecture, (None, None))
    error = exactness(made.report.relative_error)
    left = f"; {made.vectors} changed norms, biases and embeddings left out" if made.vectors else ""
    report = f"extracted, {summary(made.adapter)}, {error}{left}"
    return Result((made.adapter, report), report)


def loaded(host: Host, model: Any, clip: Any, name: str) -> Checkpoint:
    """Return loaded models as a checkpoint whose weights are computed when they are read."""
    shapes = host.weights(model, clip).shapes
    known = {key: tuple(shape) for key, shape in shapes.items() if key.endswith((".weight", ".bias"))}
    found = model_of(known, f"the {name} model")
    if found.architecture == UNKNOWN:
        raise BadConfig(f"the {name} model is of a family that no table knows; load another one")
    live = host.parameters(model, clip)
    entries = {key: Entry(live, key, shape) for key, shape in known.items()}
    return Checkpoint(Path(found.name), found, {}, entries)


def _shown(bar: Any, done: int, total: int) -> None:
    bar.show(done)
    stopped = bar.cancelled()
    if stopped is not None:
        raise stopped


def node(host: Host) -> Node:
    """Return the node, bound to a host."""
    return Node(
        "LorasmithExtractLora",
        "Extract LoRA (Lorasmith)",
        "Makes a LoRA out of a fine-tuned model and its base, layer by layer, and measures how near it comes.",
        inputs=(
            Socket("tuned", "MODEL", "The fine-tuned model. LoRAs and merges applied to it count too."),
            Socket("base", "MODEL", "The model that it was made from."),
            Choice("kind", KINDS, "lora: a low-rank change. lokr: a Kronecker product, for very small files.", "lora"),
            Number("rank", RANK, 0, 1024, 1, "Rank of each layer at most; 0: as energy says, or a whole LoKr factor."),
            Number("energy", 0.0, 0.0, 1.0, 0.01, "Share of each change to keep, such as 0.9; 0: as rank says."),
            Number("conv_rank", 0, 0, 1024, 1, "Rank of the convolutions, 1x1 aside; 0: as the others.", advanced=True),
            Switch("vectors", False, "Take changed norms, biases and embeddings too.", advanced=True),
            Socket("tuned_clip", "CLIP", "The fine-tuned text encoders; may stay unwired.", optional=True),
            Socket("base_clip", "CLIP", "The base's text encoders; may stay unwired.", optional=True),
        ),
        outputs=(
            Output("lora", ADAPTER, "The LoRA, for the other Lorasmith nodes."),
            Output("report", "STRING", "What was extracted, and the measured relative error."),
        ),
        run=partial(extract_lora, host),
        aliases=("lora extract", "model difference", "subtract models"),
    )
