"""Optimizers by name: their formulas, arguments, rates, and stopping and resuming bit for bit, whichever it is."""

from __future__ import annotations

import importlib
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_models import TinyBackend, config, one_thread

from lorasmith.lora_core import store
from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train.cache import Batch
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.lion import Lion
from lorasmith.lora_core.train.loop import Step, train
from lorasmith.lora_core.train.objective import Objective
from lorasmith.lora_core.train.optimizers import find
from lorasmith.lora_core.train.prodigy import Prodigy
from lorasmith.lora_core.train.state import State

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def batches(step: int) -> list[Batch]:
    """Two micro-batches, so that gradients accumulate."""
    generator = torch.Generator().manual_seed(step)
    return [
        Batch(
            torch.randn(1, 3, 8, 8, generator=generator),
            {"letters": torch.rand(1, 256, generator=generator)},
            torch.ones(1),
            ["a.png"],
        )
        for _ in range(2)
    ]


def steps(run: TrainConfig, count: int, state: State | None = None) -> list[Step]:
    backend = TinyBackend(text_encoder=True)
    state = state or fresh(run)
    return list(islice(train(backend, batches, Objective(backend.schedule, run), run, state), count))


def fresh(run: TrainConfig) -> State:
    return State.fresh(TinyBackend(text_encoder=True).modules(), run)


def carried(state: State, run: TrainConfig, folder: Path) -> State:
    """Bring a state through its two files into a fresh one."""
    store.save(folder / "state.safetensors", state.tensors())
    facts = json.loads(json.dumps(state.facts()))
    again = fresh(run)
    again.restore(store.load(folder / "state.safetensors").tensors, facts)
    return again


