"""Laws of the operations: what they do to weight changes, against dense float64 truth and against peft."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues, UnsupportedLayer, WrongArchitecture
from lorasmith.lora_core.layers import Additive, Full, LoRA, Norm
from lorasmith.lora_core.ops.health import Health, health, refuse_bad_values
from lorasmith.lora_core.ops.lowrank import Factors, distance, kept_rank, norm, truncated
from lorasmith.lora_core.ops.merge import Weighted, merge, store_dtype
from lorasmith.lora_core.ops.report import difference, relative_error
from lorasmith.lora_core.ops.scale import scale

LINEAR, CONV, POINT, TEXT = (
    Target("denoiser", "attn.to_q"),
    Target("denoiser", "res.conv"),
    Target("denoiser", "proj_in"),
    Target("clip_l", "mlp.fc1"),
)
SHAPES = {LINEAR: (24, 20), CONV: (12, 8, 3, 3), POINT: (16, 16, 1, 1), TEXT: (20, 24)}


def lora(
    shape: tuple[int, ...],
    rank: int,
    seed: int,
    alpha: float = 3.0,
    dtype: torch.dtype = torch.float32,
    mid: bool = False,
) -> LoRA:
    """A random layer for a weight of that shape."""
    generator = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(shape) - 2)
    kernel = ones if mid else shape[2:]
    down = torch.randn(rank, shape[1], *kernel, generator=generator).to(dtype)
    up = torch.randn(shape[0], rank, *ones, generator=generator).to(dtype)
    core = torch.randn(rank, rank, *shape[2:], generator=generator).to(dtype) if mid else None
    return LoRA(down, up, alpha, core)


def adapter(seed: int, rank: int = 4, dtype: torch.dtype = torch.float32, architecture: str | None = "sd15") -> Adapter:
    """A layer for each of the shapes above."""
    layers = {target: lora(shape, rank, seed + i, dtype=dtype) for i, (target, shape) in enumerate(SHAPES.items())}
    return Adapter(architecture, layers, {"ss_base_model_version": "sd_v1", "ss_output_name": f"style{seed}"})


def dense(layer: Additive) -> Tensor:
    """The weight change in float64, worked out without the code under test."""
    if not isinstance(layer, LoRA):
        return layer.delta().double()
    up, down = layer.up.double().flatten(1), layer.down.double()
    if layer.mid is not None:
        core = torch.einsum("or,rs...,si->oi...", up, layer.mid.double(), down.flatten(1))
        return core * layer.alpha / layer.rank
    return torch.einsum("or,ri...->oi...", up, down) * layer.alpha / layer.rank


def truth(parts: list[Weighted], target: Target) -> Tensor:
    """The weighted sum of the dense changes."""
    terms = []
    for part in parts:
        te = part.strength if part.text_encoder is None else part.text_encoder
        strength = part.strength if target.component == "denoiser" else te
        if target in part.adapter.layers:
            terms.append(dense(part.adapter.layers[target]) * strength)
    return torch.stack(terms).sum(0)


def assert_close(layer: Additive, wanted: Tensor, tolerance: float = 3e-7) -> None:
    """Relative Frobenius distance to the truth."""
    assert dense(layer).shape == wanted.shape
    assert float((dense(layer) - wanted).norm() / wanted.norm()) <= tolerance


def same_bits(one: LoRA, other: LoRA) -> bool:
    return one.alpha == other.alpha and all(map(torch.equal, one.tensors(), other.tensors()))


# --- scale ----------------------------------------------------------------------------------------------------------


def test_scale_multiplies_changes_and_keeps_the_tensors() -> None:
    source = adapter(0, dtype=torch.float16)
    result = scale(source, 0.7, text_encoder=-2)
    for target, layer in source.layers.items():
        found = result.layers[target]
        assert_close(found, dense(layer) * (0.7 if target.component == "denoiser" else -2), 1e-12)
        assert torch.equal(found.up, layer.up) and torch.equal(found.down, layer.down)
    assert all(scale(source).layers[target] is layer for target, layer in source.layers.items())


def test_scale_by_zero_does_nothing_in_any_host() -> None:
    for layer in scale(adapter(0), 0).layers.values():
        assert layer.alpha != 0 and not dense(layer).any()  # an alpha of 0 is read as "none" by some
    kept = scale(adapter(0), 1, text_encoder=0).layers
    assert dense(kept[LINEAR]).any() and not dense(kept[TEXT]).any()


def test_scale_keeps_what_the_metadata_says_but_for_name_hashes_and_alpha() -> None:
    stale = {"sshs_model_hash": "1", "sshs_legacy_hash": "2", "lora_adapter_metadata": "{}", "ss_network_alpha": "3"}
    source = Adapter("sd15", adapter(0).layers, {**adapter(0).metadata, **stale, "ss_tag_frequency": "{}"})
    result = scale(replace(source, origin={"file": "a"}), 0.5)
    metadata = result.metadata
    assert metadata["ss_tag_frequency"] == "{}" and metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "1.5"
    assert not {"sshs_model_hash", "sshs_legacy_hash", "lora_adapter_metadata", "ss_output_name"} & metadata.keys()
    operation = {"method": "scale", "strength": 0.5, "text_encoder": None}
    assert result.origin == {"operation": operation, "inputs": [{"file": "a"}]}


def test_a_strength_that_is_no_number_is_refused() -> None:
    for strength in (math.nan, math.inf):
        with pytest.raises(BadConfig, match="give a finite number"):
            scale(adapter(0), strength)
        with pytest.raises(BadConfig, match="give a finite number"):
            merge([Weighted(adapter(0), 1, strength)])


@pytest.mark.parametrize("strength", [1e40, -1e7, 1e-7, -1e-50])
def test_a_strength_that_no_file_can_hold_is_refused_by_name(strength: float) -> None:
    with pytest.raises(BadConfig, match=f"^strength {re.escape(f'{strength:g}')}: .* 0, or a number from 1e-06 to 1e"):
        scale(adapter(0), 1, strength)
    with pytest.raises(BadConfig, match="is beyond what a file can hold"):
        merge([Weighted(adapter(0), strength)])


# --- exact merge ----------------------------------------------------------------------------------------------------

STRENGTHS = [(1, 1), (0.7, 0.4), (-1, 0.5), (0.7, -0.7), (2.5, 1e-3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strengths", STRENGTHS)
def test_an_exact_merge_is_the_weighted_sum(strengths: tuple[float, float], dtype: torch.dtype) -> None:
    parts = [
        Weighted(adapter(0, 4, dtype), strengths[0]),
        Weighted(adapter(9, 7, dtype), strengths[1], text_encoder=0.3),
    ]
    result = merge(parts)
    assert result.layers.keys() == SHAPES.keys() and result.architecture == "sd15"
    for target, layer in result.layers.items():
        assert layer.rank == 11 and layer.alpha == 11.0 and layer.shape == SHAPES[target]
        assert layer.up.shape[2:] == (1,) * (len(SHAPES[target]) - 2)
        assert_close(layer, truth(parts, target))
    assert relative_error(result, parts).relative_error < 1e-7


def test_an_exact_merge_keeps_bits_where_it_can() -> None:
    first, second = adapter(0, 4, torch.float16), adapter(9, 4, torch.float16)
    plain = merge([Weighted(first), Weighted(second, 2.0)]).layers[LINEAR]
    assert torch.equal(plain.down, torch.cat([first.layers[LINEAR].down, second.layers[LINEAR].down]))
    assert plain.down.dtype == torch.float16
    assert plain.up.dtype == torch.float32  # 3 / 4 of a half-precision value is no half-precision value
    quarter = Adapter("sd15", {LINEAR: lora((24, 20), 4, 0, alpha=2.0, dtype=torch.float16)})
    assert merge([Weighted(quarter), Weighted(quarter, -2)]).layers[LINEAR].up.dtype == torch.float16
    mixed = merge([Weighted(first), Weighted(adapter(9, 4, torch.bfloat16))]).layers[LINEAR]
    assert mixed.down.dtype == torch.float32


def test_one_adapter_at_strength_one_and_strength_zero_are_identities() -> None:
    source, other = adapter(0, dtype=torch.float16), adapter(9)
    for result in (merge([Weighted(source)]), merge([Weighted(source), Weighted(other, 0)])):
        assert all(same_bits(result.layers[target], layer) for target, layer in source.layers.items())
    half = merge([Weighted(source), Weighted(other, 0, text_encoder=1)])
    assert same_bits(half.layers[LINEAR], source.layers[LINEAR]) and half.layers[TEXT].rank == 8


def test_a_target_that_one_adapter_lacks_keeps_its_tensors() -> None:
    whole, few = adapter(0, dtype=torch.float16), Adapter(None, {LINEAR: lora((24, 20), 2, 5)})
    parts = [Weighted(whole, 0.7), Weighted(few, 0.7)]
    result = merge(parts)
    assert torch.equal(result.layers[CONV].up, whole.layers[CONV].up)
    assert_close(result.layers[CONV], truth(parts, CONV), 1e-12)
    assert result.layers[LINEAR].rank == 6
    assert result.metadata["ss_network_dim"] == "Dynamic" and result.metadata["ss_network_alpha"] == "Dynamic"


@pytest.mark.parametrize("mids", [(True, False), (True, True)])
def test_tucker_cores_are_absorbed(mids: tuple[bool, bool]) -> None:
    parts = [
        Weighted(Adapter("sd15", {CONV: lora(SHAPES[CONV], rank, seed, mid=mid)}), strength)
        for rank, seed, mid, strength in ((3, 0, mids[0], 0.7), (5, 1, mids[1], -0.4))
    ]
    layer = merge(parts).layers[CONV]
    assert layer.mid is None and layer.down.shape == (8, 8, 3, 3)
    assert_close(layer, truth(parts, CONV))


def test_a_linear_layer_and_a_one_by_one_convolution_add_up() -> None:
    parts = [
        Weighted(Adapter("sd15", {POINT: lora((16, 16, 1, 1), 2, 0)})),
        Weighted(Adapter(None, {POINT: lora((16, 16), 2, 1)})),
    ]
    layer = merge(parts).layers[POINT]
    assert layer.shape == (16, 16, 1, 1)
    wanted = dense(parts[0].adapter.layers[POINT]) + dense(parts[1].adapter.layers[POINT]).reshape(16, 16, 1, 1)
    assert_close(layer, wanted)
    assert relative_error(merge(parts), parts).relative_error < 1e-7


def test_dense_changes_add_up_in_float32() -> None:
    norm_target, bias = Target("denoiser", "norm"), Target("denoiser", "attn.to_q", parameter="bias")
    full = Full(torch.randn(24, 20, generator=torch.Generator().manual_seed(3)).half())
    first = Adapter(
        "sd15", {LINEAR: lora((24, 20), 4, 0), norm_target: Norm(torch.ones(8).half()), bias: Full(torch.ones(24))}
    )
    second = Adapter("sd15", {LINEAR: full, norm_target: Norm(torch.full((8,), 0.1).half())})
    for arguments in ({}, {"method": "svd", "rank": 2}):
        parts = [Weighted(first, 0.7), Weighted(second, -0.3)]
        layers = merge(parts, **arguments).layers
        if arguments:  # the matrix as the best LoRA of the rank; vectors have none
            values = torch.linalg.svdvals(truth(parts, LINEAR))
            error = float((dense(layers[LINEAR]) - truth(parts, LINEAR)).norm())
            assert layers[LINEAR].rank == 2 and error == pytest.approx(float(values[2:].norm()), rel=1e-5)
        else:
            assert type(layers[LINEAR]) is Full and layers[LINEAR].diff.dtype == torch.float32
            assert_close(layers[LINEAR], truth(parts, LINEAR))
        assert type(layers[norm_target]) is Norm
        assert_close(layers[norm_target], truth(parts, norm_target))
        assert_close(layers[bias], torch.full((24,), 0.7, dtype=torch.float64))


def test_eight_bit_floats_merge() -> None:
    narrow = [adapter(seed, dtype=torch.float8_e4m3fn) for seed in (0, 9)]
    assert merge([Weighted(part) for part in narrow]).layers[LINEAR].down.dtype == torch.float8_e4m3fn
    parts = [Weighted(narrow[0]), Weighted(adapter(9, dtype=torch.float16), 0.5)]
    assert_close(merge(parts).layers[LINEAR], truth(parts, LINEAR))


# --- svd merge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", SHAPES)
@pytest.mark.parametrize("rank", [1, 5, 9])
def test_an_svd_merge_is_the_best_of_its_rank(rank: int, target: Target) -> None:
    parts = [Weighted(adapter(0, 4), 0.7), Weighted(adapter(9, 6), -0.4)]
    result = merge(parts, "svd", rank=rank)
    layer, wanted = result.layers[target], truth(parts, target)
    values = torch.linalg.svdvals(wanted.flatten(1))
    optimum = float(values[rank:].square().sum().sqrt())  # Eckart and Young
    assert layer.rank == rank and layer.alpha == rank and layer.shape == SHAPES[target]
    assert abs(float((dense(layer) - wanted).norm()) - optimum) <= 1e-5 * float(wanted.norm())
    share = relative_error(Adapter("sd15", {target: layer}), parts).shares[target]
    assert share.error == pytest.approx(optimum, rel=1e-4) and share.size == pytest.approx(
        float(wanted.norm()), rel=1e-12
    )
    balance = layer.up.flatten(1).norm(dim=0) / layer.down.flatten(1).norm(dim=1)
    assert torch.allclose(balance, torch.ones(rank), atol=1e-4)


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999, 1.0])
def test_energy_keeps_the_smallest_rank_with_that_share(energy: float) -> None:
    parts = [Weighted(adapter(0, 4)), Weighted(adapter(9, 6), 0.5)]
    for target, layer in merge(parts, "svd", energy=energy).layers.items():
        squares = torch.linalg.svdvals(truth(parts, target).flatten(1)).square()
        shares = squares.cumsum(0) / squares.sum()
        assert float(shares[layer.rank - 1]) >= energy - 1e-6
        assert layer.rank == 1 or float(shares[layer.rank - 2]) < energy
    capped = merge(parts, "svd", rank=2, energy=1.0).layers
    assert all(layer.rank == 2 for layer in capped.values())


def test_kept_rank_counts_squares_and_never_gives_nothing() -> None:
    values = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert [kept_rank(values, energy=share) for share in (0.1, 0.6, 0.7, 0.9, 1.0)] == [1, 1, 2, 3, 3]
    assert kept_rank(values, rank=9) == 4 and kept_rank(torch.zeros(3), energy=0.5) == 1


def test_an_svd_merge_invents_no_rank() -> None:
    source = adapter(0, 4)
    assert same_bits(merge([Weighted(source)], "svd", rank=16).layers[LINEAR], source.layers[LINEAR])
    both = merge([Weighted(source), Weighted(adapter(9, 3))], "svd", rank=16)
    assert both.layers[LINEAR].rank == 7
    twice = merge([Weighted(source), Weighted(source, 0.5)], "svd", energy=1.0)
    assert twice.layers[LINEAR].rank == 4
    fat = Adapter("sd15", {POINT: lora((16, 16, 1, 1), 30, 0)})
    assert merge([Weighted(fat)], "svd", rank=64).layers[POINT].rank == 16


def test_layers_that_cancel_out_become_zero_and_not_noise() -> None:
    source = adapter(0, dtype=torch.float16)
    bias = Target("denoiser", "attn.to_q", parameter="bias")
    dense = Adapter("sd15", {**source.layers, bias: Full(torch.randn(24))})
    parts = [Weighted(dense), Weighted(source, -0.3, text_encoder=1), Weighted(source, -0.7, text_encoder=1)]
    for arguments in ({"rank": 2}, {"energy": 0.9}):
        result = merge(parts, "svd", **arguments)
        assert not result.layers[CONV].delta().any() and result.layers[CONV].shape == SHAPES[CONV]
        report = relative_error(result, parts)
        assert report.per_target[CONV] == report.per_target[LINEAR] == 0.0 and report.worst < 1
    exact = relative_error(merge(parts), parts)
    assert exact.per_target[CONV] == 0.0 and exact.worst < 1e-6
    noise = Adapter("sd15", {CONV: lora(SHAPES[CONV], 1, 0)})
    assert relative_error(noise, parts).per_target[CONV] == math.inf


@pytest.mark.parametrize("arguments", [{}, {"method": "svd", "rank": 2}, {"method": "svd", "energy": 0.9}])
def test_a_sum_that_is_zero_everywhere_is_refused(arguments: dict[str, object]) -> None:
    source = Adapter(
        "sd15", {**adapter(0).layers, Target("denoiser", "norm"): Norm(torch.randn(8))}, adapter(0).metadata
    )
    with pytest.raises(BadConfig, match="^style0, adapter: cancel each other out at these strengths") as refusal:
        merge([Weighted(source), Weighted(scale(source, 0.3), -1 / 0.3)], **arguments)
    assert "\n" not in refusal.value.message
    nearly = [Weighted(source), Weighted(source, -1 + 1e-5)]
    assert relative_error(merge(nearly, **arguments), nearly).relative_error < 1
    idle = [Weighted(scale(source, 0)), Weighted(scale(source, 0), 2)]  # nothing cancels where nothing is
    assert relative_error(merge(idle, **arguments), idle).relative_error == 0.0


# --- what merging refuses -------------------------------------------------------------------------------------------


def test_calls_at_fault_are_refused() -> None:
    part = Weighted(adapter(0))
    for parts, arguments, text in (
        ([], {}, "needs at least one"),
        ([part], {"method": "average"}, "unknown merge method 'average': choose one of exact, svd"),
        ([part], {"rank": 4}, "exact merge keeps every rank"),
        ([part], {"method": "svd"}, "needs a rank, or an energy"),
        ([part], {"method": "svd", "rank": 0}, "rank 0"),
        ([part], {"method": "svd", "energy": 1.5}, "energy 1.5"),
        ([Weighted(part.adapter, 0)], {}, "nothing is left to merge"),
    ):
        with pytest.raises(BadConfig, match=text) as refusal:
            merge(parts, **arguments)
        assert "\n" not in refusal.value.message


def test_families_must_agree_and_unknown_ones_agree_with_any() -> None:
    parts = [
        Weighted(adapter(0), source="a.safetensors"),
        Weighted(adapter(9, architecture="sdxl"), source="b.safetensors"),
    ]
    with pytest.raises(WrongArchitecture, match="a.safetensors is made for sd15, b.safetensors for sdxl"):
        merge(parts)
    assert merge([Weighted(adapter(0, architecture=None)), Weighted(adapter(9))]).architecture == "sd15"
    assert merge([Weighted(adapter(0, architecture=None))]).architecture is None


@pytest.mark.parametrize(
    "layer", [lora((24, 30), 2, 0), lora((48, 20), 2, 0), Full(torch.ones(24)), lora((24, 20, 3, 3), 2, 0)]
)
def test_shapes_must_agree(layer: LoRA | Full) -> None:
    parts = [Weighted(adapter(0)), Weighted(Adapter("sd15", {LINEAR: layer}))]
    with pytest.raises(BadValues, match=r"attn.to_q: shapes .* differ"):
        merge(parts)


def test_broken_weights_are_not_merged() -> None:
    with pytest.raises(
        BadValues, match=r"bad.safetensors: 1 of 1 layers hold NaN or infinity, first denoiser attn.to_q"
    ):
        merge([Weighted(adapter(0)), Weighted(broken(math.nan), source="bad.safetensors")])


def test_embeddings_are_carried_along_and_must_not_clash() -> None:
    def carrying(value: float, key: str = "emb") -> Weighted:
        return Weighted(Adapter("sd15", adapter(0).layers, {}, {key: torch.full((2,), value)}))

    assert merge([carrying(1), carrying(1), carrying(2, "other")]).extras.keys() == {"emb", "other"}
    with pytest.raises(UnsupportedLayer, match="'emb' is in two adapters and differs"):
        merge([carrying(1), carrying(2)])


def test_merged_metadata_says_what_holds_for_all_inputs_and_no_more() -> None:
    one = {
        "ss_v2": "False",
        "ss_sd_model_name": "x",
        "ss_tag_frequency": "{}",
        "lorasmith.a": "1",
        "sshs_model_hash": "1",
    }
    two = {"ss_sd_model_name": "y", "lorasmith.a": "1", "lorasmith.recipe": "old", "ss_output_name": "b"}
    parts = [
        Weighted(
            Adapter("sd15", adapter(0).layers, {"ss_base_model_version": "sd_v1", **one}), 0.7, source="a.safetensors"
        ),
        Weighted(Adapter("sd15", adapter(9).layers, two), 0.5, text_encoder=0),
    ]
    result = merge(parts, "svd", rank=3)
    metadata = result.metadata
    assert result.origin is not None and result.origin["inputs"] == [{"made": "in memory"}] * 2
    assert result.origin["operation"] == {
        "method": "svd",
        "rank": 3,
        "energy": None,
        "parts": [{"source": "a.safetensors", "strength": 0.7}, {"source": "b", "strength": 0.5, "text_encoder": 0}],
    }
    dims = {"ss_network_dim": "3", "ss_network_alpha": "3.0"}
    assert metadata == {"ss_base_model_version": "sd_v1", "ss_v2": "False", "lorasmith.a": "1", **dims}
    assert (
        "ss_v2" not in merge([parts[0], Weighted(Adapter(None, parts[0].adapter.layers, {"ss_v2": "True"}))]).metadata
    )


@pytest.mark.parametrize("values", [[0.5, -0.25, 65504.0], [0.1], [1e-9], [1e6]])
def test_store_dtype_never_loses_a_bit(values: list[float]) -> None:
    tensor = torch.tensor(values)
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float32):
        assert torch.equal(store_dtype(tensor, dtype).float(), tensor)
    assert store_dtype(torch.tensor([0.5]), torch.float16).dtype == torch.float16


# --- report ---------------------------------------------------------------------------------------------------------


def test_the_reported_error_is_the_dense_one() -> None:
    approx, parts = adapter(50, 3), [Weighted(adapter(0, 4), 0.7), Weighted(adapter(9, 6), -0.4, text_encoder=2)]
    report = relative_error(approx, parts)
    wanted = {target: truth(parts, target) for target in SHAPES}
    errors = {target: float((dense(approx.layers[target]) - wanted[target]).norm()) for target in SHAPES}
    total = math.hypot(*errors.values()) / math.hypot(*(float(value.norm()) for value in wanted.values()))
    assert report.relative_error == pytest.approx(total, rel=1e-12)
    for target in SHAPES:
        assert report.per_target[target] == pytest.approx(errors[target] / float(wanted[target].norm()), rel=1e-12)
    assert report.worst == max(report.per_target.values())
    groups = report.grouped(lambda target: target.component)
    assert groups["clip_l"] == report.per_target[TEXT] and groups.keys() == {"denoiser", "clip_l"}


@pytest.mark.parametrize("step", [1e-3, 1e-7, 1e-12])
def test_small_errors_keep_their_digits(step: float) -> None:
    """Gram matrices would lose everything below 1e-8."""
    source = Adapter("sd15", {LINEAR: lora((24, 20), 4, 0, dtype=torch.float64)})
    layer = source.layers[LINEAR]
    moved = Adapter("sd15", {LINEAR: LoRA(layer.down * (1 + step), layer.up, layer.alpha)})
    assert difference(moved, source).relative_error == pytest.approx(step, rel=1e-3)
    other = Factors(torch.cat([layer.up, layer.up * step], 1), torch.cat([layer.down, layer.down]))
    assert distance(other, Factors(layer.up, layer.down)) == pytest.approx(
        step * norm(Factors(layer.up, layer.down)), rel=1e-3
    )


def test_equal_adapters_differ_by_exactly_nothing() -> None:
    source = adapter(0, dtype=torch.float16)
    layers = {target: LoRA(old.down.clone(), old.up.clone(), old.alpha) for target, old in source.layers.items()}
    copy = Adapter(None, {**layers, Target("denoiser", "n"): Norm(torch.ones(3))})
    whole = Adapter("sd15", {**source.layers, Target("denoiser", "n"): Norm(torch.ones(3))})
    assert difference(copy, whole).relative_error == 0.0 == difference(copy, whole).worst


def test_what_is_missing_or_added_counts_with_its_whole_norm() -> None:
    source = adapter(0)
    less = Adapter("sd15", {target: layer for target, layer in source.layers.items() if target != CONV})
    assert difference(less, source).per_target[CONV] == 1.0 and difference(less, source).per_target[LINEAR] == 0.0
    assert difference(source, less).per_target[CONV] == math.inf == difference(source, less).worst
    norms = {target: float(dense(layer).norm()) for target, layer in source.layers.items()}
    expected = norms.pop(CONV) / math.hypot(*norms.values())
    assert difference(source, less).relative_error == pytest.approx(expected, rel=1e-12)


def test_a_dense_layer_is_compared_with_a_factored_one() -> None:
    source = adapter(0)
    full = Adapter("sd15", {target: Full(dense(layer).float()) for target, layer in source.layers.items()})
    assert 0 < difference(full, source).relative_error < 1e-7
    assert difference(scale(full, 1.5), source).relative_error == pytest.approx(0.5, rel=1e-6)


# --- health ---------------------------------------------------------------------------------------------------------


def broken(value: float) -> Adapter:
    layer = lora((24, 20), 4, 0)
    layer.up[3, 2] = value
    return Adapter("sd15", {LINEAR: layer})


def test_health_counts_bad_values_and_idle_layers() -> None:
    assert health(adapter(0)) == Health(nan=0, inf=0, zero_layers=0) and health(adapter(0)).sound
    assert health(broken(math.nan)) == Health(nan=1, inf=0, zero_layers=0)
    assert health(broken(-math.inf)) == Health(nan=0, inf=1, zero_layers=0)
    assert health(scale(adapter(0), 0)).zero_layers == 4
    idle = {LINEAR: Full(torch.zeros(2, 2)), TEXT: Norm(torch.tensor([0.0, 1.0]))}
    assert health(Adapter(None, idle)).zero_layers == 1
    bad_alpha = Adapter(None, {LINEAR: LoRA(torch.ones(1, 2), torch.ones(2, 1), math.nan)})
    assert health(bad_alpha).nan == 1
    narrow = Adapter(None, {LINEAR: Full(torch.tensor([math.nan, 0.0]).to(torch.float8_e5m2))})
    assert health(narrow) == Health(nan=1, inf=0, zero_layers=0)


def test_bad_values_are_refused_by_name() -> None:
    refuse_bad_values(adapter(0), "good.safetensors")
    with pytest.raises(BadValues) as refusal:
        refuse_bad_values(broken(math.inf), "folder/bad.safetensors")
    assert refusal.value.message == (
        "bad.safetensors: 1 of 1 layers hold NaN or infinity, first denoiser attn.to_q: "
        "the training failed there; take an earlier checkpoint"
    )


# --- peft as a second opinion ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("combination", ["cat", "svd"])
def test_merges_agree_with_peft(combination: str) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 24), torch.nn.Linear(24, 12))
    shared = {"target_modules": ["0", "1"], "init_lora_weights": False}
    configs = [peft.LoraConfig(r=rank, lora_alpha=alpha, **shared) for rank, alpha in ((4, 3), (6, 12))]
    wrapped = peft.get_peft_model(model, configs[0], adapter_name="first")
    wrapped.add_adapter("second", configs[1])
    names, strengths = ["first", "second"], [0.7, 0.4]

    def layer(name: str, module: str) -> LoRA:
        found = wrapped.base_model.model.get_submodule(module)
        down, up = found.lora_A[name].weight.detach(), found.lora_B[name].weight.detach()
        return LoRA(down, up, found.scaling[name] * found.r[name])

    parts = [
        Weighted(Adapter(None, {Target("denoiser", module): layer(name, module) for module in "01"}), strength)
        for name, strength in zip(names, strengths, strict=True)
    ]
    wrapped.add_weighted_adapter(names, strengths, "sum", combination_type=combination, svd_rank=5)
    ours = merge(parts) if combination == "cat" else merge(parts, "svd", rank=5)
    for target, found in ours.layers.items():
        assert_close(found, dense(layer("sum", target.module)), 1e-5)


def test_truncation_of_factors_is_that_of_their_product() -> None:
    generator = torch.Generator().manual_seed(1)
    product = Factors(torch.randn(9, 30, generator=generator), torch.randn(30, 7, generator=generator))
    assert norm(product) == pytest.approx(float(product.product().norm()), rel=1e-5)
    best = truncated(product, rank=3)
    left, values, right = torch.linalg.svd(product.product())
    assert torch.allclose(best.product(), left[:, :3] * values[:3] @ right[:3], atol=1e-3)
