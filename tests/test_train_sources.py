"""Where pictures and captions come from: folders of several kinds, tables of Hugging Face, clips."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from train_models import config, pictures

from lorasmith.lora_core.errors import BadConfig, BadDataset
from lorasmith.lora_core.train.data import listed, manifest, plan, unseen
from lorasmith.lora_core.train.pictures import Clip, Cut, load, measure, pixels
from lorasmith.lora_core.train.sources import Reading, entries


def bare(folder: Path, *names: str, size: tuple[int, int] = (16, 16)) -> Path:
    """Write pictures without captions."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (len(name), sum(map(ord, name)) % 256, 0)).save(file)
    return folder


def captions(data: str | Path, **keys: Any) -> dict[str, tuple[str, ...]]:
    return {picture.path.name: picture.captions for picture in listed(data, **keys).pictures}


def test_caption_files_of_both_kinds(tmp_path: Path) -> None:
    bare(tmp_path, "a.png", "b.png", "c.d.png")
    beside = {"a.txt": "text", "a.caption": "other", "b.caption": "kohya's", "c.d.txt": "dots\nand lines"}
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    assert captions(tmp_path) == {"a.png": ("text",), "b.png": ("kohya's",), "c.d.png": ("dots and lines",)}


def test_metadata_lines_with_any_column_and_several_captions(tmp_path: Path) -> None:
    bare(tmp_path, "a.png", "b.png", "sub/c.png", "sub/d.png")
    rows = [{"file_name": "a.png", "prompt": ["one", "two"], "text": "not this"}, {"file_name": "b.png", "text": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sub" / "metadata.csv").write_text('file_name,prompt\nc.png,"red, round"\nd.png,"two\nlines"\n')
    found = captions(tmp_path, reading=Reading(caption_column="prompt"))
    assert found == {"a.png": ("one", "two"), "b.png": ("b",), "c.png": ("red, round",), "d.png": ("two\nlines",)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,text\nz.png,z\n", "metadata.csv, line 2: 'z.png' is not in the folder; remove the line"),
        ("file,text\na.png,z\n", 'metadata.csv, line 2: a line must look like {"file_name": "cat.png", "prompt"'),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, table: str, message: str) -> None:
    (bare(tmp_path, "a.png") / "metadata.csv").write_text(table)
    with pytest.raises(BadDataset) as caught:
        listed(tmp_path, reading=Reading(caption_column="prompt"))
    assert message in caught.value.message


def test_kohya_folders_repeat_and_caption_their_pictures(tmp_path: Path) -> None:
    bare(tmp_path, "10_sks dog/a.png", "10_sks dog/b.png", "2_cat/deeper/c.png", "d.png", "2024_trip/e.png")
    (tmp_path / "10_sks dog" / "b.txt").write_text("a dog on a hill")
    found = {picture.path.name: picture for picture in manifest(tmp_path, "for all")}
    assert {name: (p.repeats, p.caption) for name, p in found.items()} == {
        "a.png": (10, "sks dog"),
        "b.png": (10, "a dog on a hill"),
        "c.png": (2, "cat"),
        "d.png": (1, "for all"),
        "e.png": (1, "for all"),
    }


def test_folders_inside_that_hold_something_else_are_left_out(tmp_path: Path) -> None:
    data = bare(tmp_path / "data", "a.png", "masks/a.png", "class/x.png", "unseen/u.png", "run/samples/s.png")
    (data / "unseen" / "metadata.jsonl").write_text("no line of this data")
    (data / "unseen" / "u.txt").write_text("unseen")
    inner = {name: str(data / name) for name in ("masks", "class", "unseen", "run")}
    keys = {"class_data": inner["class"], "class_prompt": "y", "validation_data": inner["unseen"], "out": inner["run"]}
    settings = config(tmp_path, instance_prompt="x", masks=inner["masks"], **keys)
    assert [picture.path.name for picture in plan(settings).pictures] == ["a.png"]
    assert [picture.path.name for picture in plan(settings).priors] == ["x.png"]
    (data / "unseen" / "metadata.jsonl").unlink()
    assert [picture.path.name for picture in unseen(settings)] == ["u.png"]


def test_only_so_many_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x", "b": "y", "c": "z"})
    assert [p.caption for p in plan(config(tmp_path, max_pictures=2)).pictures] == ["x", "y"]
    assert len(plan(config(tmp_path, max_pictures=9)).pictures) == 3


def test_unreadable_pictures_are_left_out_when_asked(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", {"a": "x", "b": "y"})
    (folder / "a.png").write_bytes(b"no picture")
    data = plan(config(tmp_path, skip_broken=True))
    assert [picture.caption for picture in data.pictures] == ["y"]
    (warning,) = data.warnings
    assert warning.startswith(f"left out: {folder / 'a.png'}: cannot be read as a picture")
    (folder / "b.png").write_bytes(b"")
    with pytest.raises(BadDataset, match=r"a\.png: cannot be read"):
        plan(config(tmp_path, skip_broken=True))


# Hugging Face


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (20, 10 + shade), (shade, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def columns() -> dict[str, list[Any]]:
    cells = [{"bytes": png(shade), "path": None} for shade in range(4)]
    return {"picture": cells, "prompt": ["a", "b", "c", "e"], "several": [["a", "b"], ["c"], ["d"], ["e"]]}


@pytest.fixture
def table() -> Any:
    datasets = pytest.importorskip("datasets")
    if int(datasets.__version__.partition(".")[0]) < 4:
        pytest.skip("an older 'datasets'")
    datasets.disable_progress_bars()
    return datasets.Dataset.from_dict(columns()).cast_column("picture", datasets.Image())


READING = Reading("picture", "prompt")


def test_data_sets_are_read_from_every_form(tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = sys.modules["datasets"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "splits"))
    table.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "parts").mkdir()
    table.select(range(2)).to_parquet(tmp_path / "parts" / "train-0.parquet")
    table.select(range(2, 4)).to_parquet(tmp_path / "parts" / "train-1.parquet")
    table.select([0]).to_parquet(tmp_path / "parts" / "test-0.parquet")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for place in ("saved", "splits", "rows.parquet", "parts", arrow):
        found = listed(tmp_path / place, reading=READING).pictures
        assert [(p.caption, p.size) for p in found] == [(name, (20, 10 + i)) for i, name in enumerate("abce")]
        assert [load(p.source).getpixel((0, 0)) for p in found] == [(shade, 0, 0) for shade in range(4)]
        assert len({p.digest for p in found}) == 4
    found = listed(tmp_path / "saved", reading=Reading("picture", "several")).pictures
    assert [p.captions for p in found] == [("a", "b"), ("c",), ("d",), ("e",)]
    assert found[2].path.name == "saved-000002"


def test_pictures_of_tables_equal_those_of_files(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "3.png").write_bytes(png(3))
    row, cut = listed(tmp_path / "saved", reading=READING).pictures[3], Cut(8, 8, 0.25, flip=True)
    assert row.digest == measure(tmp_path / "3.png").digest
    assert torch.equal(pixels(row.source, cut), pixels(tmp_path / "3.png", cut))


def test_columns_that_are_not_there_are_named(tmp_path: Path, table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(BadDataset) as caught:
        listed(tmp_path / "saved")
    there = "picture, prompt, several"
    assert caught.value.message == f"{tmp_path / 'saved'}: no column 'image'; set 'image_column' to one of {there}"
    with pytest.raises(BadDataset, match="no column 'caption'; set 'caption_column'"):
        listed(tmp_path / "saved", reading=Reading("picture", "caption"))
    with pytest.raises(BadDataset, match="saved-000000: no caption; set 'caption_column', or 'instance_prompt'"):
        listed(tmp_path / "saved", reading=Reading("picture"))
    assert captions(tmp_path / "saved", fallback="x", reading=Reading("picture"))["saved-000003"] == ("x",)
    with pytest.raises(BadDataset, match="saved-000000: column 'prompt' holds neither a picture nor"):
        listed(tmp_path / "saved", "x", reading=Reading("prompt"))


def test_names_are_looked_up_on_the_hub(tmp_path: Path, table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets, asked = sys.modules["datasets"], []

    def load_dataset(name: str) -> Any:
        asked.append(name)
        if name == "someone/gone":
            raise FileNotFoundError("it is gone\nand more")
        splits = {"someone/pictures": ("test", "train"), "someone/only": ("all",)}.get(name, ("a", "b"))
        return datasets.DatasetDict({split: table for split in splits})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    for name in ("someone/pictures", "someone/only"):
        assert len(listed(name, reading=READING).pictures) == 4
    with pytest.raises(BadDataset, match="someone/split: has no split 'train' among a, b"):
        listed("someone/split")
    with pytest.raises(BadDataset) as caught:
        listed("someone/gone")
    what = "no such folder, and no data set of that name can be loaded (it is gone); give a folder of pictures"
    assert caught.value.message == f"someone/gone: {what}" and len(asked) == 4


def test_a_broken_table_is_named(tmp_path: Path, table: Any) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"nothing")
    with pytest.raises(BadDataset, match=r"rows\.parquet: cannot be read"):
        listed(tmp_path / "rows.parquet", reading=READING)


@pytest.mark.parametrize("data", ["someone/pictures", "rows.parquet"])
def test_without_the_package_one_line_says_how_to_get_it(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(BadConfig) as caught:
        entries(data)
    command = f'{Path(sys.executable).name} -m pip install "datasets>=4"'
    what = "no such folder, and a data set" if "/" in data else "a table"
    line = f"{data}: {what} of Hugging Face needs a package; run '{command}', or give a folder of pictures"
    assert caught.value.message == line


def test_folders_of_pictures_stay_folders_whatever_lies_beside(tmp_path: Path) -> None:
    bare(tmp_path, "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"")
    assert len(manifest(tmp_path, "x")) == 1


# clips


def frames(folder: Path, count: int) -> Path:
    """Write frames whose shade is their number."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (16, 16), (index, index, index)).save(folder / f"frame{index}.png")  # 10 comes after 9
    return folder


def shades(data: torch.Tensor) -> list[int]:
    return [round((float(value) + 1) * 127.5) for value in data[0, :, 0, 0]]


def test_clips_are_frames_in_a_row(tmp_path: Path) -> None:
    frames(tmp_path / "data" / "walk", 12)
    (tmp_path / "data" / "walk.txt").write_text("walking")
    (picture,) = plan(config(tmp_path, frames=5)).pictures
    assert (picture.caption, picture.length, picture.path.name) == ("walking", 12, "walk")
    assert isinstance(picture.source, Clip)
    for place, start in ((0.0, 0), (0.5, 4), (1.0, 7)):
        seen = pixels(picture.source, Cut(16, 16, place), 5)
        assert seen.shape == (3, 5, 16, 16) and shades(seen) == list(range(start, start + 5))


def test_animations_are_clips_and_first_frames(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    still = [Image.new("L", (16, 16), index * 40) for index in range(6)]
    still[0].save(folder / "a.gif", save_all=True, append_images=still[1:])
    settings = config(tmp_path, frames=5, instance_prompt="x", center_crop=False)
    (picture,) = plan(settings).pictures
    assert picture.length == 6 and shades(pixels(picture.source, Cut(16, 16, 1.0), 5)) == [40, 80, 120, 160, 200]
    assert len({view.window for view in plan(settings).drawn(range(50))}) == 5  # cut in time, though square
    (still_picture,) = plan(config(tmp_path, instance_prompt="x")).pictures
    assert pixels(still_picture.source, Cut(16, 16)).shape == (3, 16, 16)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    frames(tmp_path / "data" / "short", 3)
    with pytest.raises(BadDataset, match="short: has 3 frames, but 'frames' is 5; give a longer clip"):
        plan(config(tmp_path, frames=5, instance_prompt="x"))
    bare(tmp_path / "data" / "short", "cover.png")
    with pytest.raises(BadDataset, match=r"cover\.png: a still, but 'frames' asks for clips"):
        plan(config(tmp_path, frames=3, instance_prompt="x"))
    (tmp_path / "none").mkdir()
    what = "none: no clips; put folders of numbered frames, or .gif and .webp files, in it"
    with pytest.raises(BadDataset, match=what):
        plan(config(tmp_path, frames=3, instance_prompt="x", data=str(tmp_path / "none")))
    with pytest.raises(BadConfig, match="'masks' are for pictures"):
        plan(config(tmp_path, frames=3, masks="alpha"))
