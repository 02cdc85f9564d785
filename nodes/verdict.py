"""An adapter in words: what it is, how exact a result is, how it fits the loaded models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..convert.architectures import architecture
from ..convert.expressible import kind as kind_of
from ..convert.words import base_model, trigger_words
from ..lora_core.adapter import Adapter
from ..lora_core.layers import DoRA, Layer, LoRA, rank_of
from ..lora_core.ops.health import health
from ..lora_core.ops.lazy import outlines
from .fit import Fit, families


def summary(adapter: Adapter) -> str:
    """Return family, layers, algorithms other than LoRA and ranks in one line."""
    layers = outlines(adapter.layers).values()  # nothing is computed for a line of words
    family = architecture(adapter.architecture).name if adapter.architecture else "fits several model families"
    kinds = sorted({kind(layer) for layer in layers} - {"LoRA"})
    ranks = [rank for layer in layers if (rank := rank_of(layer)) is not None]
    sizes = f", rank {_range(ranks)}" if ranks else ""
    return f"{family}, {len(adapter.layers)} layers{''.join(f', {one}' for one in kinds)}{sizes}"


def kind(layer: Layer) -> str:
    """Return what people call a layer's algorithm."""
    title = kind_of(layer)[1]
    return f"{title} over {kind_of(layer.layer)[1]}" if isinstance(layer, DoRA) else title


def describe(adapter: Adapter) -> list[str]:
    """Return everything worth knowing about an adapter, line by line."""
    stored = (tensor.dtype for layer in adapter.layers.values() for tensor in layer.tensors())
    lines = [
        summary(adapter),
        f"components: {_counts(target.component for target in adapter.layers)}",
        f"kinds: {_counts(kind(layer) for layer in adapter.layers.values())}",
        f"stored as: {_counts(str(dtype).removeprefix('torch.') for dtype in stored)}",
    ]
    alphas = [layer.alpha for layer in adapter.layers.values() if isinstance(layer, LoRA)]
    if alphas:
        lines.append(f"alpha: {_range(alphas)}")
    words, model = trigger_words(adapter.metadata), base_model(adapter.metadata)
    if words:
        lines.append(f"trigger words: {', '.join(words)}")
    if model:
        lines.append(f"trained on: {model}")
    if adapter.extras:
        lines.append(f"carried along: {len(adapter.extras)} other tensors, first {next(iter(adapter.extras))!r}")
    return [*lines, _health(adapter)]


def exactness(error: float) -> str:
    """Return a measured relative error as a person reads it."""
    return "relative error 0.0 (exact)" if error == 0 else f"relative error {error:.2g}"


def fitness(found: Fit) -> str:
    """Return how many of an adapter's modules match the loaded models, and what does not."""
    lines = [f"{found.matched} of {found.total} modules match"]
    if found.elsewhere:
        made, loaded = families(found)
        lines.append(f"made for {made}, the loaded model is {loaded}")
    if found.unmatched:
        lines.append(f"{len(found.unmatched)} have no place in the model, first {found.unmatched[0]!r}")
    if found.conflicts:
        lines.append(f"{len(found.conflicts)} have another shape, first {found.conflicts[0].name!r}")
    return "; ".join(lines)


def _health(adapter: Adapter) -> str:
    found = health(adapter)
    if not found.sound:
        return f"damaged: {found.nan} values are NaN, {found.inf} infinite"
    return f"healthy; {found.zero_layers} layers without effect" if found.zero_layers else "healthy"


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))


def _range(values: Iterable[float]) -> str:
    ordered = sorted(set(values))
    texts = [f"{value:g}" for value in (ordered[0], ordered[-1])]
    return texts[0] if len(ordered) == 1 else f"{texts[0]} to {texts[1]}"
