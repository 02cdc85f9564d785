"""The training configuration: the contract's keys, and one clear line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorasmith.lora_core.errors import BadConfig, FileProblem
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.schedule import rate_factor

CONTRACT = json.loads("""
{"model": "m", "data": "d", "out": "o", "name": "my-lora",
 "steps": 1000, "batch_size": 1, "accumulate": 1, "learning_rate": 1e-4,
 "scheduler": "cosine", "warmup": 0, "max_grad_norm": 1.0,
 "optimizer": "adamw", "rank": 16, "alpha": 16, "targets": "attention", "text_encoder": false,
 "resolution": 512, "center_crop": false,
 "random_flip": false, "instance_prompt": null, "class_data": null, "class_prompt": null, "prior_weight": 1.0,
 "seed": 1337, "precision": "auto", "device": "auto", "checkpoint_every": 500, "keep": 3,
 "validation_prompt": null, "sample_every": 0, "validation_data": null, "format": "kohya", "report_to": []}
""")  # fmt: skip
BASE = {"model": "m", "data": "d", "out": "o"}


def test_contract_keys_are_known_and_their_defaults_hold() -> None:
    given, least = TrainConfig.from_json(CONTRACT), TrainConfig.from_json({**BASE, "name": "my-lora"})
    assert given == least
    assert {key: given.to_json()[key] for key in CONTRACT} == CONTRACT


def test_json_round_trip(tmp_path: Path) -> None:
    config = TrainConfig.from_json({**BASE, "min_snr_gamma": 5, "alpha": 8, "rank": 4})
    (tmp_path / "c.json").write_text(json.dumps(config.to_json()))
    assert TrainConfig.from_json(tmp_path / "c.json") == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, "config: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ({"stepz": 1}, "config: unknown key 'stepz'; did you mean 'steps'?"),
        ({"steps": "10"}, "config: 'steps' is '10'; it must be a whole number"),
        ({"steps": True}, "config: 'steps' is True; it must be a whole number"),
        ({"steps": 0}, "config: 'steps' is 0; it must be at least 1"),
        ({"learning_rate": 0}, "config: 'learning_rate' is 0.0; it must be above 0"),
        ({"learning_rate": float("nan")}, "config: 'learning_rate' is nan; it must be a number"),
        ({"text_encoder": 1}, "config: 'text_encoder' is 1; it must be true or false"),
        (
            {"scheduler": "cosin"},
            "config: 'scheduler' is 'cosin'; choose one of "
            "cosine, constant, linear, cosine_with_restarts, polynomial, rex",
        ),
        ({"resolution": 500}, "config: 'resolution' is 500; it must be a multiple of 8"),
        ({"name": "a/b"}, "config: 'name' is 'a/b'; it must be a file name without folders"),
        ({"sample_every": 5}, "config: 'sample_every' needs 'validation_prompt', the previews' prompt"),
        (
            {"report_to": ["mlflow"]},
            "config: 'report_to' is 'mlflow'; choose one of tensorboard, wandb",
        ),
        ({"targets": 3}, "config: 'targets' is 3; choose one of attention, attention+ff, linear, all"),
        ({"ranks": {"attn": 0}}, "config: 'ranks.attn' is 0; it must be at least 1"),
        ({"ranks": 4}, "config: 'ranks' is 4; it must be a table, such as {}"),
        ({"dropout": 1}, "config: 'dropout' is 1.0; it must be at most 0.99"),
        ({"shift": "high"}, "config: 'shift' is 'high'; it must be a number"),
        (
            {"class_pictures": 5, "class_data": "c"},
            "config: 'class_pictures' needs 'class_prompt', what they are generated from",
        ),
        (
            {"min_timestep": 0.5, "max_timestep": 0.5},
            "config: 'min_timestep' 0.5 is not below 'max_timestep' 0.5; nothing could be drawn",
        ),
        ({"model": None}, "config: 'model' is missing; add 'model': PATH"),
        (
            {"rank": 10**400},
            "config: 'rank' has too many digits; it must be a whole number below 1.84e+19",
        ),
        (
            {"learning_rate": -(10**5000)},
            "config: 'learning_rate' has too many digits; it must be a number below 1.84e+19",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig) as caught:
        TrainConfig.from_json({**BASE, **keys})
    assert caught.value.message == message


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="cannot be read"):
        TrainConfig.from_json(tmp_path / "none.json")
    for text in ("{", "[" * 100_000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(BadConfig, match=r"bad\.json: not JSON"):
            TrainConfig.from_json(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BadConfig, match="one JSON object"):
        TrainConfig.from_json(tmp_path / "list.json")


def test_public_configuration_names_no_folder() -> None:
    config = TrainConfig.from_json({"model": "/home/me/sd.safetensors", "data": "/home/me/cats", "out": "/home/me/run"})
    assert "/home" not in json.dumps(config.to_public_json())
    assert TrainConfig.from_json({**BASE, "model": "someone/sd15"}).to_public_json()["model"] == "someone/sd15"


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_rates_equal_diffusers(scheduler: str, warmup: int) -> None:
    optimization = pytest.importorskip("diffusers.optimization")
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    reference = optimization.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12)
    for step in range(12):
        assert 2.0 * rate_factor(scheduler, step, 12, warmup) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        reference.step()
