"""Weights kept in few bits or away from the device: the same training as on a model that has the decoded values."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402
from train_families import write_pipeline  # noqa: E402
from train_models import config, one_thread, pictures  # noqa: E402

from lorasmith.convert.training import diffusers_names, needed, train  # noqa: E402
from lorasmith.lora_core.errors import BadConfig  # noqa: E402
from lorasmith.lora_core.train import budget  # noqa: E402
from lorasmith.lora_core.train.create import create  # noqa: E402
from lorasmith.lora_core.train.diffusers_backend import DiffusersBackend, open_backend  # noqa: E402
from lorasmith.lora_core.train.inject import attached  # noqa: E402
from lorasmith.lora_core.train.placement import move  # noqa: E402
from lorasmith.lora_core.train.quantizing import BLOCK, CODINGS, NF4  # noqa: E402
from lorasmith.lora_core.train.storage import resting, weights  # noqa: E402

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")

LARGEST_ERROR = {"int8": 0.5 / 127, "fp8": 2**-4, "nf4": 0.16}  # as a share of a row's or block's largest weight


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline("flux", tmp_path_factory.mktemp("storage") / "flux")


def opened(tmp: Path, model: Path, **keys: Any) -> DiffusersBackend:
    return open_backend(config(tmp, model=str(model), resolution=32, **keys), diffusers_names)


def step(backend: DiffusersBackend, weight: Any = weights) -> list[Tensor]:
    """Return the prediction and the adapters' gradients of one step."""
    draw = torch.Generator().manual_seed(2)
    factors = create(backend.modules(), backend.config, weights=weight)
    for trained in factors.values():
        trained.up.data = torch.randn(trained.up.shape, generator=draw) * 0.1  # type: ignore[attr-defined]
    noisy = torch.randn(1, 4, 4, 4, generator=draw)
    with attached(backend.modules(), factors, weight):
        found = backend(noisy, torch.tensor([500.0]), backend.encode_text("a red cat"))
        found.square().mean().backward()
    return [found.detach(), *(p.grad for t in factors.values() for p in t.parameters.values() if p.grad is not None)]


@pytest.mark.parametrize("coding", list(CODINGS))
def test_decoding_comes_near_what_was_encoded(coding: str) -> None:
    weight = torch.randn(24, BLOCK * 2, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 24)[:, None]
    codes, scales = CODINGS[coding].encode(weight)
    decoded = CODINGS[coding].decode(codes, scales, torch.float32).view(weight.shape)
    groups = (-1, BLOCK) if coding == "nf4" else (24, -1)
    error, largest = (decoded - weight).reshape(groups).abs().amax(1), weight.reshape(groups).abs().amax(1)
    assert (error <= largest * LARGEST_ERROR[coding] * 1.001).all()
    again = CODINGS[coding].decode(*CODINGS[coding].encode(decoded), torch.float32).view(weight.shape)
    torch.testing.assert_close(again, decoded, rtol=1e-6, atol=0)


