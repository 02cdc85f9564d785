"""Captions as draws get them: trigger word, dropout, shuffled and dropped tags."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from train_models import TinyBackend, config, pictures

from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train.cache import Cache, open_cache
from lorasmith.lora_core.train.cache_store import Recent
from lorasmith.lora_core.train.captions import Captions
from lorasmith.lora_core.train.data import View, plan, unseen

TAGS = "one, two, three, four, five"


def test_trigger_words_are_put_where_they_are_missing() -> None:
    rule = Captions(trigger="sks")
    assert rule.whole("a cat") == "sks, a cat" and rule.whole("") == "sks"
    assert rule.whole("a photo of sks cat") == "a photo of sks cat"
    assert rule.whole("two masks") == "sks, two masks"  # part of another word
    assert Captions(trigger="s.s", separator=" ").whole("sks") == "s.s sks"
    assert Captions().whole("a cat") == "a cat"


def test_without_options_captions_are_as_written() -> None:
    assert Captions().draw(["a ,b"], 1, 2) == "a ,b" and Captions().finite


def test_draws_are_functions_of_their_place() -> None:
    rule = Captions(dropout=0.2, shuffle=True, tag_dropout=0.3)
    drawn = [rule.draw([TAGS], 1, "x", place) for place in range(50)]
    assert drawn == [rule.draw([TAGS], 1, "x", place) for place in range(50)]
    assert len(set(drawn)) > 20 and drawn != [rule.draw([TAGS], 2, "x", place) for place in range(50)]


def test_shuffling_keeps_the_tags_and_the_first_of_them() -> None:
    rule = Captions(shuffle=True, keep=2)
    drawn = [rule.draw([TAGS], 1, place).split(", ") for place in range(100)]
    assert all(sorted(tags) == sorted(TAGS.split(", ")) and tags[:2] == ["one", "two"] for tags in drawn)
    assert len({tuple(tags) for tags in drawn}) == 6
    assert not rule.finite


def test_tags_are_dropped_at_their_rate_but_for_the_kept_and_the_trigger() -> None:
    rule = Captions(trigger="sks", keep=1, tag_dropout=0.25)
    drawn = [rule.draw([TAGS], 1, place).split(", ") for place in range(2000)]
    counts = Counter(tag for tags in drawn for tag in tags)
    assert counts["sks"] == counts["one"] == 2000
    assert all(abs(counts[tag] / 2000 - 0.75) < 0.04 for tag in ("two", "three", "four", "five"))
    assert all(tags == [tag for tag in ["sks", *TAGS.split(", ")] if tag in tags] for tags in drawn)  # in order
    assert Captions(tag_dropout=1.0).draw([TAGS], 1, 1) == ""


def test_dropout_empties_a_share_of_the_draws() -> None:
    rule = Captions(trigger="sks", dropout=0.1)
    counts = Counter(rule.draw(["a cat"], 1, place) for place in range(3000))
    assert set(counts) == {"", "sks, a cat"} and abs(counts[""] / 3000 - 0.1) < 0.02
    assert Captions(dropout=1.0).draw(["a cat"], 1, 1) == "" and rule.finite


def test_several_captions_take_turns_by_chance() -> None:
    counts = Counter(Captions().draw(["a", "b", "c"], 1, place) for place in range(600))
    assert set(counts) == set("abc") and min(counts.values()) > 150


def test_other_separators() -> None:
    rule = Captions(shuffle=True, separator=";")
    assert {rule.draw(["a; b"], 1, place) for place in range(20)} == {"a; b", "b; a"}
    with pytest.raises(BadConfig, match="'caption_separator' is empty"):
        Captions(separator="")


def test_every_text_is_known_beforehand_where_there_are_few(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x", "b": "y", "c": "x"})
    pictures(tmp_path / "class", {"p": "cat"})
    keys = {"class_data": str(tmp_path / "class"), "caption_dropout": 0.3, "trigger_word": "sks", "random_flip": True}
    settings = config(tmp_path, **keys)
    data, backend = plan(settings), TinyBackend()
    cache = open_cache(settings, backend)
    assert cache.texts_are_finite and set(data.texts()) == {"sks, x", "sks, y", "", "cat"}
    assert {view.caption for view in data.drawn(range(100))} == set(data.texts())
    assert {view.caption for view in data.drawn(range(100)) if view.prior} == {"cat"}  # class captions are left alone
    cache.fill(data.drawn(range(100)))
    encoded = len(backend.encoded)
    for step in range(100):
        cache.batch(data.views(step)[0], 5, "train", step, 0, 1.0)
    assert len(backend.encoded) == encoded
    assert sorted(set(backend.encoded) - {"image"}) == sorted(data.texts())


def test_texts_without_end_are_encoded_when_drawn_and_forgotten(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": TAGS, "b": TAGS})
    settings = config(tmp_path, shuffle_captions=True)
    data, backend = plan(settings), TinyBackend()
    cache = open_cache(settings, backend)
    assert not cache.texts_are_finite
    cache.fill(data.drawn(data.epoch(0, 7)))
    assert set(backend.encoded) == {"image"}
    small = Cache(backend, data.shapes, texts_are_finite=False, texts=Recent(3 * 32))  # room for three texts
    for step in range(40):
        (view,) = data.views(step)[0]
        batch = small.batch([view], 5, "train", step, 0, 1.0)
        assert torch.equal(batch.cond["context"], TinyBackend().encode_text(view.caption)["context"])
        assert len(small.texts.kept) <= 3  # type: ignore[attr-defined]
    small.cond(view.caption)
    count = len(backend.encoded)
    small.cond(view.caption)
    assert len(backend.encoded) == count


def test_captions_belong_to_positions_not_to_batches(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {name: f"{name}, {TAGS}" for name in "abcde"})
    keys = {"shuffle_captions": True, "tag_dropout": 0.2, "caption_dropout": 0.2, "trigger_word": "sks"}
    whole = plan(config(tmp_path, batch_size=4, **keys))
    split = plan(config(tmp_path, accumulate=4, **keys))
    for step in range(10):
        assert [view for views in split.views(step) for view in views] == whole.views(step)[0]
        for view in whole.views(step)[0]:
            own = {"", "sks", view.picture.path.stem, *TAGS.split(", ")}
            assert set(view.caption.split(", ")) <= own


def test_unseen_pictures_are_told_whole(tmp_path: Path) -> None:
    pictures(tmp_path / "unseen", {"a": TAGS, "b": "sks"})
    keys = {"shuffle_captions": True, "caption_dropout": 1.0, "trigger_word": "sks"}
    found = unseen(config(tmp_path, validation_data=str(tmp_path / "unseen"), **keys))
    assert [View(picture).caption for picture in found] == [f"sks, {TAGS}", "sks"]
    assert unseen(config(tmp_path)) == []


def test_tags_are_counted_with_the_trigger_word(tmp_path: Path) -> None:
    pictures(tmp_path / "data", {"a": "x", "b": "sks, y"})
    assert plan(config(tmp_path, trigger_word="sks")).spoken() == ["sks, x", "sks, y"]