def assert_resumes(run: TrainConfig, folder: Path, first: int = 3, rest: int = 3) -> None:
    """N steps and k + (N - k) steps end alike, bit for bit, in losses, adapter and everything that is saved."""
    whole = steps(run, first + rest)
    state = fresh(run)
    begun = steps(run, first, state)
    torch.manual_seed(7)
    resumed = carried(state, run, folder)
    continued = steps(run, rest, resumed)
    assert [step.loss for step in whole] == [step.loss for step in (*begun, *continued)]
    ours, theirs = whole[-1].state.tensors(), resumed.tensors()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name].nan_to_num(), theirs[name].nan_to_num())]
    assert not different
    assert whole[-1].state.facts() == resumed.facts()
    for target, layer in whole[-1].state.adapter().layers.items():
        pairs = zip(layer.tensors(), resumed.adapter().layers[target].tensors(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
    start = fresh(run).tensors()
    assert any(not torch.equal(start[name], theirs[name]) for name in start)  # something was learnt


BUILT_IN: list[dict[str, Any]] = [
    {"optimizer": "adamw"},
    {"optimizer": "AdamW", "optimizer_args": {"fused": False, "amsgrad": True, "betas": [0.8, 0.99]}},
    {"optimizer": "adafactor"},
    {"optimizer": "muon"},
    {"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_args": {"d0": 1e-3}},
    {"optimizer": "lion"},
    {"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}},
    {"optimizer": "torch.optim.RMSprop"},
]
INSTALLED: list[tuple[str, dict[str, Any]]] = [
    ("prodigyopt", {"optimizer": "prodigyopt.Prodigy", "learning_rate": 1.0, "text_encoder_learning_rate": 1.0}),
    ("schedulefree", {"optimizer": "schedulefree"}),
    ("lion_pytorch", {"optimizer": "lion_pytorch.Lion"}),
    ("bitsandbytes", {"optimizer": "adamw8bit", "optimizer_args": {"min_8bit_size": 1}}),
    ("bitsandbytes", {"optimizer": "pagedadamw8bit"}),
    ("bitsandbytes", {"optimizer": "lion8bit"}),
    ("torchao", {"optimizer": "torchao.optim.AdamW8bit", "optimizer_args": {"block_size": 16}}),
    ("torchao", {"optimizer": "torchao.optim.AdamWFp8"}),
    ("pytorch_optimizer", {"optimizer": "pytorch_optimizer.CAME"}),
    ("pytorch_optimizer", {"optimizer": "pytorch_optimizer.SOAP"}),
    ("pytorch_optimizer", {"optimizer": "pytorch_optimizer.AdEMAMix"}),
    ("came_pytorch", {"optimizer": "came"}),
    ("prodigyplus", {"optimizer": "prodigy-plus", "learning_rate": 1.0, "text_encoder_learning_rate": 1.0}),
]


@pytest.mark.parametrize("keys", BUILT_IN, ids=lambda keys: keys["optimizer"])
def test_every_optimizer_resumes_bit_for_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    if keys["optimizer"] in ("muon", "adafactor") and not hasattr(torch.optim, keys["optimizer"].capitalize()):
        pytest.skip("this torch has none")
    rates = {"learning_rate": 0.01, "text_encoder_learning_rate": 0.005}
    assert_resumes(config(tmp_path, text_encoder=True, rank=4, **{**rates, **keys}), tmp_path)


@pytest.mark.parametrize(("package", "keys"), INSTALLED, ids=[keys["optimizer"] for _, keys in INSTALLED])
def test_optimizers_of_packages_resume_bit_for_bit(tmp_path: Path, package: str, keys: dict[str, Any]) -> None:
    pytest.importorskip(package)
    assert_resumes(config(tmp_path, text_encoder=True, **{"learning_rate": 0.01, "rank": 8, **keys}), tmp_path)


@pytest.mark.parametrize("keys", [
    {"ema": 0.9}, {"algorithm": "dora"}, {"algorithm": "loha"}, {"algorithm": "lokr"}, {"init": "pissa"},
    {"dropout": 0.3, "rank_dropout": 0.2, "module_dropout": 0.3}, {"max_weight_norm": 0.05}, {"lora_plus_ratio": 16.0},
    {"algorithm": "dora", "dropout": 0.5, "ema": 0.5, "optimizer": "prodigy", "learning_rate": 1.0},
], ids=str)  # fmt: skip
def test_every_option_resumes_bit_for_bit(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert_resumes(config(tmp_path, text_encoder=True, **{"learning_rate": 0.01, **keys}), tmp_path)


def problem() -> tuple[nn.Parameter, Any]:
    """A linear least squares problem: parameter, and a function that leaves its gradient there."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).double() for shape in ((20, 6), (20,)))
    x = nn.Parameter(torch.randn(6, generator=generator).double())

    def gradient() -> None:
        x.grad = None
        (a @ x - b).square().mean().backward()

    return x, gradient


def walked(make: Any, count: int = 60) -> Tensor:
    x, gradient = problem()
    optimizer = make([x])
    for _ in range(count):
        gradient()
        optimizer.step()
    return x.detach()


@pytest.mark.parametrize("keys", [
    {}, {"weight_decay": 0.1}, {"use_bias_correction": True}, {"safeguard_warmup": True, "d_coef": 0.5}, {"d0": 1e-3},
], ids=str)  # fmt: skip
def test_prodigy_equals_prodigyopt(keys: dict[str, Any]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    ours = walked(lambda x: Prodigy(x, **keys))
    torch.testing.assert_close(ours, walked(lambda x: prodigyopt.Prodigy(x, **keys)), rtol=1e-4, atol=1e-5)
    assert (ours - problem()[0]).abs().max() > 0.1


def test_lion_equals_lion_pytorch() -> None:
    lion = pytest.importorskip("lion_pytorch")
    keys = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}
    torch.testing.assert_close(walked(lambda x: Lion(x, **keys)), walked(lambda x: lion.Lion(x, **keys)))


def test_lion_by_hand() -> None:
    x = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([x], lr=0.1, betas=(0.5, 0.5), weight_decay=1.0)
    for gradient in ([4.0, 4.0], [-6.0, 1.0]):  # second step: 0.5 * momentum (2, 2) + 0.5 * gradient = (-2, 1.5)
        x.grad = torch.tensor(gradient)
        optimizer.step()
    torch.testing.assert_close(x.data, torch.tensor([(1 * 0.9 - 0.1) * 0.9 + 0.1, (-2 * 0.9 - 0.1) * 0.9 - 0.1]))


def test_prodigy_with_two_rates_moves_each_by_its_own(tmp_path: Path) -> None:
    run = config(tmp_path, text_encoder=True, optimizer="prodigy", learning_rate=1.0, text_encoder_learning_rate=0.25)
    state = steps(run, 1)[-1].state
    moved = {target.component: one.parameters["up"].abs().max().item() for target, one in state.factors.items()}
    assert moved["denoiser"] == pytest.approx(4 * moved["clip_l"], rel=1e-3)


def test_lora_plus_gives_up_a_higher_rate(tmp_path: Path) -> None:
    rates = {"learning_rate": 0.01, "text_encoder_learning_rate": 0.001}
    run = config(tmp_path, text_encoder=True, lora_plus_ratio=16.0, **rates)
    state = fresh(run)
    found = {id(tensor): group["lr"] for group in state.optimizer.param_groups for tensor in group["params"]}
    for target, one in state.factors.items():
        base = 0.01 if target.component == "denoiser" else 0.001
        assert found[id(one.parameters["down"])] == base
        assert found[id(one.parameters["up"])] == pytest.approx(16 * base)


def test_muon_moves_convolutions_as_matrices(tmp_path: Path) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has none")
    state = fresh(config(tmp_path, optimizer="muon"))
    assert all(parameter.dim() == 2 for parameter in state.parameters())
    with pytest.raises(BadConfig, match="a DoRA's magnitude is none"):
        fresh(config(tmp_path, optimizer="muon", algorithm="dora"))


def test_weights_of_a_schedule_free_optimizer_are_saved_averaged_and_trained_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    run = config(tmp_path, optimizer="schedulefree", text_encoder=True)
    state = steps(run, 3)[-1].state
    before = [parameter.detach().clone() for parameter in state.parameters()]
    saved, raw = state.adapter().layers, state.adapter(ema=False).layers
    assert all(torch.equal(one, other) for one, other in zip(before, state.parameters(), strict=True))
    assert any(not torch.equal(saved[target].tensors()[1], raw[target].tensors()[1]) for target in saved)
    with pytest.raises(BadConfig, match="averages weights itself"):
        fresh(config(tmp_path, optimizer="schedulefree", ema=0.9))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"optimizer": "adamv"}, "unknown 'optimizer' 'adamv'; did you mean 'adamw'?"),
        ({"optimizer": "no_such_package.Adam"}, "needs the package no_such_package"),
        ({"optimizer": "no_such_package.Adam"}, "pip install no_such_package"),
        ({"optimizer": "json.JSONDecoder"}, "json has no optimizer 'JSONDecoder'"),
        ({"optimizer": "torch.optim.Nothing"}, "is not in torch"),
        ({"optimizer_args": {"beta": [0.9, 0.99]}}, "'adamw': it has no argument 'beta'; did you mean 'betas'?"),
        ({"optimizer_args": {"betas": [2, 3]}}, "refuses its arguments (Invalid beta parameter at index 0: 2"),
        ({"optimizer": "prodigy"}, "'learning_rate' is 0.01; Prodigy"),
        ({"optimizer": "torch.optim.Rprop", "weight_decay": 0.3}, "'weight_decay' means nothing to"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, keys: dict[str, Any], line: str) -> None:
    if keys == {"optimizer": "prodigy"}:
        keys = {**keys, "learning_rate": 0.0099}
        line = line.replace("0.01", "0.0099")
    with pytest.raises(BadConfig) as caught:
        fresh(config(tmp_path, **keys))
    assert line in caught.value.message and "\n" not in caught.value.message


def test_a_package_that_is_missing_is_named_with_what_pip_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BadConfig, match="pip install prodigy-plus-schedule-free"):
        find("prodigy-plus")


def test_a_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    one = steps(config(tmp_path), 1)[-1].state
    other = fresh(config(tmp_path, lora_plus_ratio=4.0))
    with pytest.raises(ValueError, match="1 groups of parameters for 2"):
        other.restore(one.tensors(), one.facts())