def test_nf4_is_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(32, BLOCK, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
    theirs = functional.dequantize_4bit(codes, state)
    ours = CODINGS["nf4"].decode(*CODINGS["nf4"].encode(weight), torch.float32).view(weight.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_nf4s_values_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: halves of 8 and 9 equally likely steps, joined at zero, scaled to one."""
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(0.9677083, 0.5, 9)[:-1].double())
    below = -normal.icdf(torch.linspace(0.9677083, 0.5, 8)[:-1].double())
    wanted = torch.cat([below, torch.zeros(1), above.flip(0)])
    torch.testing.assert_close(torch.tensor(NF4).double(), wanted / wanted.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coding", ["fp8", "int8", "nf4"])
def test_a_stored_model_computes_as_one_with_the_decoded_weights(tmp_path: Path, model: Path, coding: str) -> None:
    backend, plain = opened(tmp_path, model, quantize=coding), opened(tmp_path, model)
    changed = 0
    for (name, module), twin in zip(
        backend.parts.denoiser.named_modules(), plain.parts.denoiser.modules(), strict=True
    ):
        if isinstance(module, nn.Linear) and "stored" in module.__dict__:
            assert "norm" not in name and name.split(".")[0].endswith("transformer_blocks")
            twin.weight.data = weights(module, twin.weight)[0]
            changed += 1
    assert changed == 2 * 12 + 2 * 5
    for ours, theirs in zip(step(backend), step(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    blocks = budget.weights(plain.blocks()), budget.weights(backend.blocks())
    assert blocks[1] < blocks[0] * 0.7  # norms and biases are many in so small a model


def test_swapped_blocks_change_no_bit(tmp_path: Path, model: Path) -> None:
    plain, swapped = opened(tmp_path, model), opened(tmp_path, model, swap_blocks=3)
    for ours, theirs in zip(step(swapped), step(plain), strict=True):
        assert torch.equal(ours, theirs)
    away = set(resting(swapped.parts.denoiser))
    names = {name for name, part in swapped.parts.denoiser.named_modules() if part in away}
    assert {name.split(".")[0] for name in names} == {"transformer_blocks", "single_transformer_blocks"}
    assert not any(name.startswith("transformer_blocks.0.") for name in names)


def test_resting_weights_stay_when_the_model_moves(tmp_path: Path, model: Path) -> None:
    denoiser = copy.deepcopy(opened(tmp_path, model, swap_blocks=1).parts.denoiser)
    move(denoiser, torch.device("meta"))
    places = {name: str(tensor.device) for name, tensor in denoiser.named_parameters()}
    assert {name for name, place in places.items() if place == "cpu"} == {
        name for name in places if name.startswith("single_transformer_blocks.1.") and name.endswith(".weight")
    } - {name for name in places if "norm_q" in name or "norm_k" in name}


def test_checkpointing_changes_no_gradient(tmp_path: Path, model: Path) -> None:
    keeping, computing = opened(tmp_path, model), opened(tmp_path, model, quantize="int8", swap_blocks=1)
    plain = opened(tmp_path, model, quantize="int8")
    keeping.checkpointing(True)
    computing.checkpointing(True)
    for first, second in ((keeping, opened(tmp_path, model)), (computing, plain)):
        for ours, theirs in zip(step(first), step(second), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_what_a_class_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    folder = write_pipeline("wan", tmp_path / "wan")
    parts = opened(tmp_path, folder, precision="bf16").parts
    wide = {name for name, p in parts.denoiser.named_parameters() if p.dtype == torch.float32}
    assert "blocks.0.scale_shift_table" in wide and "blocks.0.attn1.to_q.weight" not in wide
    assert {p.dtype for p in parts.text_encoders["umt5xxl"].parameters()} == {torch.bfloat16}
    assert {p.dtype for p in parts.vae.parameters()} == {torch.float32}
    narrow = opened(tmp_path, folder, precision="fp16").parts.text_encoders["umt5xxl"]
    assert {name.split(".")[-2] for name, p in narrow.named_parameters() if p.dtype == torch.float32} == {"wo"}


def test_more_blocks_than_there_are_is_told(tmp_path: Path, model: Path) -> None:
    with pytest.raises(BadConfig, match="config: 'swap_blocks' is 5, and the model has 4 blocks; choose 4 or less"):
        opened(tmp_path, model, swap_blocks=5)


@pytest.mark.parametrize("algorithm", ["lora", "dora"])
def test_a_run_over_a_stored_model(tmp_path: Path, model: Path, algorithm: str) -> None:
    pictures(tmp_path / "data", {"a": "a red cat", "b": "z"}, (32, 32))
    keys: dict[str, Any] = {"model": str(model), "resolution": 32, "steps": 2, "format": "diffusers"}
    keys |= {"quantize": "nf4", "swap_blocks": 2, "gradient_checkpointing": "on", "algorithm": algorithm}
    keys |= {"validation_prompt": "a cat", "sample_every": 2, "sample_steps": 1}
    events = [event.event for event in train(config(tmp_path, **keys))]
    assert "sample" in events and events[-1] == "done"


def test_a_plan_leaves_out_what_rests_on_the_cpu(tmp_path: Path, model: Path) -> None:
    pictures(tmp_path / "data", {"a": "a"})
    common = {"model": str(model), "resolution": 32, "format": "diffusers"}
    plain, swapped = (needed(config(tmp_path, **common, swap_blocks=n))[0] for n in (0, 1))
    backend = opened(tmp_path, model, swap_blocks=1)
    away = sum(module.weight.nbytes for module in resting(backend.parts.denoiser))  # type: ignore[union-attr, operator]
    assert plain.denoiser - swapped.denoiser == away > 0
