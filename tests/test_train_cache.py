"""The cache: on disk as in memory, whatever happens to its files, and what it makes of pictures that are broken."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_models import TinyBackend, config, one_thread, pictures, same_file, write_plain

from lorasmith.lora_core.errors import BadDataset, BadValues, FileProblem
from lorasmith.lora_core.train.cache import Batch, Cache, open_cache
from lorasmith.lora_core.train.cache_store import Disk, Memory, Recent, key_of
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.data import Plan, View, plan
from lorasmith.lora_core.train.engine import run
from lorasmith.lora_core.train.protocols import Moments

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

BUCKETS = {"buckets": True, "bucket_step": 8, "bucket_min": 8, "bucket_max": 64, "random_flip": True}


def batches(data: Plan, cache: Cache, steps: range) -> list[Batch]:
    return [cache.batch(data.views(step)[0], 1, "train", step, 0, 1.0, "the prior") for step in steps]


def equal(ours: Batch, theirs: Batch) -> bool:
    pairs = [(ours.latents, theirs.latents), (ours.mask, theirs.mask)]
    pairs += [(ours.cond[name], theirs.cond[name]) for name in theirs.cond]
    pairs += [(ours.prior[name], theirs.prior[name]) for name in theirs.prior or {}]  # type: ignore[index]
    return ours.names == theirs.names and all(torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


def mixed(tmp_path: Path, **keys: Any) -> TrainConfig:
    """Return a run over pictures of three shapes, one caption occurring twice."""
    for index, (name, size) in enumerate({"a": (40, 10), "b": (10, 40), "c": (16, 16), "d": (48, 10)}.items()):
        pictures(tmp_path / "data", {name: f"caption {index % 3}"}, size)
    return config(tmp_path, batch_size=2, masks="alpha", **BUCKETS, **keys)


def test_disk_equals_memory_bit_for_bit_and_outlives_the_process(tmp_path: Path) -> None:
    in_memory, on_disk = mixed(tmp_path), mixed(tmp_path, cache="disk")
    data, backend = plan(in_memory), TinyBackend()
    expected = batches(data, open_cache(in_memory, TinyBackend()), range(20))
    first = open_cache(on_disk, backend)
    assert all(map(equal, batches(data, first, range(20)), expected))
    count = len(backend.encoded)
    views = {(view.picture.digest, view.window, view.flip) for view in data.drawn(range(20))}
    assert count == len(set(data.texts())) + 1 + len(views) and len({view.size for view in data.drawn(range(20))}) == 3
    assert all(map(equal, batches(data, first, range(20)), expected))
    assert all(map(equal, batches(data, open_cache(on_disk, backend), range(20)), expected))
    assert len(backend.encoded) == count
    assert not any(isinstance(store, Memory) for store in (first.latents, first.texts))


@pytest.mark.parametrize("harm", ["cut", "empty", "flip a bit", "another's", "no safetensors"])
def test_broken_cache_files_are_made_anew(tmp_path: Path, harm: str) -> None:
    settings = mixed(tmp_path, cache="disk")
    data, cache = plan(settings), open_cache(settings, TinyBackend())
    expected = batches(data, cache, range(10))
    files = sorted((tmp_path / "run" / "cache").rglob("*.safetensors"))
    contents = [file.read_bytes() for file in files]
    for index, (file, content) in enumerate(zip(files, contents, strict=True)):
        flipped = bytearray(content)
        flipped[-40] ^= 1
        other = contents[(index + 1) % len(contents)]
        ways = {"cut": content[:-9], "empty": b"", "flip a bit": bytes(flipped), "another's": other}
        file.write_bytes(ways.get(harm, b"x" * 100))
    assert all(map(equal, batches(data, open_cache(settings, TinyBackend()), range(10)), expected))
    assert [file.read_bytes() for file in files] == contents
    assert sorted((tmp_path / "run" / "cache").rglob("*.*")) == files  # no drafts are left


def test_keys_differ_in_all_that_entries_are_made_of(tmp_path: Path) -> None:
    settings = mixed(tmp_path)
    cache, view = open_cache(settings, TinyBackend()), View(plan(settings).pictures[0])
    others = [replace(view, flip=True), replace(view, window=0), replace(view, size=(16, 16))]
    others.append(replace(view, picture=replace(view.picture, digest="other")))
    more = [config(tmp_path, **BUCKETS, **keys) for keys in ({"text_encoder": True}, {"model": "x"}, {"guidance": 2.0})]
    keys = [cache._key(one) for one in [view, *others]] + [open_cache(c, TinyBackend())._key(view) for c in more]
    assert len(set(keys)) == len(keys)
    assert cache._key(view) == open_cache(settings, TinyBackend())._key(replace(view, said="anything"))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileProblem, match="No space left on device.*set 'cache' to 'memory'"):
        Disk(tmp_path).put(key_of("x"), {"a": torch.ones(2)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_recent_things_are_kept_up_to_a_size() -> None:
    store = Recent(3 * 4)
    for name in "abcb":
        store.put(name, {"x": torch.ones(1)})
    store.get("a")
    store.put("d", {"x": torch.ones(1)})
    assert set(store.kept) == {"a", "b", "d"}
    store.put("e", {"x": torch.ones(9)})
    assert not store.kept and store.get("e") is None


def test_memory_keeps_copies_whatever_their_size_and_kind() -> None:
    store, given = Memory(), {"large": torch.rand(2**24 + 1)}
    for index, shape in enumerate([(3, 5), (), (0, 4), (7,), (1, 77, 8)]):
        for dtype in (torch.float32, torch.int64, torch.uint8, torch.bool):
            given[f"{index} {dtype}"] = (torch.rand(shape) * 9).to(dtype)
    for key, tensor in given.items():
        store.put(key, {"x": tensor, "y": tensor[..., :1] if tensor.dim() else tensor})
    expected = {key: tensor.clone() for key, tensor in given.items()}
    for tensor in given.values():
        tensor.zero_()
    for key, tensor in expected.items():
        found = store.get(key)
        assert found is not None and torch.equal(found["x"], tensor) and found["x"].dtype == tensor.dtype
        assert torch.equal(found["y"], tensor[..., :1] if tensor.dim() else tensor)


def test_filling_encodes_each_once_pictures_first(tmp_path: Path) -> None:
    settings = mixed(tmp_path)
    data, backend = plan(settings), TinyBackend()
    cache = open_cache(settings, backend)
    assert cache.fill(data.drawn(range(20)), further=["more"]) == []
    made = list(backend.encoded)
    views = {(view.picture.digest, view.window, view.flip) for view in data.drawn(range(20))}
    assert made[: len(views)] == ["image"] * len(views)
    assert sorted(made[len(views) :]) == sorted([*data.texts(), "more"])
    cache.fill(data.drawn(range(20)))
    batches(data, cache, range(20))
    assert set(backend.encoded[len(made) :]) == {"the prior"}


def test_filling_stops_when_asked(tmp_path: Path) -> None:
    settings = mixed(tmp_path)
    backend = TinyBackend()
    open_cache(settings, backend).fill(plan(settings).drawn(range(20)), lambda: len(backend.encoded) >= 2)
    assert backend.encoded == ["image"] * 2


class Picky(TinyBackend):
    """Gives no number for dark pictures."""

    def encode_image(self, pixels: torch.Tensor) -> Moments:
        made = super().encode_image(pixels)
        return made if float(pixels.mean()) > -0.9 else Moments(made.mean * float("nan"), made.std)


def spoiled(tmp_path: Path, **keys: Any) -> TrainConfig:
    """Return a run over five pictures, of which one is cut off after its header and one has no finite latents."""
    from PIL import Image

    folder = pictures(tmp_path / "data", {name: f"caption {name}" for name in "abcde"}, (64, 64))
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-5000])
    Image.new("RGB", (64, 64)).save(folder / "d.png")
    return config(tmp_path, **keys)


def test_broken_pictures_are_refused_by_name(tmp_path: Path) -> None:
    settings = spoiled(tmp_path)
    with pytest.raises(BadDataset, match=r"b\.png: cannot be read as a picture"):
        open_cache(settings, Picky()).fill(plan(settings).drawn(range(5)))
    (tmp_path / "data" / "b.png").unlink()
    with pytest.raises(BadValues, match=r"d\.png: its latents are not finite"):
        open_cache(settings, Picky()).fill(plan(settings).drawn(range(5)))


def test_broken_pictures_are_left_out_when_asked(tmp_path: Path) -> None:
    settings = spoiled(tmp_path, skip_broken=True)
    data = plan(settings)
    whole = open_cache(settings, Picky()).sound(data, 100)
    assert [picture.path.stem for picture in whole.pictures] == ["a", "c", "e"]
    assert whole.digest() == data.digest() and len(whole.warnings) == 2
    assert {view.picture.path.stem for view in whole.drawn(range(3))} == {"a", "c", "e"}
    with pytest.raises(BadDataset, match="data: no picture is left that can be used"):
        open_cache(settings, Picky()).sound(replace(data, pictures=data.pictures[1:2]), 9)


def test_the_same_pictures_are_left_out_wherever_a_run_begins(tmp_path: Path) -> None:
    """A picture with finite latents in some of its views alone: the first epoch decides."""

    class Half(TinyBackend):
        def encode_image(self, pixels: torch.Tensor) -> Moments:
            made = super().encode_image(pixels)
            return Moments(made.mean * (float("nan") if float(pixels[0, 0, 0]) > 0 else 1.0), made.std)

    pictures(tmp_path / "data", {name: f"caption {name}" for name in "abcdefgh"}, (20, 16))
    data = plan(config(tmp_path, random_flip=True))
    whole = Cache(Half(), data.shapes).sound(data, 100)
    assert 0 < len(whole.pictures) < 8
    used = Cache(Half(), data.shapes)
    used.fill(data.drawn(range(8, 30)), skip=True)
    assert used.sound(data, 100).pictures == whole.pictures
    assert used.fill(whole.drawn(whole.epoch(0, 100)), skip=True) == []


def test_unseen_pictures_that_are_broken_are_left_out_too(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x"}, (64, 64))
    spoiled(tmp_path / "other")
    keys = {"validation_data": str(tmp_path / "other" / "data"), "skip_broken": True, "steps": 2}
    events = list(run(config(tmp_path, **keys), Picky(), write_plain))
    assert events[-1].event == "done" and events[-1].more["validation_loss"] > 0


def test_a_run_with_broken_pictures_says_so_and_resumes(tmp_path: Path) -> None:
    settings = spoiled(tmp_path, skip_broken=True, steps=6, cache="disk")
    events = list(run(settings, Picky(), write_plain))
    warnings = [event.message for event in events if event.event == "warning"]
    assert [text.split(":")[0] for text in warnings if text] == ["left out"] * 2
    twice = replace(settings, out=str(tmp_path / "twice"))
    stops = iter([False] * 9)
    list(run(twice, Picky(), write_plain, stop=lambda: next(stops, True)))
    list(run(twice, Picky(), write_plain, resume=True))
    assert same_file(tmp_path / "run" / "tiny.safetensors", tmp_path / "twice" / "tiny.safetensors")


def test_a_run_with_everything_resumes_bit_for_bit(tmp_path: Path) -> None:
    keys = {"caption_dropout": 0.2, "shuffle_captions": True, "trigger_word": "sks", "accumulate": 2, "steps": 9}
    settings = mixed(tmp_path, cache="disk", scheduler="constant", **keys)
    list(run(settings, TinyBackend(), write_plain))
    part = replace(settings, out=str(tmp_path / "part"))
    list(run(replace(part, steps=4), TinyBackend(), write_plain))
    list(run(part, TinyBackend(), write_plain, resume=True))
    in_memory = replace(settings, out=str(tmp_path / "memory"), cache="memory")
    list(run(in_memory, TinyBackend(), write_plain))
    for other in ("part", "memory"):
        assert same_file(tmp_path / "run" / "tiny.safetensors", tmp_path / other / "tiny.safetensors")


def test_planning_costs_no_more_per_picture_for_many(tmp_path: Path) -> None:
    """A whole epoch's order is drawn once, not once per view."""
    (picture,) = plan(config(pictures(tmp_path / "data", {"a": "x"}).parent)).pictures
    many = Plan([replace(picture, digest=str(index)) for index in range(3000)], batch_size=4)
    drawn = list(many.drawn(range(750)))
    assert len({view.picture.digest for view in drawn}) == 3000
    assert many._order.cache_info().misses == 1  # type: ignore[attr-defined]
