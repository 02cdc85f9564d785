"""Going on from an adapter of any format: the same effect, ranks filled up, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_models import TinyBackend, one_thread

from lorasmith.convert import read, write
from lorasmith.convert.keymap import keymap, names
from lorasmith.convert.regroup import in_layout
from lorasmith.convert.training import halves_turned, refuse_unsayable, starting
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, WrongArchitecture
from lorasmith.lora_core.layers import DoRA, Layer, LoHa, LoKr, LoRA
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.inject import attached
from lorasmith.lora_core.train.state import State

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def existing(**keys: Any) -> Adapter:
    """An adapter with effect, of the tiny model's three layers."""
    state = State.fresh(TinyBackend().modules(), TrainConfig("m", "d", "o", **{"rank": 2, "alpha": 3.0, **keys}))
    generator = torch.Generator().manual_seed(5)
    for parameter in state.parameters():
        parameter.data = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
    return state.adapter("sd15")


def effect(layer: Layer, target: Target) -> Tensor:
    return layer.apply(TinyBackend().modules()[target].weight.data)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [
    {"algorithm": "lora"}, {"algorithm": "dora"}, {"algorithm": "loha"}, {"algorithm": "lokr"},
    {"algorithm": "lokr", "rank": 8},
], ids=str)  # fmt: skip
def test_an_adapter_goes_on_with_the_same_effect(keys: dict[str, Any]) -> None:
    given = existing(**keys)
    run = TrainConfig("m", "d", "o", **{"rank": 2, "alpha": 16.0, "seed": 3, **keys})
    state = State.fresh(TinyBackend().modules(), run, start=given)
    for target, layer in state.adapter().layers.items():
        torch.testing.assert_close(effect(layer, target), effect(given.layers[target], target), rtol=1e-6, atol=1e-6)


