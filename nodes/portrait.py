"""A LoRA's weights in a few words and as a picture, alone or beside another LoRA."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..convert.figure import Figure, Text, figure
from ..convert.portrait import Portrait, notes, portrait
from ..lora_core.adapter import Adapter
from ..lora_core.errors import BadValues, UnsupportedLayer
from ..lora_core.ops.health import health
from ..lora_core.ops.norms import together
from .drawing import image


def looked_at(lora: Adapter, other: Adapter | None, wanted: bool = True) -> tuple[list[str], Tensor]:
    """Return what is to be said of a LoRA's weights, and the picture; a blank one where none is wanted or possible.

    Raises WrongArchitecture for another LoRA of another family.
    """
    if not wanted:
        return [], image(blank(""))
    if not health(lora).sound:
        return [], image(blank("no picture: the LoRA holds values that are no finite numbers"))
    try:
        seen = portrait(lora, other, name_of(lora), name_of(other) if other else "")
    except (BadValues, UnsupportedLayer) as error:  # everything else about the LoRA is still worth telling
        return [f"no picture: {error.message}"], image(blank(f"no picture: {error.message}"))
    return list(said(seen)), image(figure(seen))


def said(seen: Portrait) -> Iterator[str]:
    """Yield a portrait's main numbers."""
    whole = seen.found.whole
    if whole.layers:
        ranks = (("stable", whole.stable_rank), ("effective", whole.effective_rank))
        yield ", ".join(
            [f"norm {whole.norm:.4g}", *(f"{name} rank {rank:.3g}" for name, rank in ranks if rank is not None)]
        )
    yield from notes(seen.found.without.values())
    if seen.likeness is not None:
        found = together(seen.likeness.values())
        cosine = "none, one of them changes nothing" if found.cosine is None else f"{round(found.cosine, 3) + 0.0:.3f}"
        yield f"cosine with {seen.other}: {cosine}"


def name_of(lora: Adapter) -> str:
    """Return what to call a LoRA."""
    return lora.metadata.get("ss_output_name", "") or "LoRA"


def blank(words: str) -> Figure:
    """Return a picture that only says something."""
    return Figure(max(64, 12 * len(words) // 2 + 48), 64, (Text(24, 32, words, 12),) if words else ())
