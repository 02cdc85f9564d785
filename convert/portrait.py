"""An adapter's layers by block and by kind of module: how strong, in how many directions, how like another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..lora_core.adapter import Adapter, Target
from ..lora_core.ops.norms import Block, Likeness, Strength, Strengths, grouped, likeness, strengths, together
from .blocks import names_of
from .regroup import alike, family_of


@dataclass(frozen=True, eq=False)
class Portrait:
    """What an adapter looks like, alone or beside another one."""

    title: str
    found: Strengths
    block: Mapping[Target, str]  # name of the block of each layer of either adapter, in the order of the model
    likeness: Mapping[Target, Likeness] | None = None  # with the other one
    other: str = ""  # what that one is called

    @property
    def blocks(self) -> list[Block]:
        """The blocks that have layers, in the order of the model."""
        return self.found.blocks(self.block)

    def share(self, block: Block) -> float:
        """Return a block's part of the squared norm of all layers, 0 to 1."""
        whole = self.found.whole.norm
        return (block.norm / whole) ** 2 if whole else 0.0

    def data(self) -> dict[str, Any]:
        """Return everything about the adapter itself, ready for JSON."""
        blocks = (*self.blocks, self.found.whole)
        told = {block.name: {"share": self.share(block), **_told(block)} for block in blocks}
        return {
            "overall": told.pop(self.found.whole.name),
            "blocks": told,
            "layers": {
                label(target): {"block": self.block[target], **_measured(layer)}
                for target, layer in self.found.layers.items()
            },
            "without": {label(target): kind for target, kind in self.found.without.items()},
        }


def portrait(adapter: Adapter, other: Adapter | None = None, title: str = "", versus: str = "") -> Portrait:
    """Measure an adapter, and its likeness with another one where one is given.

    Raises:
        BadValues: an adapter holds values that are no finite numbers, or their shapes differ.
        WrongArchitecture: they are made for different families.
        UnsupportedLayer: no one family has all the layers.
    """
    alike_too = None if other is None else likeness(*alike([adapter, other]))
    targets = dict.fromkeys((*adapter.layers, *(alike_too or ())))
    return Portrait(title, strengths(adapter), in_blocks(targets, adapter), alike_too, versus)


def compared(adapter: Adapter, other: Adapter, versus: str = "") -> dict[str, Any]:
    """Return cosine and ratio of norms of two adapters, block by block and over all, ready for JSON.

    The ratio is that of the other's norm to the adapter's. Raises as `portrait` does.
    """
    one, two = alike([adapter, other])
    found = likeness(one, two)
    blocks = grouped(found, in_blocks(found, adapter))
    left_out = [target for target in dict.fromkeys((*one.layers, *two.layers)) if target not in found]
    return {
        "with": versus,
        "overall": _alike(together(found.values())),
        "blocks": {name: _alike(likeness) for name, likeness in blocks.items()},
        "without": [label(target) for target in left_out],
    }


def in_blocks(targets: Iterable[Target], adapter: Adapter) -> dict[Target, str]:
    """Return the name of each target's block, in the order of the model."""
    names = names_of(family_of(adapter))
    order = {block.name: number for number, block in enumerate(names.blocks)}
    block = {target: names.of(target) for target in targets}
    return {target: block[target] for target in sorted(block, key=lambda one: order.get(block[one], len(order)))}


def spectrum_table(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a portrait's data as a table of the blocks."""
    rows = {**data["blocks"], "all": data["overall"]}
    columns = ("layers", "norm", "share", "spectral norm", "stable rank", "effective rank")
    keys = [column.replace(" ", "_") for column in columns]
    yield from _table(columns, {name: [row[key] for key in keys] for name, row in rows.items()})
    yield from notes(data["without"].values())


def compare_table(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield a comparison's data as a table of the blocks."""
    rows = {**data["blocks"], "all": data["overall"]}
    yield from _table(("cosine", "norm ratio"), {name: list(row.values()) for name, row in rows.items()})
    if data["without"]:
        yield f"{len(data['without'])} layers are not in it: what they do depends on the base weight"


def notes(kinds: Iterable[str]) -> Iterator[str]:
    """Yield which layers, by their kinds, have no numbers of their own."""
    for kind, count in Counter(kinds).items():
        yield f"{count} {kind} layers are not in it: what they do depends on the base weight"


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    first = max(map(len, (*rows, "block")))
    yield f"{'block':<{first}}" + "".join(f"  {column:>{max(8, len(column))}}" for column in columns)
    for name, cells in rows.items():
        texts = (_text(cell, column) for cell, column in zip(cells, columns, strict=True))
        yield f"{name:<{first}}" + "".join(f"  {t:>{max(8, len(c))}}" for t, c in zip(texts, columns, strict=True))


def _text(cell: float | None, column: str) -> str:
    if cell is None:
        return "-"
    if column == "share":
        return f"{100 * cell:.1f} %"
    return f"{round(cell, 3) + 0.0:.3f}" if column == "cosine" else f"{cell:.4g}"  # + 0.0: no minus before a zero


def label(target: Target) -> str:
    """Return the name of a layer: component, module, row block and parameter where they say something.

    >>> label(Target("denoiser", "out.2", parameter="bias"))
    'denoiser.out.2.bias'
    """
    block = "" if target.block is None else f"[{target.block}]"
    return f"{target.component}.{target.module}{block}" + (".bias" if target.parameter == "bias" else "")


def kind(target: Target) -> str:
    """Return what a module is inside its block, the same for all blocks: the end of its path.

    >>> kind(Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"))
    'attn1.to_q'
    >>> kind(Target("denoiser", "middle_block.0.in_layers.2")), kind(Target("denoiser", "double_blocks.3.img_mlp.0"))
    ('in_layers', 'img_mlp.0')
    """
    words = target.module.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    cuts = [index for index in numbers if index == numbers[0] or _listed(words, index)]
    start = max((index + 1 for index in cuts if index + 1 < len(words)), default=0)
    tail = words[start:]
    end = tail[:-1] if len(tail) > 1 and tail[-1].isdigit() and tail[-2].endswith("s") else tail
    whole = bool(numbers) and (not start or all(word.isdigit() for word in end))
    return ".".join(words[: numbers[0]] if whole else end)


def _listed(words: list[str], index: int) -> bool:
    """Tell whether the number at an index is that of a list: its word is a plural, or another such number is before."""
    before = words[index - 1]
    return before.endswith("s") or (before.isdigit() and _listed(words, index - 1))


def _told(block: Block) -> dict[str, Any]:
    return {
        "layers": len(block.layers),
        "norm": block.norm,
        "spectral_norm": block.spectral if block.layers else 0.0,
        "stable_rank": block.stable_rank,
        "effective_rank": block.effective_rank,
    }


def _measured(layer: Strength) -> dict[str, Any]:
    return {
        "shape": list(layer.shape),
        "rank": layer.rank,
        "norm": layer.norm,
        "spectral_norm": layer.spectral,
        "stable_rank": layer.stable_rank,
        "effective_rank": layer.effective_rank,
        "singular_values": None if layer.values is None else layer.values.tolist(),
    }


def _alike(one: Likeness) -> dict[str, Any]:
    return {"cosine": one.cosine, "norm_ratio": one.ratio}