def test_the_same_alpha_and_rank_are_an_exact_copy() -> None:
    given = existing()
    state = State.fresh(TinyBackend().modules(), TrainConfig("m", "d", "o", rank=2, alpha=3.0), start=given)
    for target, layer in state.adapter().layers.items():
        pairs = zip(layer.tensors(), given.layers[target].tensors(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_smaller_rank_is_filled_up_and_all_of_it_learns() -> None:
    given, backend = existing(), TinyBackend()
    state = State.fresh(backend.modules(), TrainConfig("m", "d", "o", rank=5), start=given)
    for target, layer in state.adapter().layers.items():
        assert isinstance(layer, LoRA) and layer.rank == 5 and layer.up.flatten(1)[:, 2:].abs().max() == 0
        torch.testing.assert_close(effect(layer, target), effect(given.layers[target], target), rtol=1e-6, atol=1e-6)
    with attached(backend.modules(), state.factors):
        seen = {"letters": torch.rand(2, 256)}
        backend(torch.randn(2, 3, 8, 8), torch.tensor([3, 9]), seen).square().sum().backward()
    ups = [trained.parameters["up"].grad for trained in state.factors.values()]
    assert all(up is not None and (up.abs().amax(0) > 0).all() for up in ups)


def test_a_tucker_core_is_multiplied_out() -> None:
    generator = torch.Generator().manual_seed(0)
    down, up, mid = (torch.randn(s, generator=generator) for s in ((2, 3, 1, 1), (8, 2, 1, 1), (2, 2, 3, 3)))
    target = Target("denoiser", "conv")
    given = Adapter("sd15", {target: LoRA(down, up, 1.0, mid)})
    state = State.fresh(TinyBackend().modules(), TrainConfig("m", "d", "o", rank=2), start=given)
    layers = state.adapter().layers
    torch.testing.assert_close(effect(layers[target], target), effect(given.layers[target], target))
    assert len(layers) == 3  # layers that the adapter lacks start fresh


ELSEWHERE = Adapter("sd15", {Target("clip_l", "text"): LoRA(torch.ones(1, 256), torch.ones(8, 1), 1.0)})
MISFIT = Adapter("sd15", {Target("denoiser", "mix"): LoRA(torch.ones(1, 9), torch.ones(8, 1), 1.0)})


@pytest.mark.parametrize(
    ("given", "keys", "line"),
    [
        (existing(), {"rank": 1}, "is of rank 2, above this run's 1; set 'rank' to 2, or make it smaller"),
        (existing(algorithm="loha"), {}, "is a LoHa, and this run trains a LoRA; set 'algorithm' to 'loha'"),
        (existing(), {"algorithm": "dora"}, "is a LoRA, and this run trains a DoRA; set 'algorithm' to 'lora'"),
        (existing(algorithm="loha"), {"algorithm": "loha", "rank": 3}, "has factors of shape"),
        (
            existing(algorithm="lokr", rank=8),
            {"algorithm": "lokr", "rank": 1},
            "denoiser.conv: its second factor is whole, and this run's is of low rank",
        ),
        (existing(), {"init": "pissa"}, "'init' 'pissa' starts anew"),
        (ELSEWHERE, {}, "has 1 layers that this run does not train, such as clip_l.text; choose wider 'targets'"),
        (MISFIT, {}, "denoiser.mix: has factors of shape (8, 9), and this run's are (8, 8)"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(given: Adapter, keys: dict[str, Any], line: str) -> None:
    run = TrainConfig("m", "d", "o", **{"rank": 2, **keys})
    with pytest.raises(BadConfig) as caught:
        State.fresh(TinyBackend().modules(), run, start=given)
    assert line in caught.value.message and "\n" not in caught.value.message


def test_the_kinds_of_layers_that_come_out() -> None:
    kinds = {"lora": LoRA, "dora": DoRA, "loha": LoHa, "lokr": LoKr}
    for algorithm, kind in kinds.items():
        assert all(isinstance(layer, kind) for layer in existing(algorithm=algorithm).layers.values())


SD15 = ("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1")


@pytest.mark.parametrize(
    ("algorithm", "format"),
    [("lora", "kohya"), ("dora", "kohya"), ("loha", "kohya"), ("lokr", "kohya"), ("lora", "peft"), ("dora", "peft")],
)
def test_what_is_trained_is_written_read_and_gone_on_with(tmp_path: Path, algorithm: str, format: str) -> None:
    known = names("sd15", "denoiser", "diffusers")
    layers: dict[str, nn.Module] = {SD15[0]: nn.Linear(320, 320), SD15[1]: nn.Conv2d(320, 320, 3, padding=1)}
    if format == "peft" and algorithm != "lora":
        layers.pop(SD15[1])
    modules = {known[name]: module for name, module in layers.items()}
    run = TrainConfig("m", "d", "o", rank=4, alpha=2.0, algorithm=algorithm)
    state = State.fresh(modules, run)
    for parameter in state.parameters():
        parameter.data = parameter.data + 0.01 * torch.randn(parameter.shape)
    trained = state.adapter("sd15")
    path = write(trained, tmp_path / "one.safetensors", format)
    state = State.fresh(modules, run, start=starting(str(path), "sd15", modules))
    for target, layer in state.adapter().layers.items():
        assert type(layer) is type(trained.layers[target])
        weight = modules[target].weight.data
        expected = trained.layers[target].apply(weight)  # type: ignore[arg-type]
        torch.testing.assert_close(layer.apply(weight), expected, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


def test_fused_weights_are_read_in_the_pieces_that_the_run_trains(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = Target("denoiser", "double_blocks.0.img_attn.qkv")
    down, up = torch.randn(2, 3072, generator=generator), torch.randn(9216, 2, generator=generator)
    path = write(Adapter("flux", {whole: LoRA(down, up, 2.0)}), tmp_path / "flux.safetensors", "kohya")
    pieces = [Target("denoiser", whole.module, block) for block in range(3)]
    found = starting(str(path), "flux", pieces)
    assert set(found.layers) == set(pieces)
    torch.testing.assert_close(torch.cat([found.layers[piece].delta() for piece in pieces]), up @ down)  # type: ignore[union-attr]
    again = starting(str(path), "flux", [whole])
    assert set(again.layers) == {whole}
    apart = Adapter("flux", in_layout(read(path).layers, keymap("flux"), "diffusers"))
    path = write(apart, tmp_path / "apart.safetensors", "peft")
    assert set(starting(str(path), "flux", [whole]).layers) == {whole}


def test_an_adapter_of_another_family_is_refused(tmp_path: Path) -> None:
    target = Target("denoiser", "double_blocks.0.img_attn.qkv")
    layer = LoRA(torch.ones(1, 3072), torch.ones(9216, 1), 1.0)
    path = write(Adapter("flux", {target: layer}), tmp_path / "flux.safetensors", "kohya")
    with pytest.raises(WrongArchitecture, match="was made for flux, and the model is sd15; choose an adapter"):
        starting(str(path), "sd15", [])


def test_a_format_that_cannot_hold_the_algorithm_is_refused_before_training() -> None:
    fused: dict[Target, nn.Module] = {
        Target("denoiser", "double_blocks.0.img_attn.qkv", block): nn.Linear(3072, 3072) for block in range(3)
    }
    run = TrainConfig("m", "d", "o", rank=2, algorithm="lokr", format="kohya")
    with pytest.raises(BadConfig, match="'format' 'kohya' cannot hold what 'algorithm' 'lokr' trains here; choose one"):
        refuse_unsayable(run, "flux", fused)
    for algorithm, format in (("lora", "kohya"), ("dora", "peft"), ("loha", "kohya"), ("lokr", "onetrainer")):
        refuse_unsayable(TrainConfig("m", "d", "o", rank=2, algorithm=algorithm, format=format), "flux", fused)


def test_halves_that_diffusers_has_the_other_way_round_are_put_right(tmp_path: Path) -> None:
    target = Target("denoiser", "final_layer.adaLN_modulation.1")
    assert names("flux", "denoiser", "diffusers")["norm_out.linear"] == target
    down, up = torch.randn(1, 3072), torch.arange(6144.0)[:, None]
    path = write(Adapter("flux", {target: LoRA(down, up, 1.0)}), tmp_path / "flux.safetensors", "kohya")
    found = starting(str(path), "flux", [target])
    layer = found.layers[target]
    assert isinstance(layer, LoRA) and torch.equal(layer.up[:3072], up[3072:])
    again = halves_turned(found, "flux").layers[target]
    assert isinstance(again, LoRA) and torch.equal(again.up, up)
    run = TrainConfig("m", "d", "o", rank=2, algorithm="lokr")
    refuse_unsayable(run, "flux", {target: nn.Linear(3072, 6144)})  # of an even first factor the halves can be told
    odd: dict[Target, nn.Module] = {target: nn.Linear(3072, 6)}
    with pytest.raises(BadConfig, match="choose another 'algorithm' or narrower 'targets'"):
        refuse_unsayable(replace(run, factor=1), "flux", odd)
