"""The picture of a portrait, as lines, rectangles and texts at places: whoever can draw those can draw it.

Left the spectra: a typical layer's singular values, block by block, and the share of the energy that the first n hold.
Right a heat map, blocks by kinds of module, whose rows have the colours of the curves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..lora_core.ops.norms import Block, Likeness, grouped
from ..lora_core.ops.scale import DENOISER
from .portrait import Portrait, kind, notes

Color = tuple[int, int, int]  # red, green, blue, 0 to 255

BLACK, GRAY, PALE, WHITE = (20, 20, 20), (110, 110, 110), (225, 225, 225), (255, 255, 255)
DEPTH = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (221, 200, 40))  # first block to last, as viridis
HEAT = ((247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107))  # none to most
MINUS, PLUS = (200, 80, 60), (60, 120, 190)  # bars of a cosine
COLUMNS, ROWS = 24, 72  # that a heat map shows at most
OTHER = "other"  # column of the kinds of module that have the least
DECADES = 4  # of singular values below the largest that are shown
TITLE = "Share of the squared norm, in % of the whole"  # of the heat map
EM = 0.58  # width of a letter of usual fonts, as a share of the size


@dataclass(frozen=True)
class Line:
    """A line through points, in pixels from the top left."""

    points: tuple[tuple[float, float], ...]
    color: Color = BLACK
    width: float = 1.0


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    color: Color


@dataclass(frozen=True)
class Text:
    """A text; `x` is its left end, middle or right end, `y` its middle. Upright ones run up from `y`, around `x`."""

    x: float
    y: float
    words: str
    size: float = 12.0
    color: Color = BLACK
    align: str = "left"  # "left" | "center" | "right"
    upright: bool = False
    bold: bool = False


Shape = Line | Box | Text


@dataclass(frozen=True)
class Figure:
    """A picture: its size in pixels and what is on it, from back to front."""

    width: int
    height: int
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Axes:
    """A rectangle of the picture and the ranges of the numbers on its sides."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]  # at the bottom, at the top

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def frame(self, title: str, below: str, marks: Mapping[float, str]) -> Iterator[Shape]:
        """Yield the title, the sides and their marks; `marks` are those of the y axis."""
        right, bottom = self.left + self.width, self.top + self.height
        yield Text(self.left, self.top - 16, title, 13, bold=True)
        for value, words in marks.items():
            y = self.at(self.x[0], value)[1]
            yield Line(((self.left, y), (right, y)), PALE)
            yield Text(self.left - 6, y, words, 11, GRAY, "right")
        for number in ticks(*self.x):
            x = self.at(number, self.y[0])[0]
            yield Line(((x, bottom), (x, bottom + 4)), GRAY)
            yield Text(x, bottom + 13, f"{number:g}", 11, GRAY, "center")
        yield Line(((self.left, self.top), (self.left, bottom), (right, bottom)), GRAY)
        yield Text(self.left + self.width / 2, bottom + 31, below, 12, BLACK, "center")


def ticks(first: float, last: float) -> list[int]:
    """Return whole numbers from 1 for an axis, about six.

    >>> ticks(1, 16), ticks(1, 128)
    ([1, 4, 8, 12, 16], [1, 40, 80, 120])
    """
    rough = max(1.0, (last - 1) / 6)
    size = 10.0 ** math.floor(math.log10(rough))
    step = int(next(size * factor for factor in (1, 2, 4, 5, 8, 10) if size * factor >= rough))
    numbers = [1, *range(step, int(last) + 1, step)]
    return [number for number in dict.fromkeys(numbers) if first <= number <= last]


def figure(portrait: Portrait) -> Figure:
    """Return the picture of a portrait."""
    rows = _rows(portrait)
    columns = _columns(portrait)
    heights = max(14.0, min(24.0, 560 / max(1, len(rows))))
    labels = max((len(block.name) for block in rows), default=0) * 11 * EM
    top = 104 + max(map(len, columns.values()), default=0) * 11 * EM
    heat = _Map(portrait, rows, columns, 620 + labels, top, 24.0, heights)
    left = _curves(portrait, rows, max(660.0, heat.bottom))
    height = max(660.0, heat.bottom) + 54
    shapes = [*_heading(portrait), *left, *heat.shapes()]
    return Figure(math.ceil(heat.right + 24), math.ceil(height), tuple(_plain(shape) for shape in shapes))


def _plain(shape: Shape) -> Shape:
    """Keep to letters that any font has."""
    if not isinstance(shape, Text):
        return shape
    return replace(shape, words="".join(letter if " " <= letter <= "~" else "?" for letter in shape.words))


def _heading(portrait: Portrait) -> Iterator[Shape]:
    whole = portrait.found.whole
    yield Text(24, 24, portrait.title or "LoRA", 18, bold=True)
    parts = [f"{len(whole.layers)} layer{'s' if len(whole.layers) != 1 else ''}", f"norm {whole.norm:.4g}"]
    for name, number in (("stable", whole.stable_rank), ("effective", whole.effective_rank)):
        parts += [] if number is None else [f"{name} rank {number:.3g} (median of the layers)"]
    yield Text(24, 48, ", ".join(parts), 12, GRAY)
    yield Text(24, 65, "; ".join(notes(portrait.found.without.values())), 12, GRAY)


