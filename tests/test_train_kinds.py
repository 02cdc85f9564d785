"""Trained layers of every algorithm: PEFT's and LyCORIS's numbers and gradients, no effect at first, dropout, norms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from train_models import one_thread

from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.layers import DoRA, LoHa, LoKr, LoRA
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.create import create, split
from lorasmith.lora_core.train.dropout import Dropout
from lorasmith.lora_core.train.functions import GatedGelu
from lorasmith.lora_core.train.inject import attached, switched_off, trainable_through
from lorasmith.lora_core.train.kinds import Trained, TrainedLoKr
from lorasmith.lora_core.train.lean import lean

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

MODULES = {
    "linear": lambda: nn.Linear(24, 16),
    "conv": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "point": lambda: nn.Conv2d(8, 12, 1, bias=False),
}
ALGORITHMS = ("lora", "dora", "loha", "lokr")
AT = Target("denoiser", "x")


def module(kind: str) -> nn.Module:
    state = torch.random.get_rng_state()
    torch.manual_seed(4)
    made = MODULES[kind]().double().requires_grad_(False)
    torch.random.set_rng_state(state)
    return made


def data(kind: str) -> Tensor:
    shape = (2, 5, 24) if kind == "linear" else (2, 8, 6, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def run(**keys: Any) -> TrainConfig:
    return TrainConfig("m", "d", "o", **{"rank": 3, "alpha": 6.0, "seed": 1, **keys})


def fresh(layer: nn.Module, **keys: Any) -> Trained:
    return create({AT: layer}, run(**keys))[AT]


def moved(trained: Trained) -> Trained:
    """Put values off the start into a trained layer, in float64."""
    generator = torch.Generator().manual_seed(2)
    for parameter in trained.parameters.values():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = parameter.data.double() + 0.2 * noise
    for constant in trained.constants.values():
        constant.data = constant.data.double()
    return trained


def passed(layer: nn.Module, trained: Trained, x: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
    """Forward and backward; return the output and the gradient of x."""
    x = x.clone().requires_grad_()
    with attached({AT: layer}, {AT: trained}, dropout=dropout):
        y = layer(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def compared(layer: nn.Module, trained: Trained, theirs: nn.Module, copies: Mapping[str, tuple[Tensor, Any]]) -> None:
    """Compare with another library's layer: `copies` says which of its parameters is which, and how to reshape ours."""
    kind = "linear" if isinstance(layer, nn.Linear) else "conv"
    x = data(kind).requires_grad_()
    for name, (parameter, shaped) in copies.items():
        parameter.data = shaped(trained.parameters[name].data.clone()).to(parameter.dtype)
    y = theirs(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()
    ours, grad_x = passed(layer, trained, data(kind))
    torch.testing.assert_close(ours, y.detach().double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_x, x.grad, rtol=1e-5, atol=1e-5)
    for name, (parameter, shaped) in copies.items():
        found = trained.parameters[name].grad
        assert parameter.grad is not None and found is not None and found.abs().max() > 1e-3, name
        torch.testing.assert_close(shaped(found).double(), parameter.grad.double(), rtol=1e-5, atol=1e-5, msg=name)


def peft_layer(layer: nn.Module, config: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    holder = nn.Sequential(layer)
    found: nn.Module = peft.get_peft_model(holder, config).double().base_model.model[0]
    return found


def shaped_as(parameter: Tensor) -> Any:
    return lambda value: value.reshape(parameter.shape)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_lora_and_dora_equal_peft(algorithm: str, kind: str) -> None:
    peft = pytest.importorskip("peft")
    trained = moved(fresh(module(kind), algorithm=algorithm))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], use_dora=algorithm == "dora")
    theirs = peft_layer(module(kind), config)
    copies = {"down": theirs.lora_A["default"].weight, "up": theirs.lora_B["default"].weight}  # type: ignore[index]
    if algorithm == "dora":
        copies["magnitude"] = theirs.lora_magnitude_vector["default"].weight  # type: ignore[index]
        torch.testing.assert_close(  # the start: the weight's own lengths
            fresh(module(kind), algorithm="dora").parameters["magnitude"].double(), copies["magnitude"].flatten().data,
            rtol=1e-6, atol=1e-6,
        )  # fmt: skip
    compared(module(kind), trained, theirs, {name: (p, shaped_as(p)) for name, p in copies.items()})


