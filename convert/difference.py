"""Two models of one family, weight by weight: what an extraction compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..lora_core.adapter import Target
from ..lora_core.errors import BadConfig, WrongArchitecture
from ..lora_core.ops.extract import Extraction, Pair, Settings, extract
from ..lora_core.ops.provenance import file_origin
from .checkpoint import Checkpoint, open_checkpoint

LOOKUPS = ("token_embedding", "position_embedding", "shared", "embed_tokens")  # text encoders' tables, by last word
Seen = Callable[[int, int], None]  # told how many weights of how many are done


def extracted(base: str | Path, tuned: str | Path, settings: Settings, seen: Seen | None = None) -> Extraction:
    """Return the adapter that makes one model into another; both are read weight by weight, see `extract`.

    Raises:
        WrongArchitecture: the models are of different families.
        BadConfig: they are the same, or one path was given twice.
        LorasmithError: one of them cannot be read.
    """
    settings = settings.checked()
    origins = (file_origin(base), file_origin(tuned))
    if Path(base).resolve() == Path(tuned).resolve():
        raise BadConfig(f"{base}: was given as both models; name the base model first, then the fine-tuned one")
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    refuse_strangers(first, second)
    return extract(pairs(first, second, seen), settings, first.architecture, origins)


def refuse_strangers(base: Checkpoint, tuned: Checkpoint) -> None:
    """Raise WrongArchitecture unless both models are of one family."""
    if base.architecture != tuned.architecture:
        raise WrongArchitecture(
            f"{base.path.name} is {base.model.title}, {tuned.path.name} is {tuned.model.title}: name two models of one "
            "family",
            file=tuned.path,
        )


def pairs(base: Checkpoint, tuned: Checkpoint, seen: Seen | None = None) -> Iterator[Pair]:
    """Yield every parameter that both models have, one pair read at a time."""
    shared = common(base, tuned)
    for done, target in enumerate(shared):
        if seen:
            seen(done, len(shared))
        lookup = target.module.rpartition(".")[2] in LOOKUPS
        yield Pair(target, base.weight(target), tuned.weight(target), owned=True, lookup=lookup)
    if seen:
        seen(len(shared), len(shared))


def common(base: Checkpoint, tuned: Checkpoint) -> list[Target]:
    """Return the parameters that both models have, whole where both have all of it."""
    return [target for target in dict.fromkeys((*base.targets, *tuned.targets)) if _shared(target, base, tuned)]


def _shared(target: Target, base: Checkpoint, tuned: Checkpoint) -> bool:
    """Tell whether both have a target, as one of the weights that either is taken apart into."""
    if target not in base.shapes or target not in tuned.shapes:
        return False
    whole = Target(target.component, target.module, None, target.parameter)
    return target.block is None or not (whole in base.shapes and whole in tuned.shapes)


def lacking(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Return the components that one of the models lacks, each with the name of that model."""
    one, two = base.model.components, tuned.model.components
    return [
        *(f"{part} (not in {tuned.path.name})" for part in sorted(one - two)),
        *(f"{part} (not in {base.path.name})" for part in sorted(two - one)),
    ]
