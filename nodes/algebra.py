"""The nodes of algebra: strengths by block, layers picked out, and a sum that waits until something needs numbers."""

from __future__ import annotations

from dataclasses import replace

from ..convert import block_weights, selection
from ..convert.blocks import namer
from ..convert.regroup import alike, family_of
from ..lora_core.adapter import Adapter
from ..lora_core.ops.merge import Weighted
from ..lora_core.ops.scale import DENOISER
from ..lora_core.ops.sums import added
from .spec import ADAPTER, Choice, Node, Number, Output, Result, Socket, Text
from .verdict import summary

EVERY = "all"
TEXT = "text encoder"
KEEP, DROP = "keep", "drop"
STRENGTH = {"low": -100.0, "high": 100.0, "step": 0.01}
LORA = Output("lora", ADAPTER, "The LoRA, for the other Lorasmith nodes.")


def block_strengths(lora: Adapter, blocks: str) -> Result:
    """Return a LoRA with its blocks at the strengths that the text says, and the text by names."""
    family, name = family_of(lora), namer(lora)
    weights = block_weights.strengths(family, blocks)
    made = selection.scaled(lora, blocks=weights)
    present = {name(target) for target in lora.layers}
    told = "\n".join(f"{block}={weight:g}" for block, weight in weights.items() if block in present)
    return Result((made, told), f"{summary(made)}\n{told}")


def pick_layers(lora: Adapter, kind: str, part: str, blocks: str, action: str) -> Result:
    """Return a LoRA with those layers alone that fit all three choices, or without them."""
    names = block_weights.chosen(family_of(lora), blocks) if blocks.strip() else None
    kinds = () if kind == EVERY else (kind,)
    half = {EVERY: None, TEXT: selection.TEXT_ENCODER}.get(part, part)
    made = selection.pick(lora, kinds, half, names, drop=action == DROP)
    return Result((made,), f"{summary(made)}, of {len(lora.layers)}")


def sum_loras(
    lora_a: Adapter,
    lora_b: Adapter,
    strength_b: float,
    strength_c: float,
    lora_c: Adapter | None = None,
) -> Result:
    """Return `A + strength_b * B + strength_c * C`, computed layer by layer once something needs the numbers."""
    offered = ((lora_a, 1.0), (lora_b, strength_b), (lora_c, strength_c))
    given = [Weighted(lora, strength) for lora, strength in offered if lora is not None]
    parts = [
        replace(part, adapter=adapter)
        for part, adapter in zip(given, alike([part.adapter for part in given]), strict=True)
    ]
    made = added(parts)
    return Result((made,), summary(made))


BLOCK_STRENGTHS = Node(
    "LorasmithBlockStrengths",
    "LoRA Block Strengths (Lorasmith)",
    "The same LoRA with other strengths in some of its blocks, named and not counted: nothing shifts if it lacks some.",
    inputs=(
        Socket("lora", ADAPTER, "The LoRA whose blocks to weigh."),
        Text(
            "blocks",
            "all=1",
            "NAME=STRENGTH, one a line: down.1=0.5, IN04=0, double.0-9=0.8, all=0. Or a preset: OUTALL. Or a line of "
            "numbers. Later lines count more; 0 leaves the block out.",
            multiline=True,
        ),
    ),
    outputs=(LORA, Output("strengths", "STRING", "The strengths that were set, by the names of blocks.")),
    run=block_strengths,
    aliases=("lora block weight", "lbw", "lora weights per block"),
)

PICK = Node(
    "LorasmithPickLayers",
    "Pick LoRA Layers (Lorasmith)",
    "Keeps or drops layers by kind of module, part of the model and block. What stays is unchanged.",
    inputs=(
        Socket("lora", ADAPTER, "The LoRA to choose from."),
        Choice("kind", (EVERY, *selection.KINDS), "Kind of module that the layers change.", EVERY),
        Choice("part", (EVERY, DENOISER, TEXT), "Diffusion model or text encoders.", EVERY),
        Text("blocks", "", "Blocks, with commas or lines between: down, IN04-IN08, double.0-9. Empty for all."),
        Choice("action", (KEEP, DROP), "keep: only layers that fit every choice. drop: only the others.", KEEP),
    ),
    outputs=(LORA,),
    run=pick_layers,
    aliases=("filter lora", "attention only", "text encoder only", "remove blocks"),
)

SUM = Node(
    "LorasmithSumLoras",
    "LoRA Sum (Lorasmith)",
    "A + B x strength + C x strength, exactly. Costs nothing until the result is applied, saved or inspected.",
    inputs=(
        Socket("lora_a", ADAPTER, "A: taken at strength 1."),
        Socket("lora_b", ADAPTER, "B: added at its strength."),
        Number("strength_b", 1.0, tooltip="Strength of B; a negative one takes B away.", **STRENGTH),
        Number("strength_c", -1.0, tooltip="Strength of C, if it is wired; a negative one takes C away.", **STRENGTH),
        Socket("lora_c", ADAPTER, "C; may stay unwired.", optional=True),
    ),
    outputs=(LORA,),
    run=sum_loras,
    aliases=("add loras", "subtract lora", "lora arithmetic", "lora algebra"),
)
