"""Aspect-ratio buckets: sizes, and plans whose batches hold one size."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from train_models import TinyBackend, config, pictures

from lorasmith.lora_core.errors import BadConfig, BadDataset
from lorasmith.lora_core.train.cache import Cache
from lorasmith.lora_core.train.data import Picture, Plan, View, plan
from lorasmith.lora_core.train.pictures import Cut, pixels
from lorasmith.lora_core.train.shapes import Shapes

RANDOM = np.random.default_rng(0)
SIZES = [tuple(map(int, size)) for size in RANDOM.integers(64, 4000, (300, 2))]
SIZES += [(8000, 70), (70, 8000), (64, 64), (30000, 64), (3000, 127)]  # far from any bucket
BUCKETS = Shapes(512, buckets=True)
SMALL = Shapes(32, buckets=True, step=8, low=16, high=64)


def test_buckets_are_those_of_kohya() -> None:
    """Worked by hand from the rule: for each width the largest height within the area, and both ways round."""
    landscape = [(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)]
    assert set(BUCKETS.sizes) == {(512, 512), *landscape, *((h, w) for w, h in landscape)}


LONG = replace(BUCKETS, high=8192, upscale=False)  # so long that one step of height is too much area


@pytest.mark.parametrize("shapes", [BUCKETS, replace(BUCKETS, upscale=False), LONG, Shapes(1024, True, step=32)])
def test_buckets_are_multiples_within_the_area(shapes: Shapes) -> None:
    for size in SIZES:
        width, height = shapes.of(size)
        assert width % shapes.step == height % shapes.step == 0
        assert width * height <= shapes.resolution**2 and max(width, height) <= shapes.high
        assert min(width, height) >= (shapes.low if shapes.upscale else shapes.step)
        assert shapes.of((height, width)) == (height, width)


def test_buckets_without_enlarging_lie_inside_the_picture() -> None:
    for size in SIZES:
        cut = Cut(*replace(BUCKETS, upscale=False).of(size))
        assert cut.width <= size[0] and cut.height <= size[1]
        assert all(ours <= theirs for ours, theirs in zip(cut.covering(size), size, strict=True))


def test_the_nearest_aspect_ratio_is_chosen() -> None:
    for size in SIZES:
        ratio, (width, height) = size[0] / size[1], BUCKETS.of(size)
        assert abs(width / height - ratio) <= min(abs(w / h - ratio) for w, h in BUCKETS.sizes)


def test_steps_and_pictures_that_are_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="'bucket_step' 64 is above 'resolution' 16; lower it"):
        plan(config(tmp_path, buckets=True))
    pictures(tmp_path / "data", {"a": "x"}, (12, 40))
    keys = {"buckets": True, "bucket_step": 16, "bucket_upscale": False}
    with pytest.raises(BadDataset) as caught:
        plan(config(tmp_path, **keys))
    what = "12 x 40 is smaller than 'bucket_step' 16; set 'bucket_upscale', or remove it"
    assert caught.value.message == f"{tmp_path / 'data' / 'a.png'}: {what}"
    assert len(plan(config(tmp_path, **keys | {"bucket_upscale": True})).pictures) == 1


def mixed(**keys: object) -> Plan:
    """Return a plan of 7 wide, 4 high, 1 very high and 5 square pictures."""
    sizes = [(48, 32)] * 7 + [(32, 48)] * 4 + [(10, 40)] + [(32, 32)] * 5
    found = [Picture(Path(f"{i}.png"), f"caption {i}", str(i), size) for i, size in enumerate(sizes)]
    return Plan(found, shapes=SMALL, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [{"batch_size": 4, "seed": 1}, {"batch_size": 3, "accumulate": 2, "seed": 2}])
def test_every_picture_is_shown_equally_often(keys: dict[str, int]) -> None:
    data, shown = mixed(**keys), Counter[str]()
    for step in range(17 * 6):
        for views in data.views(step):
            assert len(views) == keys["batch_size"] and len({view.size for view in views}) == 1
            assert all(view.size == SMALL.of(view.picture.size) for view in views)
            shown.update(view.picture.digest for view in views)
        spread = {data.pictures[int(one)].size: shown[one] for one in shown}.values()
        assert max(spread) - min(spread) <= keys["batch_size"] + 1  # a bucket of one picture shows it a batch at a time
    each = 6 * keys["batch_size"] * keys.get("accumulate", 1)
    assert shown == {picture.digest: each for picture in data.pictures}


def test_one_epoch_is_enough_where_buckets_divide_into_batches() -> None:
    found = [Picture(Path(f"{i}"), "", str(i), ((48, 32), (32, 48))[i % 2]) for i in range(12)]
    data = Plan(found, shapes=SMALL, batch_size=3)
    for epoch in range(5):
        shown = [view.picture.digest for view in data.drawn(range(epoch * 4, epoch * 4 + 4))]
        assert sorted(shown) == sorted(str(i) for i in range(12))


def test_repeated_pictures_are_shown_as_often() -> None:
    data = mixed(batch_size=2)
    data = replace(data, pictures=[replace(p, repeats=3 if i < 9 else 1) for i, p in enumerate(data.pictures)])
    epoch = 9 * 3 + 8
    shown = Counter(view.picture.digest for view in data.drawn(range(epoch)))
    assert shown == {picture.digest: 2 * picture.repeats for picture in data.pictures}


def test_views_are_a_function_of_the_step_alone() -> None:
    keys = {"batch_size": 3, "accumulate": 2, "seed": 4, "center_crop": False, "random_flip": True}
    walked = mixed(**keys)
    for step in range(40):
        assert walked.views(step) == mixed(**keys).views(step)
    assert walked.views(3) == mixed(**keys).views(3)
    assert mixed(**keys | {"seed": 5}).views(3) != walked.views(3)


def test_accumulated_batches_are_the_same_batches() -> None:
    keys = {"batch_size": 3, "seed": 4, "center_crop": False, "random_flip": True}
    apart, together = mixed(**keys), mixed(**keys, accumulate=4)
    for step in range(10):
        assert together.views(step) == [apart.views(step * 4 + micro)[0] for micro in range(4)]


def test_buckets_take_turns() -> None:
    data = mixed(seed=1)
    order = [data.views(step)[0][0].size for step in range(34)]
    assert order[:17] != order[17:] and Counter(order[:17]) == Counter(order[17:])
    assert all(len(set(order[start : start + 6])) > 1 for start in range(28))


def test_an_epoch_ends_when_all_have_been_shown() -> None:
    data = mixed(batch_size=4, seed=3)
    steps = data.epoch(5, 1000)
    assert steps.start == 5
    for end, complete in ((steps.stop, True), (steps.stop - 1, False)):
        shown = {view.picture.digest for view in data.drawn(range(5, end))}
        assert (len(shown) == 17) is complete
    assert data.epoch(5, 7) == range(5, 7)


def test_pictures_are_cut_to_their_bucket(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 192, 4, dtype=np.uint8)[None, :, None], (24, 1, 3))  # 48 wide, 24 high
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    whole = torch.from_numpy(ramp).permute(2, 0, 1).float() / 127.5 - 1
    cut = Cut(40, 24, 0.25)
    assert cut.covering((48, 24)) == (48, 24) and cut.corner((48, 24)) == (2, 0)
    assert torch.equal(pixels(tmp_path / "ramp.png", cut), whole[:, :, 2:42])
    assert replace(cut, flip=True).corner((48, 24)) == (6, 0)


def test_latents_and_sizes_are_those_of_the_bucket(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x"}, (48, 20))
    pictures(tmp_path / "class", {"p": "y", "q": "z"}, (16, 16))
    keys = {"buckets": True, "bucket_step": 8, "bucket_min": 8, "bucket_max": 64, "batch_size": 2, "resolution": 32}
    data = plan(config(tmp_path, class_data=str(tmp_path / "class"), **keys))
    (views,) = data.views(0)
    assert {view.size for view in views} == {(48, 16)} and [view.prior for view in views] == [False, False, True, True]
    batch = Cache(TinyBackend(), data.shapes).batch(views, 0, "train", 0, 0, 1.0)
    assert batch.latents.shape == (4, 3, 8, 24)
    sizes = [ids[:2] + ids[4:] for ids in batch.cond["time_ids"].tolist()]
    assert sizes == [[20, 48, 16, 48]] * 2 + [[16, 16, 16, 48]] * 2


def test_a_view_alone_has_its_pictures_bucket() -> None:
    """What validation does."""
    picture = Picture(Path("a"), "", "a", (48, 32))
    assert View(picture).cut(SMALL) == Cut(*SMALL.of((48, 32)))
    assert View(picture).cut(Shapes(16)) == Cut(16, 16)


def test_enlarged_pictures_are_told() -> None:
    sizes = [(16, 16), (100, 31), (64, 64)]
    found = [Picture(Path(f"{i}"), "", str(i), size) for i, size in enumerate(sizes)]
    assert [p.digest for p in Plan(found, shapes=SMALL).enlarged()] == ["0"]
    assert [p.digest for p in Plan(found, shapes=Shapes(32)).enlarged()] == ["0", "1"]