def _curves(portrait: Portrait, rows: Sequence[Block], bottom: float) -> Iterator[Shape]:
    """Yield both plots of the spectra, one below the other."""
    curves = [block.curve.tolist() for block in rows]
    whole = portrait.found.whole.curve.tolist()
    longest = max((len(curve) for curve in (*curves, whole)), default=0)
    largest = max((curve[0] for curve in (*curves, whole) if curve), default=0.0)
    if not largest:
        yield Text(80, 160, "no layer here has singular values other than 0", 12, GRAY)
        return
    high = math.ceil(math.log10(largest) + 0.02)
    smallest = min(value for curve in (*curves, whole) for value in curve if value > 0)
    low = max(high - DECADES, min(high - 1, math.floor(math.log10(smallest))))
    height = (bottom - 100 - 110) / 2
    across = (1.0, float(max(2, longest)))
    upper = Axes(80, 112, 440, height, across, (low, high))
    marks = {float(power): f"{10.0**power:g}" for power in range(low, high + 1)}
    yield from upper.frame("Singular values of a typical layer, block by block", "number of the singular value", marks)
    lower = Axes(80, 112 + height + 94, 440, height, across, (0.0, 100.0))
    marks = {float(share): f"{share} %" for share in (0, 25, 50, 75, 90, 100)}
    yield from lower.frame("Share of the energy in the first n singular values", "n (values kept)", marks)
    for block, color in zip(curves, _depths(len(rows)), strict=True):
        yield from _pair(upper, lower, block, color, 1.3)
    yield from _pair(upper, lower, whole, BLACK, 2.6)
    yield Line(((400, upper.top + 10), (424, upper.top + 10)), BLACK, 2.6)
    yield Text(430, upper.top + 10, "all layers", 11)


def _pair(upper: Axes, lower: Axes, values: Sequence[float], color: Color, width: float) -> Iterator[Shape]:
    """Yield one curve in both plots; what lies below the upper one is left out."""
    shown = [(n, math.log10(value)) for n, value in enumerate(values, 1) if value > 0]
    yield from _line([upper.at(n, power) for n, power in shown if power >= upper.y[0]], color, width)
    sums = list(accumulate(value**2 for value in values))
    yield from _line([lower.at(n, 100 * part / sums[-1]) for n, part in enumerate(sums, 1) if sums[-1]], color, width)


def _line(points: Sequence[tuple[float, float]], color: Color, width: float) -> Iterator[Shape]:
    if len(points) == 1:
        (x, y) = points[0]
        yield Box(x - 2.5, y - 2.5, 5, 5, color)
    elif points:
        yield Line(tuple(points), color, width)


@dataclass(frozen=True, eq=False)
class _Map:
    """The heat map, with its rows' sums as bars and, where there is one, the likeness with another adapter."""

    portrait: Portrait
    rows: Sequence[Block]
    columns: Mapping[str, str]  # kind of module -> the column that it is shown in
    left: float
    top: float
    cell: float  # width
    height: float  # of a row

    @property
    def names(self) -> list[str]:
        """The columns, from left to right."""
        return sorted(dict.fromkeys(self.columns.values()), key=lambda name: name == OTHER)

    @property
    def bottom(self) -> float:
        """Lower end of the last row."""
        return self.top + self.height * len(self.rows)

    @property
    def bars(self) -> float:
        """Where the sums' bars begin."""
        return self.left + self.cell * len(self.names) + 14

    @property
    def right(self) -> float:
        """Right end, with what stands beside the map."""
        beside = self.bars + 130 + (170 if self.portrait.likeness is not None else 0)
        return max(beside, self.left + len(TITLE) * 13 * EM)

    def shapes(self) -> Iterator[Shape]:
        """Yield all of it."""
        yield Text(self.left, 80, TITLE, 13, bold=True)
        shares = cells(self.portrait)
        most = max(shares.values(), default=0.0) or 1.0
        for column, name in enumerate(self.names):
            yield Text(self.left + (column + 0.5) * self.cell, self.top - 8, name, 11, BLACK, upright=True)
        for row, (block, color) in enumerate(zip(self.rows, _depths(len(self.rows)), strict=True)):
            y = self.top + row * self.height
            yield Text(self.left - 20, y + self.height / 2, block.name, 11, BLACK, "right")
            yield Box(self.left - 14, y + 2, 9, self.height - 4, color)
            for column, name in enumerate(self.names):
                yield from self._cell(self.left + column * self.cell, y, shares.get((block.name, name)), most)
        yield from self._sums()
        yield from self._likeness()

    def _cell(self, x: float, y: float, share: float | None, most: float) -> Iterator[Shape]:
        if share is None:
            yield Box(x + self.cell / 2 - 1, y + self.height / 2 - 1, 2, 2, PALE)  # no such layer
            return
        strength = math.sqrt(share / most)
        yield Box(x + 0.5, y + 0.5, self.cell - 1, self.height - 1, blend(HEAT, strength))
        if share >= 0.0095:
            color = WHITE if strength > 0.55 else BLACK
            yield Text(x + self.cell / 2, y + self.height / 2, f"{100 * share:.0f}", 10, color, "center")

    def _sums(self) -> Iterator[Shape]:
        shares = [self.portrait.share(block) for block in self.rows]
        most = max(shares, default=0.0) or 1.0
        yield Text(self.bars, self.top - 14, "block", 11, BLACK, bold=True)
        for row, share in enumerate(shares):
            y = self.top + row * self.height
            yield Box(self.bars, y + 2, 70 * share / most, self.height - 4, HEAT[2])
            yield Text(self.bars + 70 * share / most + 5, y + self.height / 2, f"{100 * share:.1f} %", 10)

    def _likeness(self) -> Iterator[Shape]:
        if self.portrait.likeness is None:
            return
        middle = self.bars + 130 + 75
        yield Text(middle, self.top - 30, "cosine with", 11, BLACK, "center", bold=True)
        yield Text(middle, self.top - 14, _short(self.portrait.other or "the other", 26), 11, BLACK, "center")
        found = _likes(self.portrait)
        for row, block in enumerate(self.rows):
            y, cosine = self.top + row * self.height, found[block.name].cosine if block.name in found else None
            if cosine is not None:
                start = middle + min(0.0, 50 * cosine)
                yield Box(start, y + 2, max(1.0, 50 * abs(cosine)), self.height - 4, PLUS if cosine > 0 else MINUS)
                x, align = (middle - 5, "right") if cosine > 0 else (middle + 5, "left")
                yield Text(x, y + self.height / 2, f"{round(cosine, 2) + 0.0:.2f}", 10, BLACK, align)
        for cosine in (-1, 0, 1):
            x = middle + 50 * cosine
            yield Line(((x, self.top), (x, self.bottom + 4)), PALE if cosine else GRAY)
            yield Text(x, self.bottom + 13, str(cosine), 11, GRAY, "center")


