"""Spectra and likeness: the same numbers as the dense matrices give, and laws that they must keep."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cli import adapter, refusal

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.architectures import ARCHITECTURES, architecture
from lorasmith.convert.model import modules
from lorasmith.convert.portrait import compare_table, compared, kind, portrait, spectrum_table
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadValues, WrongArchitecture
from lorasmith.lora_core.layers import Additive, DoRA, Full, Layer, LoHa, LoKr, LoRA
from lorasmith.lora_core.ops.norms import Likeness, grouped, likeness, strengths, together
from lorasmith.lora_core.ops.scale import scale

BLOCK = "input_blocks.1.1.transformer_blocks.0"
MAKE = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=MAKE)


LAYERS: dict[str, Layer] = {
    "linear": LoRA(random(4, 20), random(30, 4), 2.0),
    "wide rank": LoRA(random(30, 20), random(25, 30), 3.0),  # more than either side
    "half": LoRA(random(4, 20).half(), random(30, 4).half(), 4.0),
    "convolution": LoRA(random(3, 6, 3, 3), random(8, 3, 1, 1), 3.0),
    "tucker": LoRA(random(3, 6, 1, 1), random(8, 3, 1, 1), 3.0, mid=random(3, 3, 3, 3)),
    "loha": LoHa(random(20, 2), random(2, 16), random(20, 2), random(2, 16), alpha=1.0, shape=(20, 16)),
    "lokr": LoKr(1.0, w1=random(4, 4), w2=random(5, 4)),
    "full": Full(random(12, 10), scale=0.5),
}


def one(layer: Layer, name: str = "attn1.to_q") -> Adapter:
    return Adapter("sd15", {Target("denoiser", f"{BLOCK}.{name}"): layer})


def dense(layer: Layer) -> torch.Tensor:
    assert isinstance(layer, Additive)
    return layer.delta().double().flatten(1)


# --- one layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_singular_values_are_those_of_the_dense_matrix(name: str) -> None:
    layer = LAYERS[name]
    (found,) = strengths(one(layer)).layers.values()
    expected = torch.linalg.svdvals(dense(layer))
    values = torch.zeros_like(expected)
    assert found.values is not None
    values[: len(found.values)] = found.values
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5 * float(expected[0]))
    assert math.isclose(found.norm, float(dense(layer).norm()), rel_tol=1e-5)
    assert math.isclose(found.spectral, float(expected[0]), rel_tol=1e-5)
    assert math.isclose(found.stable_rank or 0, float(expected.square().sum() / expected[0] ** 2), rel_tol=1e-4)
    shares = expected / expected.sum()
    entropy = -sum(float(share) * math.log(share) for share in shares if share > 1e-9)
    assert math.isclose(found.effective_rank or 0, math.exp(entropy), rel_tol=1e-3)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_equal_directions_are_counted_exactly(count: int) -> None:
    """A projection onto `count` directions has that stable and effective rank, whatever its size."""
    basis, _ = torch.linalg.qr(random(30, count))
    layer = LoRA(5 * basis.T.contiguous(), basis, float(count))
    (found,) = strengths(one(layer)).layers.values()
    assert math.isclose(found.stable_rank or 0, count, rel_tol=1e-5)
    assert math.isclose(found.effective_rank or 0, count, rel_tol=1e-4)
    assert math.isclose(found.norm, 5 * math.sqrt(count), rel_tol=1e-5)


def test_strength_scales_norms_and_leaves_ranks() -> None:
    before, after = (strengths(lora).whole for lora in (adapter(1), scale(adapter(1), -2.0)))
    assert math.isclose(after.norm, 2 * before.norm, rel_tol=1e-6)
    assert math.isclose(after.spectral, 2 * before.spectral, rel_tol=1e-6)
    assert math.isclose(after.stable_rank or 0, before.stable_rank or 1, rel_tol=1e-5)
    assert math.isclose(after.effective_rank or 0, before.effective_rank or 1, rel_tol=1e-5)


def test_a_layer_that_does_nothing_has_no_ranks() -> None:
    idle = one(LoRA(random(2, 8), torch.zeros(8, 2), 1.0))
    (found,) = strengths(idle).layers.values()
    assert (found.norm, found.spectral, found.stable_rank, found.effective_rank) == (0, 0, None, None)
    assert portrait(idle).data()["blocks"]["down.0.attentions.0"]["share"] == 0


def test_a_vector_has_a_norm_and_no_spectrum() -> None:
    (found,) = strengths(one(Full(torch.tensor([3.0, 4.0])), "proj")).layers.values()
    assert found.norm == 5 and found.values is None and found.stable_rank is None


def test_layers_that_depend_on_the_base_are_named_and_left_out() -> None:
    plain = LAYERS["linear"]
    assert isinstance(plain, LoRA)
    lora = one(DoRA(plain, torch.ones(30, 1)))
    found = strengths(lora)
    assert not found.layers and list(found.without.values()) == ["DoRA"]
    data = portrait(lora).data()
    assert data["without"] == {f"denoiser.{BLOCK}.attn1.to_q": "DoRA"} and data["overall"]["layers"] == 0
    lines = list(spectrum_table(data))
    assert lines[-1] == "1 DoRA layers are not in it: what they do depends on the base weight"


def test_bad_values_are_refused_by_name() -> None:
    broken = LoRA(torch.full((2, 8), math.nan), random(8, 2), 1.0)
    for act in (strengths, lambda lora: likeness(lora, adapter(1)), lambda lora: likeness(adapter(1), lora)):
        with pytest.raises(BadValues, match=r"attn1\.to_q"):
            act(one(broken))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_add_up_to_the_whole_and_come_in_the_models_order() -> None:
    mixed = replace(adapter(1), layers=dict(reversed(adapter(1).layers.items())))
    seen = portrait(mixed)
    assert [block.name for block in seen.blocks] == ["down.0.attentions.0", "mid.attentions.0", "clip_l.0"]
    assert math.isclose(sum(seen.share(block) for block in seen.blocks), 1.0, rel_tol=1e-12)
    squares = sum(float(dense(layer).norm()) ** 2 for layer in mixed.layers.values())
    assert math.isclose(seen.found.whole.norm**2, squares, rel_tol=1e-6)


def test_the_typical_curve_is_the_root_of_the_mean_square() -> None:
    one_block = {
        Target("denoiser", f"{BLOCK}.attn1.to_q"): LoRA(torch.eye(2, 8) * 3, torch.eye(8, 2), 2.0),
        Target("denoiser", f"{BLOCK}.attn1.to_k"): LoRA(torch.eye(1, 8) * 4, torch.eye(8, 1), 1.0),
    }
    (block,) = portrait(Adapter("sd15", one_block)).blocks
    torch.testing.assert_close(block.curve, torch.tensor([(9 + 16) / 2, 9 / 2]).sqrt().double())


@pytest.mark.parametrize("family", [family.id for family in ARCHITECTURES])
def test_kinds_of_modules_tell_the_layers_of_a_block_apart(family: str) -> None:
    """Repeated blocks share their kinds, so there are far fewer than modules, and none is a mere number."""
    for part in architecture(family).components:
        found = {module.original: kind(Target(part.id, module.original)) for module in modules(part)}
        assert not [name for name in found.values() if name.isdigit() or not name]
        assert len(set(found.values())) <= max(40, len(found) / 8), sorted(set(found.values()))


# --- likeness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_cosines_are_those_of_the_dense_matrices(name: str) -> None:
    layer = LAYERS[name]
    assert isinstance(layer, Additive)
    shape = layer.delta().shape
    others: list[Layer] = [Full(random(*shape)), layer.scaled(-3.0)]
    if len(shape) == 2:
        others.append(LoRA(random(2, shape[1]), random(shape[0], 2), 1.0))
    for other in others:
        (found,) = likeness(one(layer), one(other)).values()
        left, right = dense(layer), dense(other)
        expected = float((left * right).sum() / left.norm() / right.norm())
        assert found.cosine is not None and abs(found.cosine - expected) < 1e-6
        assert math.isclose(found.ratio or 0, float(right.norm() / left.norm()), rel_tol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_like_itself_and_unlike_its_negative(name: str) -> None:
    layer = LAYERS[name]
    assert isinstance(layer, Additive)
    for other, expected in ((layer, 1.0), (layer.scaled(-1.0), -1.0), (layer.scaled(0.5), 1.0)):
        (found,) = likeness(one(layer), one(other)).values()
        assert found.cosine is not None and abs(found.cosine - expected) < 1e-9


def test_what_one_adapter_lacks_is_zero_there() -> None:
    left, right = one(LAYERS["linear"], "attn1.to_q"), one(LAYERS["linear"], "attn1.to_k")
    found = likeness(left, right)
    assert len(found) == 2 and together(found.values()).cosine == 0
    assert {one.cosine for one in found.values()} == {None}
    both = Adapter("sd15", {**left.layers, **right.layers})
    whole = together(likeness(left, both).values())
    assert whole.cosine is not None and math.isclose(whole.cosine, math.sqrt(0.5), rel_tol=1e-9)
    assert math.isclose(whole.ratio or 0, math.sqrt(2), rel_tol=1e-9)
    assert Likeness(0, 0, 1).cosine is None and Likeness(0, 0, 1).ratio is None


def test_blocks_of_a_comparison_are_their_layers_together() -> None:
    data = compared(adapter(1), adapter(2), "two")
    assert data["with"] == "two" and list(data["blocks"]) == ["down.0.attentions.0", "mid.attentions.0", "clip_l.0"]
    found = likeness(adapter(1), adapter(2))
    by_kind = grouped(found, dict.fromkeys(found, "all"))
    assert by_kind["all"].cosine == data["overall"]["cosine"]
    assert list(compare_table(data))[0].split() == ["block", "cosine", "norm", "ratio"]


def test_fused_and_split_layers_are_compared_piece_by_piece() -> None:
    fused = LoRA(random(2, 3072), random(9216, 2), 2.0)
    module = "double_blocks.0.img_attn.qkv"
    whole = Adapter("flux", {Target("denoiser", module): fused})
    parts = {
        Target("denoiser", module, block): replace(fused, up=fused.up[3072 * block : 3072 * (block + 1)].contiguous())
        for block in range(3)
    }
    data = compared(whole, Adapter("flux", parts))
    assert math.isclose(data["overall"]["cosine"], 1.0, rel_tol=1e-9)
    assert math.isclose(data["overall"]["norm_ratio"], 1.0, rel_tol=1e-9) and list(data["blocks"]) == ["double.0"]


def test_other_families_and_shapes_are_refused() -> None:
    with pytest.raises(WrongArchitecture, match="one is made for sd15, the other for sdxl"):
        likeness(adapter(1), replace(adapter(1), architecture="sdxl"))
    with pytest.raises(BadValues, match=r"attn1\.to_q: shapes .* differ"):
        likeness(one(LAYERS["linear"]), one(LAYERS["full"]))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    convert.write(adapter(1), tmp_path / "a.safetensors")
    convert.write(scale(adapter(1), -2.0), tmp_path / "b.safetensors", "diffusers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_info_tells_spectrum_and_comparison_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a.safetensors", "--spectrum", "--compare", "b.safetensors", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["architecture"] == "sd15" and told["spectrum"]["overall"]["layers"] == 3
    layer = told["spectrum"]["layers"][f"denoiser.{BLOCK}.attn1.to_q"]
    assert layer["shape"] == [320, 320] and layer["rank"] == 2 and len(layer["singular_values"]) == 2
    assert layer["block"] == "down.0.attentions.0"
    assert math.isclose(told["compare"]["overall"]["cosine"], -1) and told["compare"]["with"] == "b.safetensors"
    assert math.isclose(told["compare"]["overall"]["norm_ratio"], 2)


def test_info_tells_spectrum_and_comparison_as_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "a.safetensors", "--spectrum"]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    heads = ["block", "layers", "norm", "share", "spectral", "norm", "stable", "rank", "effective", "rank"]
    assert table[0].split() == heads
    assert [line.split()[0] for line in table[1:]] == ["down.0.attentions.0", "mid.attentions.0", "clip_l.0", "all"]
    assert len({len(line) for line in table}) == 1  # columns stand below one another
    assert main(["info", "a.safetensors", "--compare", "b.safetensors"]) == 0
    assert "  all                    -1.000           2\n" in capsys.readouterr().out


def test_info_refuses_what_cannot_be_looked_at(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--fast looks at no values" in refusal(capsys, "info", "a.safetensors", "--fast", "--spectrum")
    assert refusal(capsys, "info", "a.safetensors", "--compare", "c.safetensors") == "c.safetensors: no such file"
