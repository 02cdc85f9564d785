"""The table types: what a model family is (Architecture) and how a key dialect spells it (Format).

A family is a literal made of Components, Groups and Rows. `modules()` expands it into one entry per module, with both
names and the weight's shape; everything else in this package is generated from those entries.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

RANGE = re.compile(r"\{(\d+)-(\d+)\}")
SIZE = re.compile(r"(\d*)\*?([a-z_]*)")

Size = int | str  # a number, or a factor and a name that the group or component defines: 320, "width", "8*width"


@dataclass(frozen=True)
class Row:
    """One weight: its name in the original layout, in the Diffusers layout, and its shape."""

    original: str
    diffusers: str
    shape: tuple[Size, ...]  # (channels,) norm; (out, in) linear; (out, in, kh, kw) convolution


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
    checkpoint: tuple[str, ...]  # prefixes in single-file checkpoints
    folder: str  # subfolder of a Diffusers pipeline
    sizes: Mapping[str, int] = field(default_factory=dict)
    positional: tuple[Positional, ...] = ()


@dataclass(frozen=True)
class Positional:
    """How safeloras files count a component's layers: blocks in order, in each block the layers of each class."""

    block: str  # Diffusers names, `{a-b}` ranges expand
    layers: tuple[tuple[str, str], ...]  # (class name as in the file's header, module below the block)


@dataclass(frozen=True)
class Architecture:
    """A model family."""

    id: str
    name: str
    components: tuple[Component, ...]
    kohya_naming: str  # which naming kohya files of this family are written in: "original" or "diffusers"
    metadata: Mapping[str, str]  # what writers put into the header so that hosts recognise the family
    hints: Mapping[str, tuple[str, ...]]  # header key -> beginnings of values that name this family

    def component(self, id: str) -> Component | None:
        """Return the component of that id, or None where the family has none."""
        return next((part for part in self.components if part.id == id), None)


@dataclass(frozen=True)
class Module:
    """One weight of a family, expanded."""

    original: str
    diffusers: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Suffixes:
    """How a dialect spells the tensors of a low-rank layer; `{name}` stands for a PEFT adapter's name."""

    id: str
    roles: Mapping[str, str]  # role ("down", "up", "mid") -> suffix


@dataclass(frozen=True)
class Format:
    """A key dialect: which prefixes, naming and suffixes it combines (the first of each is written)."""

    id: str
    title: str
    prefixes: tuple[str, ...]  # families of prefixes: keys of Component.prefixes
    namings: tuple[str, ...]  # "family" stands for the architecture's kohya_naming
    suffixes: tuple[str, ...]  # ids of Suffixes
    joiner: str = "."
    alpha: str = "tensor"  # "tensor": stored beside the factors; "folded": into up; "config": in adapter_config
    text_suffixes: str | None = None  # written for text encoders, where it differs
    dense: bool = False  # can hold full differences and norms
    tucker: bool = False  # can hold a Tucker core; others get it absorbed into down
    module_shape: bool = False  # factors must have as many dimensions as the module's weight
    writable: bool = False


def modules(component: Component) -> Iterator[Module]:
    """Yield every weight of a component."""
    for group in component.groups:
        sizes = {**component.sizes, **group.sizes}
        for row in group.rows:
            shape = tuple(_size(size, sizes) for size in row.shape)
            for original, diffusers in _pairs(
                _join(group.original, row.original), _join(group.diffusers, row.diffusers)
            ):
                yield Module(original, diffusers, shape)


def expand(pattern: str) -> list[str]:
    """Expand the `{a-b}` ranges of one name.

    >>> expand("down_blocks.{0-1}.conv")
    ['down_blocks.0.conv', 'down_blocks.1.conv']
    """
    return [name for name, _ in _pairs(pattern, pattern)]


def _pairs(left: str, right: str) -> Iterator[tuple[str, str]]:
    spans = [[range(int(a), int(b) + 1) for a, b in RANGE.findall(side)] for side in (left, right)]
    for numbers in itertools.product(*(zip(*pair, strict=True) for pair in zip(*spans, strict=True))):
        yield _fill(left, [a for a, _ in numbers]), _fill(right, [b for _, b in numbers])


def _fill(pattern: str, numbers: list[int]) -> str:
    rest = iter(numbers)
    return RANGE.sub(lambda _: str(next(rest)), pattern)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def _size(size: Size, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    factor, name = SIZE.fullmatch(size).groups()  # type: ignore[union-attr]
    return int(factor or 1) * sizes[name]