def blend(colors: Sequence[Color], place: float) -> Color:
    """Return the colour at a place, 0 to 1, of a row of colours.

    >>> blend(((0, 0, 0), (100, 200, 50)), 0.5)
    (50, 100, 25)
    """
    position = max(0.0, min(1.0, place)) * (len(colors) - 1)
    index = min(int(position), len(colors) - 2)
    part = position - index
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(colors[index], colors[index + 1], strict=True))
    return red, green, blue


def _depths(count: int) -> list[Color]:
    return [blend(DEPTH, index / max(1, count - 1)) for index in range(count)]


def row_names(portrait: Portrait) -> dict[str, str]:
    """Return block -> the row that it is shown in: too many text encoders' blocks are one row each, then all alike."""
    texts = {name for target, name in portrait.block.items() if target.component != DENOISER}
    names = [block.name for block in portrait.blocks]
    choices = (
        {name: name for name in names},
        {name: name.split(".")[0] if name in texts else name for name in names},
        {name: name.split(".")[0] for name in names},
    )
    return next((choice for choice in choices if len(set(choice.values())) <= ROWS), choices[-1])


def _rows(portrait: Portrait) -> list[Block]:
    rows = row_names(portrait)
    return portrait.found.blocks({target: rows[name] for target, name in portrait.block.items() if name in rows})


def _columns(portrait: Portrait) -> dict[str, str]:
    """Return kind of module -> the column that it is shown in."""
    sums: dict[str, float] = {}
    for target, layer in portrait.found.layers.items():
        sums[kind(target)] = sums.get(kind(target), 0.0) + layer.norm**2
    if len(sums) <= COLUMNS:
        return {name: _short(name, 22) for name in sums}
    largest = set(sorted(sums, key=lambda name: -sums[name])[: COLUMNS - 1])
    return {name: _short(name, 22) if name in largest else OTHER for name in sums}


def cells(portrait: Portrait) -> dict[tuple[str, str], float]:
    """Return (row, column) -> the layers' part of the squared norm of all, 0 to 1; only where there are layers."""
    rows, columns, whole = row_names(portrait), _columns(portrait), portrait.found.whole.norm
    found: dict[tuple[str, str], float] = {}
    for target, layer in portrait.found.layers.items():
        place = (rows[portrait.block[target]], columns[kind(target)])
        found[place] = found.get(place, 0.0) + ((layer.norm / whole) ** 2 if whole else 0.0)
    return found


def _likes(portrait: Portrait) -> dict[str, Likeness]:
    """Return each row's likeness with the other adapter; rows of the other one alone are left out."""
    rows = row_names(portrait)
    return grouped(portrait.likeness or {}, {target: rows.get(name, "") for target, name in portrait.block.items()})


def _short(name: str, most: int) -> str:
    """Return the end of a name that is too long.

    >>> _short("text_model.embeddings.token_embedding", 18)
    '..token_embedding'
    """
    while len(name) > most and "." in name.strip("."):
        name = ".." + name.strip(".").split(".", 1)[1]
    return name if len(name) <= most else f"{name[: most - 2]}.."