@pytest.mark.parametrize("kind", MODULES)
def test_loha_equals_peft(kind: str) -> None:
    peft = pytest.importorskip("peft")
    trained = moved(fresh(module(kind), algorithm="loha"))
    theirs = peft_layer(module(kind), peft.LoHaConfig(r=3, alpha=6, target_modules=["0"]))
    names = {name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    compared(module(kind), trained, theirs, _copies(theirs, names, "default"))


@pytest.mark.parametrize("limit", [0, 10**6])  # the product not formed, and formed
@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("kind", MODULES)
def test_lokr_equals_peft(kind: str, rank: int, limit: int) -> None:
    peft = pytest.importorskip("peft")
    trained = moved(fresh(module(kind), algorithm="lokr", rank=rank, alpha=float(rank), factor=2))
    assert isinstance(trained, TrainedLoKr)
    trained = replace(trained, limit=limit)
    theirs = peft_layer(module(kind), peft.LoKrConfig(r=rank, alpha=rank, decompose_factor=2, target_modules=["0"]))
    names = {name: f"lokr_{name}" for name in trained.parameters}
    assert ("w2" in names) == (rank == 8)
    compared(module(kind), trained, theirs, _copies(theirs, names, "default"))


def _copies(theirs: Any, names: Mapping[str, str], key: str | None) -> dict[str, tuple[Tensor, Any]]:
    parameters = {name: getattr(theirs, full) for name, full in names.items()}
    found = {name: value[key] if key is not None else value for name, value in parameters.items()}
    return {name: (parameter, shaped_as(parameter)) for name, parameter in found.items()}


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_equal_lycoris(algorithm: str, kind: str) -> None:
    lycoris = pytest.importorskip("lycoris.modules")
    layer = module(kind)
    trained = moved(fresh(layer, algorithm=algorithm, rank=3, factor=2))
    named = {"lora": "LoConModule", "loha": "LohaModule", "lokr": "LokrModule"}[algorithm]
    more = {"factor": 2} if algorithm == "lokr" else {}
    theirs = getattr(lycoris, named)("x", module(kind), 1.0, 3, 6.0, **more).double()
    theirs.org_module[0].double()
    prefix = {"loha": "hada_", "lokr": "lokr_"}.get(algorithm, "")
    if algorithm == "lora":
        copies = {name: getattr(theirs, f"lora_{name}").weight for name in ("down", "up")}
    else:
        copies = {name: getattr(theirs, prefix + name) for name in trained.parameters}
    theirs.apply_to()
    compared(layer, trained, theirs, {name: (p, shaped_as(p)) for name, p in copies.items()})


@pytest.mark.parametrize("side", [1, 2, 7, 12, 320, 640, 768, 1280, 3072, 18432])
@pytest.mark.parametrize("factor", [-1, 2, 4, 7, 8, 16])
def test_kronecker_sizes_are_lycoris_own(side: int, factor: int) -> None:
    general = pytest.importorskip("lycoris.functional.general")
    assert split(side, factor) == tuple(general.factorization(side, factor))


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("keys", [
    *({"algorithm": name} for name in ALGORITHMS),
    {"init": "gaussian"}, {"init": "pissa"}, {"init": "olora"}, {"algorithm": "dora", "init": "pissa"},
], ids=str)  # fmt: skip
def test_a_fresh_layer_has_no_effect_and_learns(kind: str, keys: dict[str, Any]) -> None:
    layer = module(kind)
    expected = layer(data(kind))
    trained = fresh(layer, **keys)
    found, _ = passed(layer, trained, data(kind))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert any(p.grad is not None and p.grad.abs().max() > 1e-4 for p in trained.parameters.values())
    assert all(tensor.dtype == torch.float32 for tensor in trained.parameters.values())


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("keys", [
    *({"algorithm": name} for name in ALGORITHMS),
    {"rank_stabilized": True}, {"init": "pissa"}, {"algorithm": "dora", "init": "olora"},
    {"algorithm": "lokr", "rank": 9}, {"algorithm": "loha", "rank_stabilized": True},
], ids=str)  # fmt: skip
def test_the_saved_layer_is_what_was_trained(kind: str, keys: dict[str, Any]) -> None:
    layer = module(kind)
    trained = moved(fresh(layer, **keys))
    found, _ = passed(layer, trained, data(kind))
    saved = trained.layer()
    merged = module(kind)
    merged.weight.data = saved.apply(merged.weight.data)  # type: ignore[union-attr, operator, arg-type]
    torch.testing.assert_close(found, merged(data(kind)), rtol=1e-6, atol=1e-6)
    inner = saved.layer if isinstance(saved, DoRA) else saved
    assert isinstance(inner, {"loha": LoHa, "lokr": LoKr}.get(keys.get("algorithm", ""), LoRA))
    assert inner.alpha > 0 and not any(tensor.requires_grad for tensor in saved.tensors())


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_from_the_weight_equal_peft(init: str) -> None:
    peft = pytest.importorskip("peft")
    layer = module("linear").float()
    trained = fresh(layer, init=init)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=init)
    theirs = peft.get_peft_model(nn.Sequential(module("linear").float()), config).base_model.model[0]
    ours = (trained.parameters["up"] @ trained.parameters["down"]).detach()
    product = (theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight).detach()
    torch.testing.assert_close(ours, product, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(  # what PEFT leaves in the base is what our forward pass subtracts
        layer.weight.data - 2 * ours, theirs.base_layer.weight.data, rtol=1e-4, atol=1e-5
    )


def test_a_trained_start_is_saved_as_a_plain_lora_of_twice_the_rank() -> None:
    trained = fresh(module("conv"), init="pissa", algorithm="lora")
    saved = trained.layer()
    assert isinstance(saved, LoRA) and saved.rank == 6 and saved.scale == 2.0
    assert saved.delta().abs().max() < 1e-5  # nothing is trained yet


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_half_precision_models_give_float32_gradients(algorithm: str, dtype: torch.dtype) -> None:
    layer = module("linear").to(dtype)
    trained = fresh(layer, algorithm=algorithm)
    for name, parameter in trained.parameters.items():
        if name != "magnitude":
            parameter.data = parameter.data + 1e-4  # far below what half precision can add to a weight
    low, _ = passed(layer, trained, data("linear").to(dtype))
    high, _ = passed(layer.float(), trained, data("linear").to(dtype).float())
    assert low.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained.parameters.values())
    torch.testing.assert_close(low.float(), high, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_but_input_and_trained_tensors_is_kept(algorithm: str) -> None:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    layer, x = module("linear"), data("linear").requires_grad_()
    trained = moved(fresh(layer, algorithm=algorithm))
    with attached({AT: layer}, {AT: trained}), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= 16 * 10}  # as the output
    assert large <= {x.data_ptr()} and x.data_ptr() in large


