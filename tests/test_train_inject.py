"""Attached LoRA layers: their maths, their gradients, inference-mode weights, and leaving without a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train import inject
from lorasmith.lora_core.train.config import TrainConfig
from lorasmith.lora_core.train.create import create
from lorasmith.lora_core.train.functions import AdaptedConv2d, AdaptedLinear
from lorasmith.lora_core.train.kinds import TrainedLoRA
from lorasmith.lora_core.train.operations import Geometry


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear, plain, strided and circular convolutions, norms: the kinds a UNet has."""
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Conv2d(6, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Flatten(1, 2),
        nn.LayerNorm(4),
        nn.Linear(4, 5),
        nn.Linear(5, 2, bias=False),
    ]
    model = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.5
    return model


ADAPTED = (3, 4, 5, 8)


def targets(model: nn.Module) -> dict[Target, nn.Module]:
    return {Target("denoiser", str(index)): model.get_submodule(str(index)) for index in ADAPTED}


def fresh(modules: dict[Target, nn.Module], rank: int, alpha: float, seed: int) -> dict[Target, TrainedLoRA]:
    run = TrainConfig("m", "d", "o", rank=rank, alpha=alpha, seed=seed)
    return create(modules, run)  # type: ignore[return-value]


def factors(model: nn.Module) -> dict[Target, TrainedLoRA]:
    """Factors in float64 whose up is not zero."""
    made = fresh(targets(model), 2, 3.0, 0)
    generator = torch.Generator().manual_seed(2)
    for pair in made.values():
        pair.down.data = pair.down.data.double()
        pair.up.data = torch.randn(pair.up.shape, generator=generator, dtype=torch.float64) * 0.3
    return made


