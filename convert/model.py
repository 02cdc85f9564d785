"""The table types: what a model family is (Architecture) and how a key dialect spells it (Format).

A family is a literal made of Components, Groups and Rows. `modules()` expands it into one entry per module, with both
names and the weight's shape; everything else in this package is generated from those entries.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

RANGE = re.compile(r"\{(\d+)-(\d+)\}")
SIZE = re.compile(r"(\d*)\*?([a-z_]*)")

Size = int | str  # a number, or a factor and a name that the group or component defines: 320, "width", "8*width"


@dataclass(frozen=True)
class Row:
    """One weight: its name in the original layout (the one ComfyUI uses), in the Diffusers layout, and its shape.

    Several Diffusers names are the row blocks of a weight that the original layout fuses, top to bottom.
    """

    original: str
    diffusers: str | tuple[str, ...]
    shape: tuple[Size, ...]  # (channels,) norm; (out, in) linear; (out, in, kh, kw) convolution
    blocks: tuple[Size, ...] = ()  # the row blocks' heights, where they differ
    swapped: bool = False  # Diffusers holds the two halves of the rows the other way round (AdaLN's shift and scale)


@dataclass(frozen=True)
class Group:
    """Rows under two names. `{a-b}` ranges expand; the n-th range left pairs with the n-th right."""

    original: str
    diffusers: str
    rows: tuple[Row, ...]
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Component:
    """A part of the model that adapters touch; of its prefixes in a family of dialects the first is written."""

    id: str  # "denoiser" | "clip_l" | ...
    groups: tuple[Group, ...]
    prefixes: Mapping[str, tuple[str, ...]]
    checkpoint: tuple[str, ...] = ()  # prefixes in single-file checkpoints
    folder: str = ""  # subfolder of a Diffusers pipeline; empty where no such pipeline has it
    sizes: Mapping[str, int] = field(default_factory=dict)
    positional: tuple[Positional, ...] = ()


@dataclass(frozen=True)
class Positional:
    """How safeloras files count a component's layers: blocks in order, in each block the layers of each class."""

    block: str  # Diffusers names, `{a-b}` ranges expand
    layers: tuple[tuple[str, str], ...]  # (class name as in the file's header, module below the block)


@dataclass(frozen=True)
class Naming:
    """Module names that differ from a layout's in a few words. A module to which no rule applies has no such name."""

    id: str
    of: str  # the layout: "original" or "diffusers"
    endings: tuple[tuple[str, str], ...] = ()  # (ending, what stands there instead); the first that fits counts
    beginning: tuple[str, str] | None = None  # the same for a beginning; where both are given, both must fit
    spans: Mapping[str, int] = field(default_factory=dict)  # new ending -> how many row blocks it holds, from the first
    suffixes: tuple[str, ...] = ()  # ids of Suffixes that go with these names alone


@dataclass(frozen=True)
class Architecture:
    """A model family."""

    id: str
    name: str
    components: tuple[Component, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)  # what writers put into the header for hosts to see
    hints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # header key -> beginnings naming this family
    namings: tuple[Naming, ...] = ()  # beside the two layouts and those that every family has
    kohya_naming: str = "original"  # which layout's names kohya files are written in: "original" or "diffusers"
    aitoolkit: tuple[str, str] = ("comfy", "original")  # the family of prefixes and the naming that ai-toolkit writes
    kin: str = ""  # id of the family that is meant where nothing tells the two apart, being much more common

    def component(self, id: str) -> Component | None:
        """Return the component of that id, or None where the family has none."""
        return next((part for part in self.components if part.id == id), None)


@dataclass(frozen=True)
class Module:
    """One weight of a family, expanded."""

    original: str
    diffusers: tuple[str, ...]  # one name, or one for each row block
    shape: tuple[int, ...]
    blocks: tuple[int, ...]  # the row blocks' heights; empty for a weight that is one in both layouts
    swapped: bool


@dataclass(frozen=True)
class Format:
    """A key dialect: which prefixes, naming and suffixes it combines (the first of each is written)."""

    id: str
    title: str
    prefixes: tuple[str, ...]  # families of prefixes: keys of Component.prefixes; what is written is the first there is
    namings: tuple[str, ...]  # "family" stands for the architecture's kohya_naming
    suffixes: tuple[str, ...]  # ids of Suffixes
    alpha: str = "tensor"  # "tensor": stored beside the factors; "folded": into up; "config": in adapter_config
    kinds: tuple[str, ...] = ("lora",)  # algorithms that a written file can hold, see `algorithms`
    module_shape: bool = False  # factors must have as many dimensions as the module's weight
    writable: bool = False


def modules(component: Component) -> Iterator[Module]:
    """Yield every weight of a component."""
    for group in component.groups:
        sizes = {**component.sizes, **group.sizes}
        for row in group.rows:
            shape = tuple(_size(size, sizes) for size in row.shape)
            fused = () if isinstance(row.diffusers, str) else row.diffusers
            blocks = tuple(_size(size, sizes) for size in row.blocks)
            if fused and not blocks:
                blocks = (shape[0] // len(fused),) * len(fused)
            names = (row.original, *(fused or (row.diffusers,)))
            groups = (group.original, *(group.diffusers for _ in names[1:]))
            for original, *diffusers in _together([_join(*pair) for pair in zip(groups, names, strict=True)]):
                yield Module(original, tuple(diffusers), shape, blocks, row.swapped)


def renamed(name: str, rule: Naming) -> tuple[str, int] | None:
    """Return a name under a naming's rules and how many row blocks it holds (0: just its target), or None."""
    if rule.beginning:
        before, after = rule.beginning
        if not name.startswith(before):
            return None
        name = after + name[len(before) :]
        if not rule.endings:
            return name, 0
    for ending, new in rule.endings:
        if name.endswith(ending):
            return name[: len(name) - len(ending)] + new, rule.spans.get(new, 0)
    return None


def expand(pattern: str) -> list[str]:
    """Expand the `{a-b}` ranges of one name.

    >>> expand("down_blocks.{0-1}.conv")
    ['down_blocks.0.conv', 'down_blocks.1.conv']
    """
    return [name for (name,) in _together([pattern])]


def _together(patterns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Expand several names side by side; the n-th range of one goes with the n-th of the others."""
    spans = [[range(int(a), int(b) + 1) for a, b in RANGE.findall(pattern)] for pattern in patterns]
    for numbers in itertools.product(*(zip(*ranges, strict=True) for ranges in zip(*spans, strict=True))):
        yield tuple(_fill(pattern, [row[i] for row in numbers]) for i, pattern in enumerate(patterns))


def _fill(pattern: str, numbers: Sequence[int]) -> str:
    rest = iter(numbers)
    return RANGE.sub(lambda _: str(next(rest)), pattern)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _size(size: Size, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    factor, name = SIZE.fullmatch(size).groups()  # type: ignore[union-attr]
    return int(factor or 1) * (sizes[name] if name else 1)
