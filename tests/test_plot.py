"""The picture of a LoRA: its data, where things stand on it, and that both ways of drawing draw it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import adapter, folder, refusal

from lorasmith import convert
from lorasmith.cli import plot as cli_plot
from lorasmith.cli.main import main
from lorasmith.convert.architectures import architecture
from lorasmith.convert.figure import COLUMNS, ROWS, Axes, Box, Figure, Line, Text, blend, cells, figure, row_names
from lorasmith.convert.model import modules
from lorasmith.convert.portrait import Portrait, portrait
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import DoRA, LoRA
from lorasmith.lora_core.ops.scale import scale
from lorasmith.nodes import actions
from lorasmith.nodes.drawing import SHARP, drawn, image

BLOCK = "input_blocks.1.1.transformer_blocks.0"


def whole(family: str, components: tuple[str, ...], rank: int = 2) -> Adapter:
    """A LoRA of small layers on every matrix of these components."""
    make = torch.Generator().manual_seed(0)
    layers = {
        Target(part.id, module.original): LoRA(
            torch.randn(rank, 4, generator=make), torch.randn(4, rank, generator=make), 1.0
        )
        for part in architecture(family).components
        if part.id in components
        for module in modules(part)
        if len(module.shape) == 2
    }
    return Adapter(family, layers)


def texts(figure: Figure) -> list[str]:
    return [shape.words for shape in figure.shapes if isinstance(shape, Text)]


def lines(figure: Figure, width: float) -> list[Line]:
    return [shape for shape in figure.shapes if isinstance(shape, Line) and shape.width == width]


def extent(shape: Text, letter: float = 0.62) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text in a wide font."""
    length = len(shape.words) * shape.size * letter
    if shape.upright:
        return shape.x - shape.size / 2, shape.y - length, shape.x + shape.size / 2, shape.y
    left = shape.x - {"left": 0, "center": length / 2, "right": length}[shape.align]
    return left, shape.y - shape.size / 2, left + length, shape.y + shape.size / 2


PORTRAITS = {
    "small": lambda: portrait(adapter(1), title="a.safetensors"),
    "compared": lambda: portrait(adapter(1), scale(adapter(1), -1), "a", "another one of a long name.safetensors"),
    "one layer": lambda: portrait(Adapter("sd15", dict(list(adapter(1).layers.items())[:1]))),
    "sdxl": lambda: portrait(whole("sdxl", ("denoiser", "clip_l", "clip_g"))),
    "flux": lambda: portrait(whole("flux", ("denoiser", "clip_l", "t5xxl"))),
}


@cache
def named(name: str) -> Portrait:
    return PORTRAITS[name]()


@pytest.mark.parametrize("name", PORTRAITS)
def test_everything_lies_on_the_picture_and_no_text_on_another(name: str) -> None:
    drawing = figure(named(name))
    words = [(extent(shape), shape.words) for shape in drawing.shapes if isinstance(shape, Text) and shape.words]
    for (left, top, right, bottom), _ in words:
        assert 0 <= left and right <= drawing.width and 0 <= top and bottom <= drawing.height
    for shape in drawing.shapes:
        if isinstance(shape, Box):
            assert 0 <= shape.x and shape.x + shape.width <= drawing.width and shape.y + shape.height <= drawing.height
        if isinstance(shape, Line):
            assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in shape.points)
    for index, (one, said) in enumerate(words):
        for other, also in words[index + 1 :]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (said, also)


def test_curves_and_bars_show_the_numbers() -> None:
    """Two singular values, 10 and 1: the curve falls by one decade, and the first holds 100/101 of the energy."""
    down = torch.zeros(2, 320)
    down[0, 0], down[1, 1] = 10.0, 1.0
    lora = Adapter("sd15", {Target("denoiser", f"{BLOCK}.attn1.to_q"): LoRA(down, torch.eye(320, 2), 2.0)})
    drawing = figure(portrait(lora))
    upper, lower = (line.points for line in lines(drawing, 2.6) if len(line.points) == 2 and line.points[0][0] == 80)
    marks = {shape.words: shape.y for shape in drawing.shapes if isinstance(shape, Text) and shape.align == "right"}
    assert upper[0] == pytest.approx((80, marks["10"])) and upper[1] == pytest.approx((520, marks["1"]))
    zero, full = marks["0 %"], marks["100 %"]
    assert lower[0] == pytest.approx((80, zero + (full - zero) * 100 / 101)) and lower[1][1] == pytest.approx(full)
    assert cells(portrait(lora)) == {("down.0.attentions.0", "attn1.to_q"): pytest.approx(1.0)}
    assert "100" in texts(drawing) and "100.0 %" in texts(drawing)