def data() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def gradients(model: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Forward and backward through the adapted model."""
    made = factors(model)
    with inject.trainable_through(model), inject.attached(targets(model), made):
        out = model(data())
        out.square().sum().backward()
    return out.detach(), [tensor.grad for pair in made.values() for tensor in (pair.down, pair.up)]  # type: ignore[misc]


def in_fresh_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_effect_is_the_adapter_merged_into_the_weights() -> None:
    model = net()
    out, _ = gradients(model)
    for target, pair in factors(model).items():
        module = targets(model)[target]
        module.weight.data = module.weight.data + pair.layer().delta()  # type: ignore[operator]
    torch.testing.assert_close(model(data()), out, rtol=1e-5, atol=1e-5)  # delta() is float32


def test_gradients_equal_autograds_own() -> None:
    model = net()
    _, found = gradients(model)
    made = factors(model)

    def plain(module: nn.Module, pair: TrainedLoRA) -> Callable[[Any, Any, Tensor], Tensor]:
        def hook(_: Any, args: Any, out: Tensor) -> Tensor:
            if isinstance(module, nn.Linear):
                return out + pair.scale * (args[0] @ pair.down.t() @ pair.up.t())
            twin = nn.Conv2d(
                module.in_channels, 2, module.kernel_size, module.stride, module.padding, bias=False,
                padding_mode=module.padding_mode,
            )  # fmt: skip
            del twin.weight
            twin.weight = pair.down.view(2, module.in_channels, *module.kernel_size)
            return out + pair.scale * torch.nn.functional.conv2d(twin(args[0]), pair.up[:, :, None, None])

        return hook

    for target, pair in made.items():
        module = targets(model)[target]
        module.register_forward_hook(plain(module, pair))
    model(data()).square().sum().backward()
    expected = [tensor.grad for pair in made.values() for tensor in (pair.down, pair.up)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_functions_pass_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)

    weight, bias, kernel = random(5, 4, grad=False), random(5, grad=False), random(5, 4, 3, 3, grad=False)
    linear = (random(2, 3, 4), random(2, 4), random(5, 2))
    assert torch.autograd.gradcheck(lambda *a: AdaptedLinear.apply(*a, 0.7, lambda x: (weight, bias)), linear)
    conv = (random(1, 4, 5, 5), random(2, 4, 3, 3), random(5, 2, 1, 1))
    how = Geometry((2, 2), (1, 1), (1, 1))
    assert torch.autograd.gradcheck(lambda *a: AdaptedConv2d.apply(*a, 0.7, lambda x: (kernel, bias), how), conv)


def test_inference_weights_train_in_a_fresh_thread_without_a_copy() -> None:
    with torch.inference_mode():
        frozen = net().requires_grad_(False)  # as a host holds its models
    memory = {name: tensor.data_ptr() for name, tensor in frozen.named_parameters()}
    with pytest.raises(RuntimeError, match="[Ii]nference tensors"):  # what the protection is for
        in_fresh_thread_raising(lambda: frozen(data().requires_grad_()).sum().backward())
    expected = gradients(net())
    found = in_fresh_thread(lambda: gradients(frozen))
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[1], expected[1], strict=True))
    assert all(tensor.is_inference() for tensor in frozen.parameters())
    assert {name: tensor.data_ptr() for name, tensor in frozen.named_parameters()} == memory
    with inject.trainable_through(frozen):
        assert {name: tensor.data_ptr() for name, tensor in frozen.named_parameters()} == memory


def in_fresh_thread_raising(work: Callable[[], Any]) -> None:
    def caught() -> BaseException | None:
        try:
            work()
        except RuntimeError as error:
            return error
        return None

    error = in_fresh_thread(caught)
    if error is not None:
        raise error


def test_frozen_layers_get_no_gradient() -> None:
    model = net()
    gradients(model)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_and_float32_factors(dtype: torch.dtype) -> None:
    layer = nn.Linear(4, 5).to(dtype)
    target = Target("denoiser", "x")
    made = fresh({target: layer}, 2, 2.0, 0)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with inject.trainable_through(layer), inject.attached({target: layer}, made):
        low, high = layer(x.to(dtype)), layer(x)  # a host may compute in float32 on weights that it stores in half
        high.sum().backward()
    assert low.dtype == dtype and high.dtype == torch.float32
    assert made[target].up.grad is not None and made[target].up.grad.dtype == torch.float32


def test_fresh_factors_change_nothing_and_depend_on_seed_and_target_alone() -> None:
    model = net(torch.float32)
    x = data().float()
    before = model(x)
    all_of_them = fresh(targets(model), 2, 2.0, 7)
    with inject.attached(targets(model), all_of_them):
        torch.testing.assert_close(model(x), before)
    one = Target("denoiser", "8")
    torch.manual_seed(99)
    alone = fresh({one: model[8]}, 2, 2.0, 7)
    assert torch.equal(alone[one].down, all_of_them[one].down)
    assert not torch.equal(fresh({one: model[8]}, 2, 2.0, 8)[one].down, alone[one].down)
    assert alone[one].down.abs().max() <= 1 / 4**0.5  # U(-1/sqrt(in), 1/sqrt(in))


def test_creating_factors_leaves_the_global_generator_alone() -> None:
    modules = targets(net())
    before = torch.random.get_rng_state()
    fresh(modules, 2, 2.0, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_modules_come_back_untouched_after_an_exception() -> None:
    model = net()

    def host_forward(x: Tensor) -> Tensor:
        return x * 2

    model[9].forward = host_forward  # a host's own replaced forward
    before = [dict(part.__dict__) for part in model.modules()]
    expected = model(data())
    adapted = {**targets(model), Target("denoiser", "9"): model[9]}
    with pytest.raises(KeyError), inject.trainable_through(model):
        with inject.attached(adapted, fresh(adapted, 2, 2.0, 0)):
            assert model[9].forward is not host_forward
            raise KeyError
    assert [dict(part.__dict__) for part in model.modules()] == before
    assert model[9].forward is host_forward
    assert torch.equal(model(data()), expected)


def test_attaching_twice_is_refused_and_leaves_the_first() -> None:
    model = net()
    with inject.attached(targets(model), factors(model)):
        out = model(data())
        with pytest.raises(RuntimeError, match="adapted already"), inject.attached(targets(model), factors(model)):
            pass
        assert torch.equal(model(data()), out)
    with inject.attached(targets(model), factors(model)):  # and again after it, the same
        assert torch.equal(model(data()), out)


@pytest.mark.parametrize("module", [nn.LayerNorm(4), nn.Conv2d(4, 4, 1, groups=2)])
def test_modules_that_cannot_be_adapted_are_refused(module: nn.Module) -> None:
    with pytest.raises(BadConfig, match="x.y: a .* cannot take a LoRA"):
        fresh({Target("denoiser", "x.y"): module}, 2, 2.0, 0)


def test_one_layer_equals_peft() -> None:
    peft = pytest.importorskip("peft")
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv2d(3, 4, 3, stride=2, padding=1)).double()
    ours = {Target("denoiser", name): model.get_submodule(name) for name in ("0", "1")}
    made = fresh(ours, 3, 6.0, 0)
    for pair in made.values():
        pair.down.data, pair.up.data = pair.down.data.double(), torch.ones_like(pair.up).double() * 0.1
    inputs = {"0": torch.randn(2, 6).double(), "1": torch.randn(2, 3, 8, 8).double()}
    with inject.trainable_through(model), inject.attached(ours, made):
        outs = {name: model.get_submodule(name)(x) for name, x in inputs.items()}
        sum(out.square().sum() for out in outs.values()).backward()  # type: ignore[union-attr]
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "1"])).double()
    layers = {name: theirs.base_model.model.get_submodule(name) for name in ("0", "1")}
    for name, layer in layers.items():
        made_of = made[Target("denoiser", name)]
        for theirs, ours in ((layer.lora_A["default"], made_of.down), (layer.lora_B["default"], made_of.up)):
            theirs.weight.data = ours.data.view(theirs.weight.shape)
    for name, layer in layers.items():
        out = layer(inputs[name])
        torch.testing.assert_close(out, outs[name], rtol=1e-12, atol=1e-12)
        out.square().sum().backward()
        pair = made[Target("denoiser", name)]
        for part, ours_of in ((layer.lora_A, pair.down), (layer.lora_B, pair.up)):
            gradient = part["default"].weight.grad.flatten(1)
            torch.testing.assert_close(gradient, ours_of.grad, rtol=1e-10, atol=1e-12)
