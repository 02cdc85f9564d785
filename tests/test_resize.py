"""Laws of resizing: what is kept is the best of its rank, rules keep their promise, a size is never exceeded."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from dumps import sample
from torch import Tensor

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.files import file_bytes, plan
from lorasmith.convert.sizes import dialect_for, resized_to_fit
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues, LorasmithError, UnsupportedLayer
from lorasmith.lora_core.layers import IA3, Additive, DoRA, Full, GLoRA, LoHa, LoKr, LoRA, Norm
from lorasmith.lora_core.ops.ranks import RULES, Spectrum, knee, spread, sv_cumulative, sv_fro, sv_ratio
from lorasmith.lora_core.ops.report import difference
from lorasmith.lora_core.ops.resize import ranks_of, resize
from lorasmith.nodes import resize as node

LINEAR, CONV, POINT, TEXT = (
    Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
    Target("denoiser", "input_blocks.1.0.in_layers.2"),
    Target("denoiser", "input_blocks.1.1.proj_in"),
    Target("clip_l", "text_model.encoder.layers.0.mlp.fc1"),
)
SHAPES = {LINEAR: (40, 32), CONV: (24, 12, 3, 3), POINT: (32, 32, 1, 1), TEXT: (28, 36)}
RULES_GIVEN = [("rank", 5), ("energy", 0.9), ("sv_ratio", 4), ("sv_fro", 0.9), ("sv_cumulative", 0.8), ("knee", 0)]


def lora(
    shape: tuple[int, ...],
    rank: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    mid: bool = False,
    fall: float = 0.8,
) -> LoRA:
    """A random layer whose singular values fall by about `fall` from one to the next."""
    make = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(shape) - 2)
    weights = (fall ** torch.arange(rank)).reshape(-1, *[1] * (len(shape) - 1))
    down = torch.randn(rank, shape[1], *(ones if mid else shape[2:]), generator=make) * weights
    up = torch.randn(shape[0], rank, *ones, generator=make)
    core = torch.randn(rank, rank, *shape[2:], generator=make) / rank if mid else None
    return LoRA(down.to(dtype), up.to(dtype), rank / 2, None if core is None else core.to(dtype))


def adapter(rank: int = 16, dtype: torch.dtype = torch.float32, fall: float = 0.8) -> Adapter:
    layers = {target: lora(shape, rank, i, dtype, fall=fall) for i, (target, shape) in enumerate(SHAPES.items())}
    return Adapter("sd15", layers, {"ss_base_model_version": "sd_v1"})


def spectrum(layer: Additive) -> Tensor:
    """The singular values of the dense change."""
    return torch.linalg.svdvals(layer.delta().double().flatten(1))


def shared(pairs: list[tuple[Additive, Additive]]) -> float:
    """The relative error over all layers, from dense changes in float64."""
    off = sum(float((one.delta().double() - two.delta().double()).square().sum()) for one, two in pairs)
    return math.sqrt(off / sum(float(two.delta().double().square().sum()) for _, two in pairs))


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rule", "value"), RULES_GIVEN)
def test_the_error_is_that_of_the_singular_values_left_out(rule: str, value: float, dtype: torch.dtype) -> None:
    source = adapter(dtype=dtype)
    result = resize(source, rule, value, dtype="fp32")
    left = total = 0.0
    for target, layer in result.layers.items():
        values = spectrum(source.layers[target])
        assert layer.shape == SHAPES[target] and layer.scale == 1 and layer.up.dtype == torch.float32
        assert 1 <= layer.rank < 16
        left, total = left + float(values[layer.rank :].square().sum()), total + float(values.square().sum())
    optimum = math.sqrt(left / total)  # Eckart and Young
    stated = difference(result, source).relative_error
    assert stated == pytest.approx(optimum, abs=1e-6, rel=1e-5)
    pairs = [(result.layers[target], layer) for target, layer in source.layers.items()]
    assert stated == pytest.approx(shared(pairs), abs=1e-6)


def test_both_factors_share_the_singular_values_evenly() -> None:
    layer = resize(adapter(), "rank", 6).layers[LINEAR]
    roots = spectrum(adapter().layers[LINEAR])[:6].sqrt()
    assert torch.allclose(layer.up.norm(dim=0).double(), roots, rtol=1e-5)
    assert torch.allclose(layer.down.norm(dim=1).double(), roots, rtol=1e-5)


@pytest.mark.parametrize(("out", "inner", "rank"), [(64, 8, 24), (8, 64, 24), (8, 8, 24), (5, 3, 1)])
def test_a_rank_above_the_weights_own_sides_is_no_obstacle(out: int, inner: int, rank: int) -> None:
    source = Adapter("sd15", {LINEAR: lora((out, inner), rank)})
    layer = resize(source, "rank", 4).layers[LINEAR]
    values = spectrum(source.layers[LINEAR])
    assert layer.rank == min(4, len(values), rank)
    error = difference(Adapter("sd15", {LINEAR: layer}), source).relative_error
    assert error == pytest.approx(float(values[layer.rank :].norm() / values.norm()), abs=1e-6)


@pytest.mark.parametrize(("wanted", "found"), [("keep", torch.float16), ("bf16", torch.bfloat16)])
def test_a_file_keeps_its_dtype_unless_told(wanted: str, found: torch.dtype) -> None:
    source = adapter(dtype=torch.float16)
    result = resize(source, "rank", 4, dtype=wanted)
    assert all(layer.up.dtype == layer.down.dtype == found for layer in result.layers.values())
    pairs = [(result.layers[target], layer) for target, layer in source.layers.items()]
    assert difference(result, source).relative_error == pytest.approx(shared(pairs), abs=1e-6)  # the rounding as well


def test_eight_bit_floats_get_room_for_what_comes_out() -> None:
    source = Adapter("sd15", {LINEAR: lora((40, 32), dtype=torch.float8_e4m3fn)})
    layer = resize(source, "energy", 0.999).layers[LINEAR]
    assert layer.up.dtype == torch.bfloat16
    assert difference(Adapter("sd15", {LINEAR: layer}), source).relative_error < math.sqrt(0.001) + 0.005


def test_what_need_not_shrink_stays_the_very_same() -> None:
    source = adapter(4, torch.float16)
    for rule, value in (("rank", 4), ("rank", 400), ("energy", 1), ("sv_ratio", 1e5), ("size", 40)):
        result = resize(source, rule, value)
        assert all(result.layers[target] is layer for target, layer in source.layers.items())
    narrowed = resize(adapter(4), "rank", 4, dtype="fp16").layers[LINEAR]
    assert torch.equal(narrowed.up, adapter(4).layers[LINEAR].up.half())


@pytest.mark.parametrize(("rule", "value"), [("rank", 5), ("sv_ratio", 4), ("size", 0.016)])
def test_doing_it_again_changes_nothing(rule: str, value: float) -> None:
    once = resize(adapter(dtype=torch.float16), rule, value)
    twice = resize(once, rule, value)
    assert ranks_of(twice) == ranks_of(once) and max(ranks_of(once)) < 16
    assert difference(twice, once).relative_error == 0


def test_no_rank_is_kept_for_rounding() -> None:
    thin, zero = lora((40, 32), 3), lora((40, 32), 8)
    fat = LoRA(torch.cat([thin.down, thin.down]), torch.cat([thin.up, thin.up], 1), 6.0)
    idle = LoRA(zero.down, torch.zeros_like(zero.up), 8.0)
    result = resize(Adapter("sd15", {LINEAR: fat, POINT: idle}), "rank", 5)
    assert result.layers[LINEAR].rank == 3 and difference(result, Adapter("sd15", {LINEAR: fat})).worst < 1e-6
    assert result.layers[POINT].rank == 1 and not result.layers[POINT].delta().any()


def test_convolutions_have_a_rank_of_their_own_and_a_1x1_counts_as_linear() -> None:
    for rule, value in (("rank", 7), ("energy", 0.9), ("size", 0.03)):
        layers = resize(adapter(dtype=torch.float16), rule, value, conv_rank=2).layers
        assert layers[CONV].rank == 2 and layers[CONV].down.shape == (2, 12, 3, 3) and layers[POINT].rank > 2
        assert layers[CONV].up.shape == (24, 2, 1, 1)


def test_tucker_cores_are_absorbed() -> None:
    source = Adapter("sd15", {CONV: lora(SHAPES[CONV], 8, mid=True)})
    layer = resize(source, "rank", 3).layers[CONV]
    values = spectrum(source.layers[CONV])
    assert layer.mid is None and layer.down.shape == (3, 12, 3, 3)
    error = difference(Adapter("sd15", {CONV: layer}), source).relative_error
    assert error == pytest.approx(float(values[3:].norm() / values.norm()), abs=1e-6)


def test_scalars_and_widened_weights_are_kept() -> None:
    plain = lora((40, 32))
    odd = LoRA(plain.down, plain.up, plain.alpha, None, torch.tensor([48, 32]), torch.tensor(-0.25))
    layer = resize(Adapter("sd15", {LINEAR: odd}), "rank", 6).layers[LINEAR]
    assert torch.equal(layer.reshape, odd.reshape) and layer.scalar is None and layer.scale == 1
    assert difference(Adapter(None, {LINEAR: layer}), resize(Adapter(None, {LINEAR: plain}), "rank", 6)).worst > 1
    values = spectrum(odd)
    error = difference(Adapter(None, {LINEAR: layer}), Adapter(None, {LINEAR: odd})).relative_error
    assert error == pytest.approx(float(values[6:].norm() / values.norm()), abs=1e-6)


def test_other_algorithms_become_the_best_lora() -> None:
    make = torch.Generator().manual_seed(3)
    loha = LoHa(*(torch.randn(s, generator=make) for s in ((28, 3), (3, 36), (28, 3), (3, 36))), alpha=3.0)
    lokr = LoKr(4.0, w1=torch.randn(4, 4, generator=make), w2=torch.randn(10, 8, generator=make))
    dense = Full(torch.randn(24, 12, 3, 3, generator=make).half())
    glora = GLoRA(*(torch.randn(s, generator=make) for s in ((32, 4), (4, 32), (32, 4), (4, 32))), alpha=2.0)
    glora.a1.zero_()
    norm, bias = Target("denoiser", "norm"), Target("denoiser", LINEAR.module, parameter="bias")
    vectors = {norm: Norm(torch.randn(8, generator=make)), bias: Full(torch.randn(40, generator=make))}
    matrices = {LINEAR: lokr, CONV: dense, POINT: glora, TEXT: loha}
    source = Adapter("sd15", {**matrices, **vectors}, extras={"emb": torch.ones(2)})
    result = resize(source, "rank", 2)
    assert all(result.layers[target] is layer for target, layer in vectors.items()) and result.extras == source.extras
    for target, layer in matrices.items():
        found = result.layers[target]
        weight = torch.zeros(32, 32)
        values = spectrum(Full(layer.apply(weight) - weight)) if target == POINT else spectrum(layer)
        assert isinstance(found, LoRA) and found.rank == 2 and found.shape == tuple(layer.shape)
        assert torch.allclose(spectrum(found)[:2], values[:2], rtol=2e-3 if target == CONV else 1e-5)
        if target != POINT:
            share = difference(Adapter(None, {target: found}), Adapter(None, {target: layer})).relative_error
            assert share == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-3)


@pytest.mark.parametrize("name", ["lycoris_sd15_loha", "lycoris_sdxl_locon_tucker"])
def test_files_of_other_trainers_come_out_as_lora(name: str, tmp_path: Path) -> None:
    store.save(tmp_path / "a.safetensors", sample(name))
    source = convert.load(tmp_path / "a.safetensors")
    result = resize(source.adapter, "rank", 1)
    back = convert.read(convert.write(result, tmp_path / "small.safetensors", dialect_for(source, None)))
    assert back.layers.keys() == source.adapter.layers.keys() and ranks_of(back) == [1] * len(back.layers)
    assert difference(back, result).relative_error < 1e-6


@pytest.mark.parametrize(
    "layer",
    [
        DoRA(lora((40, 32)), torch.ones(40)),
        IA3(torch.ones(40, 1), on_input=False),
        GLoRA(torch.ones(32, 2), torch.ones(2, 32), torch.ones(40, 2), torch.ones(2, 32), 2.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_depend_on_the_weight_are_refused_by_name(layer: DoRA | IA3 | GLoRA) -> None:
    with pytest.raises(UnsupportedLayer, match=rf"to_q: what a {type(layer).__name__} layer does depends on") as caught:
        resize(Adapter("sd15", {**adapter().layers, LINEAR: layer}), "rank", 2)
    assert "\n" not in caught.value.message


# --- rules ------------------------------------------------------------------------------------------------------------


def test_the_rules_by_hand() -> None:
    """Of 8, 4, 2, 1 the sum is 15, the squares are 64, 16, 4, 1 of 85."""
    values = torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert [sv_ratio(values, ratio) for ratio in (1, 1.9, 2, 7.9, 8, 100)] == [1, 1, 2, 3, 4, 4]
    assert [sv_cumulative(values, share) for share in (0.5, 8 / 15, 0.54, 0.8, 0.81, 1)] == [1, 1, 2, 2, 3, 4]
    assert [sv_fro(values, share) for share in (0.86, 0.87, 0.97, 0.98, 1)] == [1, 2, 2, 3, 4]  # roots: .868 .970 .994
    assert [RULES["energy"].rank(values, share) for share in (0.75, 0.76, 0.94, 0.95, 1)] == [1, 2, 2, 3, 4]
    assert [RULES["rank"].rank(values, rank) for rank in (1, 3.0)] == [1, 3]


def sd_scripts(values: Tensor, method: str, number: float) -> int:
    """What resize_lora.py of kohya-ss/sd-scripts keeps, worked out from its description: one more than asked for."""
    if method == "sv_ratio":
        enough = sum(value > values[0] / number for value in values)
    else:
        power = 2 if method == "sv_fro" else 1
        sums = (values**power).cumsum(0) / (values**power).sum()
        enough = 1 + sum(value < number**power for value in sums)
    return max(1, min(int(enough), len(values) - 1)) + 1


@pytest.mark.parametrize(("method", "number"), [("sv_ratio", 3.3), ("sv_fro", 0.83), ("sv_cumulative", 0.61)])
def test_numbers_mean_what_they_mean_in_sd_scripts(method: str, number: float) -> None:
    for seed in range(20):
        values = torch.rand(12, generator=torch.Generator().manual_seed(seed)).double().sort(descending=True).values
        ours = RULES[method].rank(values, number)
        assert min(ours, 11) + 1 == sd_scripts(values, method, number)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_energy_is_met_with_the_smallest_rank(share: float) -> None:
    source = adapter()
    for target, layer in resize(source, "energy", share).layers.items():
        squares = spectrum(source.layers[target]).square()
        kept = squares.cumsum(0) / squares.sum()
        assert float(kept[layer.rank - 1]) >= share - 1e-6
        assert layer.rank == 1 or float(kept[layer.rank - 2]) < share


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        ([10, 9, 8, 0.1, 0.1, 0.09, 0.08], 3),  # a head, then a flat tail
        ([5, 5, 5, 5, 0.001], 4),  # a flat head, then a drop
        ([8, 4, 2, 1, 0.5], 5),  # a straight line has no knee
        ([3, 3, 3], 3),
        ([2, 1], 2),
        ([1], 1),
        ([100, 1, 0.9, 0.8], 1),
    ],
)
def test_the_knee(values: list[float], rank: int) -> None:
    assert knee(torch.tensor(values, dtype=torch.float64)) == rank


# --- sizes ------------------------------------------------------------------------------------------------------------


def brute(spectra: list[Spectrum], budget: float) -> float:
    """The largest sum of squared singular values that any ranks within the budget keep."""
    return max(
        sum(float(one.values[:rank].square().sum()) for one, rank in zip(spectra, ranks, strict=True))
        for ranks in itertools.product(*(range(1, len(one.values) + 1) for one in spectra))
        if sum(one.cost * rank for one, rank in zip(spectra, ranks, strict=True)) <= budget
    )


def kept(spectra: list[Spectrum], ranks: list[int]) -> float:
    return sum(float(one.values[:rank].square().sum()) for one, rank in zip(spectra, ranks, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_sharing_out_bytes_is_optimal(seed: int) -> None:
    """Exactly so where ranks cost alike; else it lacks less than the largest gain that was left lying."""
    make = torch.Generator().manual_seed(seed)
    values = [torch.rand(5, generator=make).sort(descending=True).values.double() for _ in range(4)]
    alike = [Spectrum(one, 10) for one in values]
    mixed = [Spectrum(one, cost) for one, cost in zip(values, (10, 4, 7, 25), strict=True)]
    for budget in range(46, 231, 23):
        assert kept(alike, spread(alike, budget)) == pytest.approx(brute(alike, budget), rel=1e-12)
        ranks = spread(mixed, budget)
        pairs = list(zip(mixed, ranks, strict=True))
        assert sum(one.cost * rank for one, rank in pairs) <= budget
        left = max((float(one.values[rank].square()) for one, rank in pairs if rank < 5), default=0.0)
        assert brute(mixed, budget) - left <= kept(mixed, ranks) <= brute(mixed, budget) + 1e-12
    assert kept(mixed, spread(mixed, 230)) == brute(mixed, 230)  # everything fits
    assert spread(alike, 39) is None and spread(alike, 40) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("format", "dtype"),
    [("kohya", "keep"), ("kohya", "fp32"), ("diffusers", "bf16"), ("peft", "keep")],
)
def test_a_file_is_never_larger_than_asked(format: str, dtype: str, tmp_path: Path) -> None:
    norm = Target("denoiser", "out.0")
    layers = {t: lora(s, 16, i, torch.float16, fall=0.6 + 0.1 * i) for i, (t, s) in enumerate(SHAPES.items())}
    source = Adapter("sd15", {**layers, norm: Norm(torch.ones(320))} if format == "kohya" else layers)
    whole = file_bytes(plan(source, tmp_path / "a", format, dtype)) / 1e6
    for megabytes in (0.8 * whole, 1.5 * whole):
        path = tmp_path / f"{megabytes}.safetensors"
        result = resized_to_fit(source, megabytes, path, format, dtype=dtype)
        expected = file_bytes(plan(result, path, format, dtype))
        convert.write(result, path, format, dtype=dtype)
        assert path.stat().st_size == expected <= megabytes * 1e6
        if megabytes < whole:
            assert len(set(ranks_of(result))) > 1  # where they count most, not everywhere alike
            assert expected > 0.96 * megabytes * 1e6  # little is left unused, a rank's bytes at most


def test_a_dialect_that_writes_factors_more_than_once_fits_too(tmp_path: Path) -> None:
    qkv = Target("denoiser", "double_blocks.0.img_attn.qkv")
    source = Adapter("flux", {qkv: lora((9216, 3072), 8, dtype=torch.float16, fall=0.9)})
    fused = resized_to_fit(source, 0.13, tmp_path / "k.safetensors", "kohya")
    split = resized_to_fit(source, 0.13, tmp_path / "d.safetensors", "diffusers")
    for result, format in ((fused, "kohya"), (split, "diffusers")):
        path = convert.write(result, tmp_path / f"{format}.safetensors", format)
        assert path.stat().st_size <= 130_000
    assert ranks_of(split)[0] < ranks_of(fused)[0]


def test_a_size_beats_equal_ranks_of_the_same_size(tmp_path: Path) -> None:
    layers = {target: lora(shape, 16, i, fall=0.5 + 0.15 * i) for i, (target, shape) in enumerate(SHAPES.items())}
    source = Adapter("sd15", layers)
    equal = resize(source, "rank", 6)
    spread_out = resized_to_fit(source, file_bytes(plan(equal, "a")) / 1e6 + 0.004, tmp_path / "a", "kohya")
    assert file_bytes(plan(spread_out, "a")) <= file_bytes(plan(equal, "a")) + 4000
    assert difference(spread_out, source).relative_error < 0.8 * difference(equal, source).relative_error


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        ("rank", 0, "rank 0: give a whole number from 1"),
        ("rank", 2.5, "rank 2.5: give a whole number"),
        ("energy", 0, "energy 0: give a share between 0 and 1"),
        ("energy", 1.1, "energy 1.1: give a share"),
        ("energy", math.nan, "energy nan: give a share"),
        ("sv_fro", -0.5, "sv_fro -0.5: give a share"),
        ("sv_cumulative", 2, "sv_cumulative 2: give a share"),
        ("sv_ratio", 0.5, "sv_ratio 0.5: give a number from 1"),
        ("size", 0, "size 0: give megabytes"),
        ("size", 0.005, r"size 0.005 MB: too small, rank 1 everywhere takes 0.0\d+ MB; give at least 0.0\d+MB"),
        ("best", 1, "unknown rule 'best': choose one of rank, energy"),
    ],
)
def test_numbers_at_fault_are_one_line(rule: str, value: float, words: str) -> None:
    with pytest.raises(BadConfig, match=words) as caught:
        resize(adapter(), rule, value)
    assert "\n" not in caught.value.message


def test_the_smallest_size_that_is_named_is_enough() -> None:
    with pytest.raises(BadConfig) as caught:
        resize(adapter(), "size", 0.001)
    least = float(caught.value.message.split("at least ")[1].split("MB")[0])
    assert ranks_of(resize(adapter(), "size", least)) == [1, 1, 1, 1]


def test_other_faults_are_one_line() -> None:
    faults = (({"conv_rank": 0}, "conv rank 0"), ({"dtype": "fp8"}, "'fp8'"), ({"device": "gpu"}, "gpu"))
    for arguments, words in faults:
        with pytest.raises(BadConfig, match=words):
            resize(adapter(), "rank", 4, **arguments)
    broken = adapter()
    broken.layers[CONV].up[0, 0] = math.nan
    with pytest.raises(BadValues, match="1 of 4 layers hold NaN or infinity, first denoiser input_blocks.1.0"):
        resize(broken, "rank", 4)
    with pytest.raises(BadConfig, match="no layer changes a matrix"):
        resize(Adapter("sd15", {Target("denoiser", "out.0"): Norm(torch.ones(4))}), "rank", 4)


# --- the command line and the node ------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a half-precision LoRA and one of another algorithm; the current one."""
    convert.write(adapter(dtype=torch.float16), tmp_path / "a.safetensors")
    dora = Adapter("sd15", {LINEAR: DoRA(lora((40, 32)), torch.ones(40, 1))})
    convert.write(dora, tmp_path / "dora.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "rule",
    ["--rank 5", "--energy 0.9", "--ratio 4", "--fro 0.9", "--cumulative 0.8", "--knee", "--size 11KB"],
)
def test_resize_states_ranks_size_and_error(rule: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resize", "a.safetensors", "o.safetensors", *rule.split(), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    before, after = convert.read("a.safetensors"), convert.read("o.safetensors")
    pairs = [(after.layers[target], layer) for target, layer in before.layers.items()]
    assert said["relative_error"] == pytest.approx(shared(pairs), abs=1e-5) and said["relative_error"] > 0
    found = ranks_of(after)
    assert said["ranks"] == {"min": min(found), "mean": sum(found) / 4, "max": max(found)}
    assert said["bytes"] == Path("o.safetensors").stat().st_size < Path("a.safetensors").stat().st_size
    assert {layer.up.dtype for layer in after.layers.values()} == {torch.float16} and said["format"] == "kohya"
    assert main(["resize", "a.safetensors", "o.safetensors", *rule.split(), "--force"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("resized to 0.0") and f"ranks {min(found)} to {max(found)} (mean " in line
    assert ", 4 layers, " in line and ", relative error 0." in line


def test_a_resized_file_can_be_made_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for call in ("resize --size 11KB --conv-rank 2", "prune --below 0.01", "rescale --alpha 3"):
        verb, *others = call.split()
        assert main([verb, "a.safetensors", "o.safetensors", *others, "--force"]) == 0
        assert main(["redo", "o.safetensors", "again.safetensors", "--force"]) == 0
        assert "the same bit for bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("a.safetensors o --rank 0", "rank 0: give a whole number"),
        ("a.safetensors o --energy 1.5", "energy 1.5"),
        ("a.safetensors o", "is required"),
        ("a.safetensors o --rank 4 --knee", "not allowed with argument --rank"),
        ("a.safetensors o --size 40 apples", "apples"),
        ("a.safetensors o --size forty", "'forty' is no size"),
        ("a.safetensors o --size 1KB", "too small, rank 1 everywhere takes"),
        ("a.safetensors o --rank 4 --conv-rank 0", "conv rank 0"),
        ("a.safetensors o --rank 4 --device tpu9", "device 'tpu9'"),
        ("a.safetensors o --rank 4 --dtype int3", "'int3'"),
        ("dora.safetensors o --rank 4", "dora.safetensors: denoiser.input_blocks.1.1.transformer_blocks.0.attn1.to_q"),
        ("a.safetensors a.safetensors --rank 4", "is one of the inputs"),
    ],
)
def test_a_call_at_fault_is_one_line(call: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resize", *call.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lorasmith: error: ") and err.count("\n") == 1 and words in err
    assert sorted(path.name for path in here.iterdir()) == ["a.safetensors", "dora.safetensors"]


def test_another_dtype_states_the_error_that_it_causes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert.write(adapter(), here / "wide.safetensors")
    for dtype, least, most in (("fp16", 1e-5, 1e-3), ("bf16", 1e-4, 1e-2)):
        out = f"{dtype}.safetensors"
        assert main(["convert", "wide.safetensors", out, "--to", "kohya", "--dtype", dtype, "--json"]) == 0
        error = json.loads(capsys.readouterr().out)["relative_error"]
        back = convert.read(out)
        pairs = [(back.layers[target], layer) for target, layer in adapter().layers.items()]
        assert least < error < most and error == pytest.approx(shared(pairs), rel=1e-4)
        assert main(["convert", "wide.safetensors", out, "--to", "kohya", "--dtype", dtype, "--force"]) == 0
        assert capsys.readouterr().out == f"converted 4 layers, rank 16, relative error {error:.3g}\n"


def test_the_node_resizes_by_any_rule_and_reports() -> None:
    source = adapter(dtype=torch.float16)
    for rule, value in (*RULES_GIVEN, ("size", 0.016)):
        result = node.resize_lora(source, rule, value, 0, "keep")
        lora_out, report = result.values
        found = ranks_of(lora_out)
        assert f"ranks {min(found)} to {max(found)}" in report and "relative error 0." in report
        assert ranks_of(resize(source, rule, value)) == found
    assert node.resize_lora(source, "rank", 6, 2, "bf16").values[0].layers[CONV].rank == 2
    with pytest.raises(LorasmithError, match="energy 32: give a share"):
        node.resize_lora(source, "energy", 32, 0, "keep")