def test_the_heat_map_holds_every_layers_share() -> None:
    seen = named("sdxl")
    found = cells(seen)
    assert sum(found.values()) == pytest.approx(1.0)
    rows, names = {}, row_names(seen)
    for (row, _), share in found.items():
        rows[row] = rows.get(row, 0.0) + share
    assert set(rows) == set(names.values())
    for block in seen.blocks:
        if names[block.name] == block.name:
            assert rows[block.name] == pytest.approx(seen.share(block))


def test_too_many_blocks_and_kinds_are_taken_together() -> None:
    seen = named("flux")
    names = row_names(seen)
    assert len(seen.blocks) > ROWS >= len(set(names.values()))
    assert names["t5xxl.0"] == "t5xxl" and names["double.3"] == "double.3"
    columns = {column for _, column in cells(seen)}
    assert len(columns) == COLUMNS and "other" in columns


def test_cosines_are_bars_to_either_side() -> None:
    for strength, side in ((2.0, 1), (-2.0, -1)):
        drawing = figure(portrait(adapter(1), scale(adapter(1), strength), "a", "b"))
        assert texts(drawing).count(f"{side:.2f}") == 3
    assert "cosine with" not in texts(figure(portrait(adapter(1))))


def test_layers_without_a_spectrum_are_said_and_not_drawn() -> None:
    lora = next(iter(adapter(1).layers.values()))
    assert isinstance(lora, LoRA)
    only = Adapter("sd15", {Target("denoiser", f"{BLOCK}.attn1.to_q"): DoRA(lora, torch.ones(320, 1))})
    drawing = figure(portrait(only))
    assert "1 DoRA layers are not in it: what they do depends on the base weight" in texts(drawing)
    assert "no layer here has singular values other than 0" in texts(drawing)
    still = replace(adapter(1), layers={t: x.scaled(0) for t, x in adapter(1).layers.items()})
    assert "no layer here has singular values other than 0" in texts(figure(portrait(still)))
    for one in (only, still):
        drawn(figure(portrait(one)))


def test_letters_that_fonts_lack_are_replaced() -> None:
    assert texts(figure(portrait(adapter(1), title="猫 $x_1$\n.safetensors")))[0] == "? $x_1$?.safetensors"


def test_axes_and_colours() -> None:
    axes = Axes(10, 20, 100, 50, (0, 10), (0, 1))
    assert axes.at(0, 0) == (10, 70) and axes.at(10, 1) == (110, 20) and axes.at(5, 0.5) == (60, 45)
    assert blend(((0, 0, 0), (10, 10, 10)), -1) == (0, 0, 0) and blend(((0, 0, 0), (10, 10, 10)), 9) == (10, 10, 10)


# --- drawn ------------------------------------------------------------------------------------------------------------

SHAPES = Figure(
    200,
    100,
    (
        Box(20, 10, 60, 30, (255, 0, 0)),
        Line(((10, 80), (190, 80)), (0, 0, 255), 3.0),
        Text(120, 30, "WWWW", 16, (0, 128, 0)),
        Text(180, 60, "WWWW", 10, (0, 128, 0), upright=True),
    ),
)


def matplotlib_picture(figure: Figure, tmp_path: Path) -> Any:
    pytest.importorskip("matplotlib")
    from PIL import Image

    return Image.open(cli_plot.plot(figure, tmp_path / "picture.png")).convert("RGB")


