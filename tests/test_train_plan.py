"""What a run needs is measured and told before it; the header of its result says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from train_models import TinyBackend, config, one_thread, pictures

from lorasmith.convert.training_header import base_hashes, metadata
from lorasmith.lora_core.train import budget
from lorasmith.lora_core.train.budget import Budget, Probe
from lorasmith.lora_core.train.planning import planned

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {name: f"picture {name}" for name in "abcde"}, (24, 16))
    return tmp_path


def test_a_plan_encodes_one_picture_and_writes_nothing(tmp: Path) -> None:
    backend = TinyBackend()
    found, settled = planned(config(tmp, epochs=2, batch_size=2, cache="disk"), backend)
    assert backend.encoded.count("image") == 1 and len(backend.encoded) == 2
    assert not (tmp / "run").exists()
    assert settled.steps == found.steps == 5 and settled.gradient_checkpointing == "off"
    assert found.probe.activations > 0 and found.fits


def test_activations_grow_with_the_batch_and_gradients_are_gone(tmp: Path) -> None:
    one, four = (planned(config(tmp, batch_size=size), TinyBackend())[0].probe.activations for size in (1, 4))
    assert 2 * one < four <= 4 * one


def test_the_cache_counts_each_view_once(tmp: Path) -> None:
    one = planned(config(tmp, center_crop=True), TinyBackend())[0].cache
    flipped = planned(config(tmp, center_crop=True, random_flip=True), TinyBackend())[0].cache
    latents = 2 * 3 * 8 * 8 * 4  # mean and deviation of a picture
    assert flipped - one == 2 * latents  # 7 draws, 5 pictures: two more views


def needs(**keys: Any) -> Budget:
    sizes = {"denoiser": 4 * budget.GIB, "encoders": budget.GIB, "adapter": budget.GIB, "memory": 10 * budget.GIB}
    plain = {"encoders_stay": False, "cache": 0, "file": 0, "steps": 10, "probe": Probe(8 * budget.GIB, 1.5)}
    return Budget(**{**sizes, **plain, **keys})  # type: ignore[arg-type]


def test_what_does_not_fit_is_told_with_the_switches_that_help() -> None:
    settings = {"gradient_checkpointing": "auto", "batch_size": 2, "quantize": "none", "swap_blocks": 0}
    assert budget.advice(needs(), settings) == [
        "'gradient_checkpointing': 'on' saves about 5.60 GiB and takes a third more time",
        "'batch_size': 1 with 'accumulate': 2 saves about 4.00 GiB",
        "'quantize': 'int8' or 'fp8' saves about 2.00 GiB of the frozen weights",
        "'swap_blocks' keeps up to 3.60 GiB of the weights on the CPU; slower",
    ]
    assert budget.advice(needs(memory=20 * budget.GIB), settings) == []
    assert any("does not fit" in line for line in budget.text(needs(), settings))
    assert not any("to make it fit" in line for line in budget.text(needs(memory=0), settings))


FACTS = {
    "lorasmith.config": json.dumps({"steps": 12, "batch_size": 2}),
    "lorasmith.step": "12",
    "lorasmith.tags": json.dumps({"cat": 2}),
    "lorasmith.folders": json.dumps({"10_cat": {"n_images": 2, "n_repeats": 10, "tags": {"cat": 2}}}),
}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"ss_network_module": "networks.lora", "ss_max_train_steps": "12", "ss_num_train_images": "20"}),
        ({"algorithm": "lokr", "factor": 4}, {"ss_network_module": "lycoris.kohya"}),
        ({"optimizer": "lion", "weight_decay": 0.1}, {"ss_optimizer": "lion(weight_decay=0.1)"}),
        ({"loss": "huber"}, {"ss_loss_type": "huber", "ss_huber_c": "0.1"}),
        ({"trigger_word": "sks"}, {"modelspec.trigger_phrase": "sks", "modelspec.prediction_type": "epsilon"}),
        ({"buckets": True}, {"ss_enable_bucket": "True", "ss_min_bucket_reso": "256"}),
    ],
)
def test_the_header_says_how_it_was_made(tmp: Path, keys: dict[str, Any], expected: dict[str, str]) -> None:
    found = metadata(config(tmp, **keys), "epsilon", FACTS)
    assert {key: found.get(key) for key in expected} == expected
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"cat": 2}}
    assert json.loads(found["ss_dataset_dirs"]) == {"10_cat": {"n_repeats": 10, "img_count": 2}}
    assert str(tmp) not in json.dumps(found)


def test_arguments_of_other_algorithms_are_lycoris_own(tmp: Path) -> None:
    found = metadata(config(tmp, algorithm="dora", rank_dropout=0.1), "flow", FACTS)
    assert json.loads(found["ss_network_args"]) == {"algo": "lora", "dora_wd": "True", "rank_dropout": "0.1"}
    assert "modelspec.prediction_type" not in found


def test_a_model_that_is_one_file_is_told_by_its_hashes(tmp: Path) -> None:
    file = tmp / "model.safetensors"
    file.write_bytes(bytes(0x100000) + b"x" * 0x20000)
    found = base_hashes(str(file))
    assert len(found["ss_sd_model_hash"]) == 8 and len(found["ss_new_sd_model_hash"]) == 64
    assert base_hashes("someone/sd15") == base_hashes(str(tmp)) == {}