def test_frozen_convolutions_keep_nothing_and_give_the_same() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), nn.Conv2d(8, 4, 1))
    model.double().requires_grad_(False)
    model[0].requires_grad_(True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    def gradient(*blocks: Any) -> Tensor:
        kept.clear()
        x = data("conv").requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = model(x)
        y.square().sum().backward()
        assert x.grad is not None
        return x.grad

    expected = gradient()
    before, dicts = len(kept), [dict(part.__dict__) for part in model]
    with lean(model):
        found = gradient()
        assert len(kept) < before and not any(tensor.shape == (2, 8, 6, 6) for tensor in kept[2:])
    assert torch.equal(found, expected)
    assert [dict(part.__dict__) for part in model] == dicts


def test_gated_layers_keep_their_input_alone_and_give_the_same() -> None:
    activations = pytest.importorskip("diffusers.models.activations")
    layer = activations.GEGLU(24, 8).double().requires_grad_(False)
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    expected = gradient_of(layer)
    with lean(layer):
        found = gradient_of(layer)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            layer(data("linear").requires_grad_())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert kept.count(torch.Size((2, 5, 16))) == 1 and torch.Size((2, 5, 8)) not in kept
    assert torch.autograd.gradcheck(GatedGelu.apply, data("linear")[:1, :2, :6].requires_grad_())


def gradient_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    x = data("linear").requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_lean_leaves_trained_hooked_and_hosts_own_convolutions_alone() -> None:
    trained, hooked, own = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
    for layer in (hooked, own):
        layer.requires_grad_(False)
    hooked.register_forward_hook(lambda *_: None)
    own.forward = lambda x: x  # type: ignore[method-assign, assignment]
    with lean(nn.ModuleList([trained, hooked, own])):
        assert "forward" not in trained.__dict__ and "forward" not in hooked.__dict__
        assert own.forward(1) == 1  # type: ignore[arg-type]


RATES = [{"elements": 0.5}, {"ranks": 0.5}, {"modules": 0.5}]


@pytest.mark.parametrize("rates", RATES, ids=str)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dropout_belongs_to_a_place_and_keeps_the_mean(algorithm: str, kind: str, rates: dict[str, float]) -> None:
    if algorithm in ("loha", "lokr") and "elements" in rates:
        return
    layer, x = module(kind), data(kind)
    trained = moved(fresh(layer, algorithm=algorithm, rank=2, factor=1))
    dropout = Dropout(seed=1, **rates)
    plain, _ = passed(layer, trained, x)
    assert torch.equal(passed(layer, trained, x, dropout)[0], plain)  # outside training nothing is dropped

    def at(step: int) -> Tensor:
        with dropout.at(step, 0):
            return passed(layer, trained, x, dropout)[0]

    assert torch.equal(at(3), at(3))
    different = [at(step) for step in range(120)]
    assert not all(torch.equal(different[0], one) for one in different)
    frozen = layer(x)
    expected = (plain + frozen) / 2 if "modules" in rates else plain
    spread = torch.stack(different).std(0).max()
    torch.testing.assert_close(torch.stack(different).mean(0), expected, rtol=0, atol=float(spread) * 0.4)


def test_gradients_pass_through_dropout() -> None:
    layer, trained = module("conv"), moved(fresh(module("conv")))
    dropout = Dropout(seed=1, elements=0.3, ranks=0.3, place=(1, 0))

    def output(down: Tensor, up: Tensor) -> Tensor:
        for name, value in (("down", down), ("up", up)):
            object.__setattr__(trained, name, value)
        with attached({AT: layer}, {AT: trained}, dropout=dropout):
            return layer(data("conv")[:1])  # type: ignore[no-any-return]

    inputs = tuple(value.detach().clone().requires_grad_() for value in trained.parameters.values())
    assert torch.autograd.gradcheck(output, inputs)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_norms_are_those_of_the_change_and_shrink(algorithm: str, kind: str) -> None:
    trained = moved(fresh(module(kind), algorithm=algorithm))
    saved = trained.layer()
    change = (saved.layer if isinstance(saved, DoRA) else saved).delta()  # type: ignore[union-attr]
    assert float(trained.norm()) == pytest.approx(float(change.norm()), rel=1e-6)
    trained.shrink(torch.tensor(0.25, dtype=torch.float64))
    again = trained.layer()
    smaller = (again.layer if isinstance(again, DoRA) else again).delta()  # type: ignore[union-attr]
    torch.testing.assert_close(smaller, change / 4, rtol=1e-6, atol=1e-9)


def test_ranks_and_alphas_by_part_and_pattern() -> None:
    modules = {
        Target("denoiser", "down.attn.to_q"): nn.Linear(4, 4),
        Target("denoiser", "mid.attn.to_q"): nn.Linear(4, 4),
        Target("denoiser", "mid.conv"): nn.Conv2d(4, 4, 3),
        Target("denoiser", "mid.point"): nn.Conv2d(4, 4, 1),
        Target("clip_l", "layers.0.q_proj"): nn.Linear(4, 4),
    }
    keys = {"rank": 2, "alpha": 2.0, "conv_rank": 3, "conv_alpha": 1.5}
    keys |= {"text_encoder_rank": 4, "text_encoder_alpha": 8.0}
    found = create(modules, run(**keys, ranks={"mid.*": 1, "mid.attn.*": 5}, alphas={"to_q": 10.0}))
    sizes = {target.module: (one.layer().rank, one.layer().alpha) for target, one in found.items()}  # type: ignore[union-attr]
    assert sizes == {
        "down.attn.to_q": (2, 10.0),
        "mid.attn.to_q": (5, 10.0),
        "mid.conv": (1, 1.5),
        "mid.point": (1, 2.0),
        "layers.0.q_proj": (4, 8.0),
    }
    named = create(modules, run(ranks={"encoder.*": 1}), names={Target("clip_l", "layers.0.q_proj"): "encoder.q"})
    assert named[Target("clip_l", "layers.0.q_proj")].layer().rank == 1  # type: ignore[union-attr]


def test_blocks_of_a_fused_weight_start_apart() -> None:
    modules: dict[Target, nn.Module] = {Target("denoiser", "qkv", block): nn.Linear(4, 4) for block in range(2)}
    first, second = (one.parameters["down"] for one in create(modules, run()).values())
    assert not torch.equal(first, second)


def test_rank_stabilized_scale() -> None:
    saved = fresh(module("linear"), rank=4, alpha=8.0, rank_stabilized=True).layer()
    assert isinstance(saved, LoRA) and saved.scale == 8 / math.sqrt(4)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"algorithm": "loha", "dropout": 0.1}, "'dropout' means nothing to 'algorithm' 'loha'"),
        ({"algorithm": "lokr", "init": "pissa"}, "'init' means nothing to 'algorithm' 'lokr'"),
        ({"algorithm": "loha", "lora_plus_ratio": 16.0}, "'lora_plus_ratio' means nothing to 'algorithm' 'loha'"),
        ({"init": "olora", "max_weight_norm": 1.0}, "'max_weight_norm' cannot shrink what 'init' 'olora' starts from"),
        ({"init": "pissa", "rank": 17}, "x: 'init' 'pissa' of rank 17 needs a weight of that rank; this one has 16"),
        ({"algorithm": "lokr", "rank": 9, "rank_dropout": 0.1}, "x: 'rank_dropout' finds no ranks"),
        ({"ranks": {"to_q": 2}}, "no module fits 'to_q' in 'ranks'; names are denoiser.x"),
    ],
)
def test_options_that_do_not_go_together_are_refused(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(BadConfig) as caught:
        fresh(module("linear"), **keys)
    assert line in caught.value.message and "\n" not in caught.value.message


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inference_weights_train_with_every_algorithm(algorithm: str) -> None:
    with torch.inference_mode():
        hosted = module("conv").float()
    with trainable_through(hosted):
        y, _ = passed(hosted, fresh(hosted, algorithm=algorithm), data("conv").float())
    plain = module("conv").float()
    expected, _ = passed(plain, fresh(plain, algorithm=algorithm), data("conv").float())
    assert torch.equal(y, expected)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_gradient_checkpointing_drops_the_same_again(algorithm: str) -> None:
    layer, trained = module("linear"), moved(fresh(module("linear"), algorithm=algorithm))
    found = []
    for repeated in (False, True):
        dropout = Dropout(seed=1, elements=0.4, ranks=0.3)
        x = data("linear").requires_grad_()
        with attached({AT: layer}, {AT: trained}, dropout=dropout), dropout.at(4, 2):
            y = checkpoint(layer, x, use_reentrant=False) if repeated else layer(x)
            y.square().sum().backward()
        found.append((x.grad, [parameter.grad for parameter in trained.parameters.values()]))
        for parameter in trained.parameters.values():
            parameter.grad = None
    assert torch.equal(found[0][0], found[1][0])  # type: ignore[arg-type]
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))  # type: ignore[arg-type]


def test_switched_off_modules_compute_as_the_frozen_model() -> None:
    layer, trained = module("conv"), moved(fresh(module("conv")))
    expected = layer(data("conv"))
    with attached({AT: layer}, {AT: trained}):
        adapted = layer(data("conv"))
        with switched_off({AT: layer}):
            assert torch.equal(layer(data("conv")), expected)
        assert torch.equal(layer(data("conv")), adapted) and not torch.equal(adapted, expected)