@pytest.mark.parametrize("way", ["pillow", "matplotlib"])
def test_shapes_are_drawn_where_they_are(way: str, tmp_path: Path) -> None:
    picture = drawn(SHAPES) if way == "pillow" else matplotlib_picture(SHAPES, tmp_path)
    assert picture.size == (200 * SHARP, 100 * SHARP)

    def at(x: float, y: float) -> tuple[int, ...]:
        return picture.getpixel((int(x * SHARP), int(y * SHARP)))

    assert at(50, 25) == at(22, 12) == at(78, 38) == (255, 0, 0)
    assert at(50, 80) == (0, 0, 255) and at(17, 25) == at(50, 45) == at(100, 70) == (255, 255, 255)
    for left, top, right, bottom in ((120, 20, 190, 40), (172, 5, 188, 60)):
        part = np.asarray(picture).astype(int)[top * SHARP : bottom * SHARP, left * SHARP : right * SHARP]
        assert (part[..., 1] > part[..., 0] + 60).sum() > 100, "no text there"
    assert (np.asarray(picture)[45 * SHARP : 70 * SHARP, 125 * SHARP : 160 * SHARP] == 255).all()


def inspected(lora: Adapter, **inputs: Any) -> tuple[Any, ...]:
    """What the node gives out; no model is wired, so no host is asked."""
    host: Any = None
    return actions.inspect_lora(host, lora, **inputs).values


def test_the_node_gives_the_hosts_picture() -> None:
    text, picture = inspected(adapter(1), other=scale(adapter(1), -1))
    assert picture.dtype == torch.float32 and picture.shape[0] == 1 and picture.shape[3] == 3
    assert 0 <= float(picture.min()) < 0.2 and float(picture.max()) == 1
    assert torch.equal(picture, image(figure(portrait(adapter(1), scale(adapter(1), -1), "LoRA", "LoRA"))))
    assert "cosine with LoRA: -1.000" in text.splitlines()
    assert any(line.startswith("norm ") and "stable rank" in line for line in text.splitlines())


def test_the_node_still_speaks_where_nothing_can_be_drawn() -> None:
    first, *_ = adapter(1).layers
    broken = Adapter("sd15", {first: LoRA(torch.full((2, 320), float("nan")), torch.ones(320, 2), 1.0)})
    text, picture = inspected(broken)
    assert "damaged" in text and picture.shape[1] == 64 * SHARP and float(picture.min()) < 0.5
    text, picture = inspected(adapter(1), picture=False)
    assert "norm" not in text and float(picture.min()) == 1


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    convert.write(adapter(1), tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_info_draws_a_file(ending: str, begins: bytes, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["info", "a.safetensors", "--plot", f"p.{ending}"]) == 0
    assert f"  drawn into p.{ending}\n" in capsys.readouterr().out
    assert (here / f"p.{ending}").read_bytes().startswith(begins)
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", f"p.{ending}"]
    assert "already exists" in refusal(capsys, "info", "a.safetensors", "--plot", f"p.{ending}")
    assert main(["info", "a.safetensors", "--plot", f"p.{ending}", "--force", "--compare", "a.safetensors"]) == 0


def test_pictures_that_cannot_be_drawn_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    said = refusal(capsys, "info", "a.safetensors", "--plot", "p.jpg")
    assert said == "p.jpg: a picture is a .png, .svg or .pdf; give it such a name"
    assert "name one FILE" in refusal(capsys, "info", "a.safetensors", "a.safetensors", "--plot", "p.png")
    assert "cannot be written" in refusal(capsys, "info", "a.safetensors", "--plot", "gone/p.png")
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


def test_without_matplotlib_one_line_tells_how_to_get_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = refusal(capsys, "info", "a.safetensors", "--plot", "p.png")
    assert said.startswith("--plot: matplotlib is not installed in ") and said.endswith("-m pip install matplotlib'")


def test_nothing_else_needs_a_picture_library(here: Path, root: Path) -> None:
    done = folder(root, "info", "a.safetensors", "--spectrum", cwd=here, blocked="PIL,matplotlib")
    assert (done.returncode, done.stderr) == (0, "") and "effective rank" in done.stdout
    done = folder(root, "info", "a.safetensors", "--plot", "p.png", cwd=here, blocked="PIL,matplotlib")
    assert done.returncode == 2 and done.stderr.startswith("lorasmith: error: --plot: matplotlib is not installed")
