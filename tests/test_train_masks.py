"""Masks: found, cut like their pictures, averaged to the latents' size, kept with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_models import TinyBackend, config, pictures

from lorasmith.lora_core.errors import BadDataset
from lorasmith.lora_core.train.cache import Cache, open_cache
from lorasmith.lora_core.train.data import View, plan, unseen
from lorasmith.lora_core.train.masks import Mask, averaged
from lorasmith.lora_core.train.pictures import Cut, load


def painted(path: Path, shades: np.ndarray) -> Path:
    """Write a grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(shades.astype(np.uint8)).save(path)
    return path


SHADES = np.random.default_rng(0).integers(0, 256, (32, 64))


@pytest.mark.parametrize("cut", [Cut(32, 32, place, flip) for place in (0.0, 0.25, 1.0) for flip in (False, True)])
def test_masks_are_cut_exactly_like_their_pictures(tmp_path: Path, cut: Cut) -> None:
    path = painted(tmp_path / "a.png", SHADES)
    shown = np.asarray(cut.of(load(path), (64, 32)))[:, :, 0]
    assert torch.equal(Mask(path, "x").cover(cut, (64, 32)), torch.from_numpy(shown.copy()).float() / 255)
    colours = np.dstack([np.zeros((32, 64, 3)), SHADES]).astype(np.uint8)
    Image.fromarray(colours, "RGBA").save(tmp_path / "alpha.png")
    assert torch.equal(Mask(tmp_path / "alpha.png", "alpha").cover(cut, (64, 32)), Mask(path, "x").cover(cut, (64, 32)))


@pytest.mark.parametrize("flip", [False, True])
def test_masks_of_another_resolution_show_the_same_place(tmp_path: Path, flip: bool) -> None:
    half = np.zeros((64, 128))
    half[:, 64:] = 255
    large, small = painted(tmp_path / "l.png", half), painted(tmp_path / "s.png", half[::4, ::4])
    for size in ((64, 128), (16, 32)):
        cut = Cut(32, 32, 0.25, flip)  # of 64 x 32 it shows 8 to 40: 24 dark columns, 8 bright ones
        for path in (large, small):
            columns = Mask(path, "x").cover(cut, size[::-1]).mean(0)
            columns = columns.flip(0) if flip else columns
            assert columns[:20].max() < 0.02 and columns[28:].min() > 0.98


def test_masks_reach_the_latents_size_by_area() -> None:
    mask = torch.zeros(8, 8)
    mask[:4, :2] = 1
    assert averaged(mask, (2, 2)).tolist() == [[0.5, 0], [0, 0]]
    drawn = torch.rand(24, 16)
    expected = drawn.reshape(3, 8, 2, 8).mean((1, 3))
    assert torch.allclose(averaged(drawn, (3, 2)), expected)


def test_masks_follow_each_view_into_its_batch(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x", "b": "y"}, (32, 16))
    for name, side in (("a", slice(0, 16)), ("b", slice(16, 32))):
        half = np.zeros((16, 32))
        half[:, side] = 255
        painted(tmp_path / "masks" / f"{name}.jpg", half)
    settings = config(tmp_path, masks=str(tmp_path / "masks"), unmasked_weight=0.25, random_flip=True, batch_size=2)
    data = plan(settings)
    cache = open_cache(settings, TinyBackend())
    for step in range(30):
        (views,) = data.views(step)
        batch = cache.batch(views, 1, "train", step, 0, 1.0)
        assert batch.mask is not None and batch.mask.shape == (2, 1, 8, 8) and batch.mask.dtype == torch.float32
        for row, view in enumerate(views):
            cut = view.cut(data.shapes)
            left = round(16 * cut.place)
            bright = np.zeros(32)
            bright[:16] = view.picture.path.stem == "a"
            bright[16:] = view.picture.path.stem == "b"
            seen = bright[left : left + 16].reshape(8, 2).mean(1)
            seen = seen[::-1] if cut.flip else seen
            assert torch.allclose(batch.mask[row, 0], torch.from_numpy(0.25 + 0.75 * seen.copy()).float(), atol=0.02)


def test_pictures_without_alpha_and_class_pictures_count_as_a_whole(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x"})
    keys = {"class_data": str(pictures(tmp_path / "class", {"p": "y"})), "masks": "alpha"}
    settings = config(tmp_path, **keys)
    batch = open_cache(settings, TinyBackend()).batch(plan(settings).views(0)[0], 1, "train", 0, 0, 1.0)
    assert torch.equal(batch.mask, torch.ones(2, 1, 8, 8))
    without = Cache(TinyBackend(), plan(settings).shapes).batch(plan(settings).views(0)[0], 1, "train", 0, 0, 1.0)
    assert without.mask is None


def test_masks_are_found_by_folder_before_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        pictures(tmp_path / "data" / folder, {"a": "x"})
    painted(tmp_path / "masks" / "a.png", np.full((16, 16), 255))
    painted(tmp_path / "masks" / "two" / "a.png", np.full((16, 16), 128))
    found = [picture.mask for picture in plan(config(tmp_path, masks=str(tmp_path / "masks"))).pictures]
    assert [mask.source.parent.name for mask in found if mask] == ["masks", "two"]  # type: ignore[union-attr]


def test_missing_black_and_misshapen_masks_are_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", {"a": "x"})
    keys = {"masks": str(tmp_path / "masks"), "skip_broken": True}
    with pytest.raises(BadDataset, match="masks: no such folder; give a folder of masks, or 'alpha'"):
        plan(config(tmp_path, **keys))
    (tmp_path / "masks").mkdir()
    with pytest.raises(BadDataset) as caught:
        plan(config(tmp_path, **keys))
    wanted = tmp_path / "masks" / "a"
    what = f"no mask; put one as {wanted}.png, all white where everything counts"
    assert caught.value.message == f"{folder / 'a.png'}: {what}"
    wide = "a.png: the mask is 32 x 16, but its picture is 16 x 16; give it the picture's proportions"
    for shades, message in (
        (np.zeros((16, 16)), "a.png: the mask is black all over; paint white what counts, or remove it"),
        (np.ones((16, 32)), wide),
    ):
        painted(tmp_path / "masks" / "a.png", shades)
        settings = config(tmp_path, **keys)
        data, cache = plan(settings), open_cache(settings, TinyBackend())
        with pytest.raises(BadDataset) as caught:
            cache.fill(data.drawn([0]))
        assert caught.value.message == f"{tmp_path / 'masks'}/{message}"


def test_another_mask_is_another_plan_and_another_entry(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x"})
    settings = config(tmp_path, masks=str(tmp_path / "masks"))
    cache, found = open_cache(settings, TinyBackend()), []
    for shade in (255, 128):
        painted(tmp_path / "masks" / "a.png", np.full((16, 16), shade))
        data = plan(settings)
        found.append((data.digest(), float(cache.mask(data.views(0)[0][0], torch.Size((8, 8))).mean())))
    assert found[0][0] != found[1][0] and [round(mean, 2) for _, mean in found] == [1.0, 0.5]


def test_unseen_pictures_may_go_without(tmp_path: Path) -> None:
    pictures(tmp_path / "unseen", {"u": "x"})
    painted(tmp_path / "masks" / "a.png", np.ones((16, 16)))
    settings = config(tmp_path, masks=str(tmp_path / "masks"), validation_data=str(tmp_path / "unseen"))
    (picture,) = unseen(settings)
    batch = open_cache(settings, TinyBackend()).batch([View(picture)], 1, "validation", 0, 0, 1.0)
    assert torch.equal(batch.mask, torch.ones(1, 1, 8, 8))
