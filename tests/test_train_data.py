"""Folders of pictures: captions, pixels, plans and caches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_models import TinyBackend, config, pictures

from lorasmith.lora_core.errors import BadDataset, BadValues
from lorasmith.lora_core.train import rng
from lorasmith.lora_core.train.cache import Cache
from lorasmith.lora_core.train.cache_store import Recent
from lorasmith.lora_core.train.data import Picture, Plan, View, manifest, plan, tag_counts
from lorasmith.lora_core.train.pictures import Cut, load, pixels, size_of
from lorasmith.lora_core.train.protocols import Moments
from lorasmith.lora_core.train.shapes import Shapes

SQUARE = Shapes(16)


def test_captions_and_their_precedence(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "d", {"a": "beside", "b": "x", "c": "y"})
    (folder / "b.txt").unlink()
    (folder / "c.txt").unlink()
    rows = [{"file_name": name, "text": f"listed {name}"} for name in ("a.png", "b.png")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {picture.path.name: picture.caption for picture in manifest(folder, "for all")}
    assert found == {"a.png": "beside", "b.png": "listed b.png", "c.png": "for all"}


def test_missing_caption_names_the_picture_and_the_way_out(tmp_path: Path) -> None:
    folder = pictures(tmp_path, {"a": "x"})
    (folder / "a.txt").unlink()
    with pytest.raises(BadDataset) as caught:
        manifest(folder)
    way = "write a.txt beside it, list it in metadata.jsonl, or set 'instance_prompt'"
    assert caught.value.message == f"{folder / 'a.png'}: no caption; {way}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl, line 1: not JSON"),
        ("[" * 100_000, "metadata.jsonl, line 1: not JSON"),
        ('{"file_name": "a.png"}', "metadata.jsonl, line 1: a line must look like"),
        ('{"file_name": "z.png", "text": "z"}', "metadata.jsonl, line 1: 'z.png' is not in the folder"),
    ],
)
def test_wrong_metadata_lines(tmp_path: Path, line: str, message: str) -> None:
    (pictures(tmp_path, {"a": "x"}) / "metadata.jsonl").write_text(line)
    with pytest.raises(BadDataset, match=message):
        manifest(tmp_path)


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no such folder"):
        manifest(tmp_path / "none")
    (tmp_path / ".hidden").mkdir()
    pictures(tmp_path / ".hidden", {"a": "x"})
    with pytest.raises(BadDataset, match="no pictures"):
        manifest(tmp_path)


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_an_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (pictures(tmp_path, {"a": "x"}) / "b.jpg").write_bytes(content)
    with pytest.raises(BadDataset, match=r"b\.jpg: cannot be read as a picture"):
        manifest(tmp_path, "x")


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = pictures(tmp_path, {"a": "x"}, (64, 64)) / "a.png"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadDataset, match=r"a\.png: cannot be read as a picture"):
        load(path)


def test_pictures_are_seen_as_people_see_them(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert load(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (4, 2))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the first pixel goes to the upper right
    turned.save(tmp_path / "turned.png", exif=exif)
    assert load(tmp_path / "turned.png").size == size_of(tmp_path / "turned.png") == (2, 4)
    assert load(tmp_path / "turned.png").getpixel((1, 0)) == (255, 255, 255)
    for name in ("deep.png", "deep.tiff"):
        for deep, shallow in ((0x8000, 128), (0x00C0, 1), (0xFFFF, 255)):
            Image.fromarray(np.full((2, 2), deep, dtype=np.uint16)).save(tmp_path / name)
            assert load(tmp_path / name).getpixel((0, 0)) == (shallow,) * 3
    for mode in ("L", "P", "CMYK", "1"):
        Image.new(mode, (2, 2)).save(tmp_path / "other.tiff")
        assert load(tmp_path / "other.tiff").mode == "RGB"


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_whose_white_is_not_known_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((2, 2), dtype=kind)).save(tmp_path / "a.tiff")
    for read in (size_of, load):
        with pytest.raises(BadDataset) as caught:
            read(tmp_path / "a.tiff")
        what = "holds floats or 32-bit numbers, which do not say what white is; save it with 8 or 16 bits"
        assert caught.value.message == f"{tmp_path / 'a.tiff'}: {what}"


def test_pixels_are_cut_along_the_long_side(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (8, 1, 3))  # 16 wide, 8 high
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    whole = torch.from_numpy(ramp).permute(2, 0, 1).float() / 127.5 - 1
    for place, left in ((0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)):
        assert Cut(8, 8, place).corner((16, 8)) == (left, 0)
        assert torch.equal(pixels(tmp_path / "ramp.png", Cut(8, 8, place)), whole[:, :, left : left + 8])
    mirrored = pixels(tmp_path / "ramp.png", Cut(8, 8, 0.25, flip=True))
    assert torch.equal(mirrored, whole[:, :, 2:10].flip(-1))
    left, _ = Cut(8, 8, 0.25, flip=True).corner((16, 8))
    assert torch.equal(mirrored, whole.flip(-1)[:, :, left : left + 8])
    assert pixels(tmp_path / "ramp.png", Cut(32, 32)).shape == (3, 32, 32)  # enlarged


def a_plan(count: int, **keys: object) -> Plan:
    return Plan([Picture(Path(f"{i}.png"), f"caption {i}", str(i), (32, 16)) for i in range(count)], **keys)  # type: ignore[arg-type]


def test_every_epoch_shows_every_picture_once_in_another_order() -> None:
    data = a_plan(7, batch_size=3, accumulate=2, seed=1)
    shown = [view.picture.digest for step in range(7) for views in data.views(step) for view in views]
    epochs = [shown[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == sorted(map(str, range(7))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert all(len(views) == 3 for step in range(7) for views in data.views(step))


def test_views_are_a_function_of_the_step_and_of_positions_not_of_batches() -> None:
    wide = a_plan(5, batch_size=4, seed=2, center_crop=False, random_flip=True)
    split = a_plan(5, batch_size=1, accumulate=4, seed=2, center_crop=False, random_flip=True)
    torch.manual_seed(0)
    later = wide.views(11)
    assert [view for views in split.views(11) for view in views] == later[0]
    assert wide.views(11) == later
    assert a_plan(5, batch_size=4, seed=3, center_crop=False, random_flip=True).views(11) != later


def test_random_crops_and_flips_take_all_their_values() -> None:
    data = a_plan(3, seed=0, center_crop=False, random_flip=True)
    seen = Counter((view.window, view.flip) for step in range(200) for view in data.views(step)[0])
    assert len(seen) == 10
    assert {view.window for step in range(9) for view in a_plan(3).views(step)[0]} == {2}


def test_class_pictures_follow_the_instance_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "me", "b": "me too"})
    for caption in pictures(tmp_path / "class", {"x": "", "y": "", "z": ""}).glob("*.txt"):
        caption.unlink()
    keys = {"class_data": str(tmp_path / "class"), "class_prompt": "a cat", "batch_size": 2}
    data = plan(config(tmp_path, **keys))
    (views,) = data.views(0)
    assert [view.prior for view in views] == [False, False, True, True]
    assert {view.picture.caption for view in views[2:]} == {"a cat"}
    batch = Cache(TinyBackend(), SQUARE).batch(views, 0, "train", 0, 0, prior_weight=0.5)
    assert batch.weights.tolist() == [0.5, 0.5, 0.25, 0.25]  # mean(instance) + 0.5 * mean(class)


def test_class_pictures_keep_captions_of_their_own(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "me"})
    pictures(tmp_path / "class", {"x": "a black cat"})
    for prompt in ("a cat", None):
        data = plan(config(tmp_path, class_data=str(tmp_path / "class"), class_prompt=prompt))
        assert [picture.caption for picture in data.priors] == ["a black cat"]
    (tmp_path / "class" / "x.txt").unlink()
    with pytest.raises(BadDataset, match="x.png: no caption; .* or set 'class_prompt'"):
        plan(config(tmp_path, class_data=str(tmp_path / "class")))


def test_empty_class_folder_is_refused(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "me"})
    (tmp_path / "class").mkdir()
    with pytest.raises(BadDataset, match="class: no pictures"):
        plan(config(tmp_path, class_data=str(tmp_path / "class"), class_prompt="a cat"))


def test_digest_tells_contents_captions_and_roles_apart(tmp_path: Path) -> None:
    folder = pictures(tmp_path, {"a": "x", "b": "y"})
    first = Plan(manifest(folder)).digest()
    assert Plan(manifest(folder)).digest() == first
    assert Plan(manifest(folder)[:1], manifest(folder)[1:]).digest() != first
    (folder / "b.txt").write_text("z")
    assert Plan(manifest(folder)).digest() != first


def test_tags_are_counted_as_written() -> None:
    assert tag_counts(["a cat, red", "a cat,blue ", ""]) == {"a cat": 2, "red": 1, "blue": 1}


def test_captions_stay_with_their_pictures_through_shuffling_and_caches(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {name: f"picture {name}" for name in "abcdefg"})
    data, backend = plan(config(tmp_path, batch_size=3)), TinyBackend(text_encoder=True)
    cache = Cache(backend, SQUARE)
    for step in range(12):
        (views,) = data.views(step)
        batch = cache.batch(views, 5, "train", step, 0, 1.0)
        for row, name in enumerate(batch.names):
            path = tmp_path / "data" / name
            noise = rng.normal((3, 8, 8), 5, "train latents", step, row)
            assert torch.equal(batch.latents[row], pixels(path, Cut(16, 16))[:, ::2, ::2] + 0.1 * noise)
            letters = backend.encode_text(path.with_suffix(".txt").read_text())["letters"]
            assert torch.equal(batch.cond["letters"][row : row + 1], letters)


def test_cached_equals_uncached_and_each_view_is_encoded_once(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x", "b": "y", "c": "x"}, (24, 16))
    data = plan(config(tmp_path, batch_size=2, random_flip=True))
    backend = TinyBackend()
    cached, uncached = Cache(backend, SQUARE), Cache(TinyBackend(), SQUARE, latents=Recent(0), texts=Recent(0))
    for step in range(60):
        ours, theirs = (cache.batch(data.views(step)[0], 1, "train", step, 0, 1.0) for cache in (cached, uncached))
        assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.cond["context"], theirs.cond["context"])
    assert backend.encoded.count("image") == 3 * 5 * 2 == len(cached.latents.kept)
    assert backend.encoded.count("x") == 1 and not uncached.latents.kept


def test_caches_are_keyed_by_content_never_by_place_or_step(tmp_path: Path) -> None:
    first, second = pictures(tmp_path / "p", {"a": "x"}), pictures(tmp_path / "q", {"other": "x"})
    backend = TinyBackend()
    cache = Cache(backend, SQUARE)
    ours, theirs = manifest(first)[0], manifest(second)[0]
    assert torch.equal(cache.moments(View(ours)).mean, cache.moments(View(theirs)).mean)
    assert len(backend.encoded) == 1  # the same bytes under another name
    assert not torch.equal(cache.moments(View(ours, flip=True)).mean, cache.moments(View(ours)).mean)
    assert len(backend.encoded) == 2
    backend.fingerprint = "another model"
    assert torch.equal(cache.moments(View(ours)).mean, cache.moments(View(theirs)).mean)
    assert len(backend.encoded) == 3 == len(cache.latents.kept)


def test_latents_that_are_not_finite_name_the_file(tmp_path: Path) -> None:
    class Broken(TinyBackend):
        def encode_image(self, pixels: torch.Tensor) -> Moments:
            return Moments(pixels * float("nan"), pixels)

    (picture,) = manifest(pictures(tmp_path, {"a": "x"}))
    with pytest.raises(BadValues, match=r"a\.png: its latents are not finite"):
        Cache(Broken(), SQUARE).moments(View(picture))


def test_time_ids_say_size_and_corner(tmp_path: Path) -> None:
    (picture,) = manifest(pictures(tmp_path, {"a": "x"}, (40, 20)))  # resized to 32 x 16
    views = [View(picture, 0), View(picture, 4), View(picture, 0, flip=True)]
    batch = Cache(TinyBackend(), SQUARE).batch(views, 0, "train", 0, 0, 1.0)
    assert batch.cond["time_ids"].tolist() == [[20, 40, 0, left, 16, 16] for left in (0, 16, 16)]


def test_draws_are_functions_of_their_place() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(rng.normal((3,), 1, "noise", 2, 3), rng.normal((3,), 1, "noise", 2, 3))
    places = [(1, "noise", 2, 3), (2, "noise", 2, 3), (1, "offset", 2, 3), (1, "noise", 3, 3), (1, "noise", 23)]
    assert len({tuple(rng.normal((3,), *place).tolist()) for place in places}) == 5
    assert torch.equal(torch.random.get_rng_state(), before)
