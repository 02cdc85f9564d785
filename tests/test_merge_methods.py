"""Laws of the merge methods: against PEFT where it has the method, elsewhere against dense arithmetic done here."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues, UnsupportedLayer, WrongArchitecture
from lorasmith.lora_core.layers import Additive, DoRA, Full, LoHa, LoRA, Norm
from lorasmith.lora_core.ops import methods
from lorasmith.lora_core.ops.combine import karcher
from lorasmith.lora_core.ops.health import finite
from lorasmith.lora_core.ops.merge import Order, Weighted, merge
from lorasmith.lora_core.ops.methods import IDS, METHODS
from lorasmith.lora_core.ops.report import relative_error, wished_error
from lorasmith.lora_core.ops.scale import scale
from lorasmith.lora_core.ops.sparsify import Thinning, graded, largest, middle, random

LINEAR, CONV, NORM = Target("denoiser", "attn.to_q"), Target("denoiser", "conv"), Target("clip_l", "norm")
SHAPES = {LINEAR: (24, 20), CONV: (12, 8, 3, 3)}
ENTRIES = [row.id for row in METHODS if row.whole is None and not row.aligned]
SPHERES = ["slerp", "karcher"]
DENSITY = [row.id for row in METHODS if "density" in row.settings]


def lora(shape: tuple[int, ...], rank: int, seed: int, dtype: torch.dtype = torch.float32) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator).to(dtype)
    up = torch.randn(shape[0], rank, *(1,) * (len(shape) - 2), generator=generator).to(dtype)
    return LoRA(down, up, alpha=3.0)


def adapter(seed: int, rank: int = 3) -> Adapter:
    """A linear layer, a convolution and a norm."""
    layers: dict[Target, Any] = {
        target: lora(shape, rank, seed + i) for i, (target, shape) in enumerate(SHAPES.items())
    }
    layers[NORM] = Norm(torch.randn(8, generator=torch.Generator().manual_seed(seed)))
    return Adapter("sd15", layers, {"ss_output_name": f"style{seed}"})


def dense(layer: Additive) -> Tensor:
    return layer.delta().double()


def close(found: Adapter, wanted: dict[Target, Tensor], tolerance: float = 3e-7) -> None:
    """Every layer's change is the wanted one, to a relative tolerance."""
    assert found.layers.keys() == wanted.keys()
    for target, change in wanted.items():
        assert float((dense(found.layers[target]) - change).norm()) <= tolerance * float(change.norm()), target


def changes(adapter: Adapter, strength: float = 1.0) -> dict[Target, Tensor]:
    return {target: dense(layer) * strength for target, layer in adapter.layers.items()}


def added(*terms: dict[Target, Tensor]) -> dict[Target, Tensor]:
    return {target: torch.stack([term[target] for term in terms]).sum(0) for target in terms[0]}


def pair(first: float = 1.0, second: float = 1.0) -> list[Weighted]:
    return [Weighted(adapter(0), first, source="a"), Weighted(adapter(9, 5), second, source="b")]


# --- every method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", IDS)
def test_strength_0_leaves_a_part_out(method: str) -> None:
    arguments = {"rank": 64} if method == "svd" else {"density": 1.0} if method in DENSITY else {}
    close(merge(pair(1, 0), method, **arguments), changes(adapter(0)), 1e-6)


@pytest.mark.parametrize("method", [row.id for row in METHODS if row.fewest == 1])
def test_a_merge_of_one_is_that_one(method: str) -> None:
    arguments = {"rank": 64} if method == "svd" else {"density": 1.0} if method in DENSITY else {}
    result = merge([Weighted(adapter(0))], method, **arguments)
    for target, layer in adapter(0).layers.items():
        assert all(map(torch.equal, result.layers[target].tensors(), layer.tensors()))


@pytest.mark.parametrize("method", ["dare-linear", "magnitude-prune", "breadcrumbs"])
def test_density_1_is_the_plain_sum(method: str) -> None:
    close(merge(pair(0.7, -0.4), method, density=1.0), added(changes(adapter(0), 0.7), changes(adapter(9, 5), -0.4)))


@pytest.mark.parametrize("method", ["ties", "dare-ties", "della", "knots"])
def test_density_1_is_the_plain_sum_where_all_signs_agree(method: str) -> None:
    found = merge([Weighted(adapter(0), 0.5), Weighted(adapter(0), 0.25)], method, density=1.0, normalise=False)
    close(found, changes(adapter(0), 0.75), 1e-6)
    mean = merge([Weighted(adapter(0), 0.5), Weighted(adapter(0), 0.25)], method, density=1.0)
    close(mean, changes(adapter(0), 0.375), 1e-6)


@pytest.mark.parametrize("method", DENSITY)
def test_a_seed_settles_every_lot(method: str) -> None:
    draws = "seed" in methods.method(method).settings

    def made(seed: int, parts: list[Weighted]) -> dict[Target, Tensor]:
        return changes(merge(parts, method, **({"seed": seed} if draws else {})))

    turned = [Weighted(Adapter("sd15", dict(reversed(part.adapter.layers.items()))), 1.0) for part in pair()]
    first, again, other = made(1, pair()), made(1, turned), made(2, pair())
    assert all(torch.equal(first[target], again[target]) for target in first)
    assert draws != all(torch.equal(first[target], other[target]) for target in first)
    before = torch.get_rng_state()
    made(3, pair())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("method", IDS)
@pytest.mark.parametrize("rank", [2, None])
def test_the_stated_error_is_the_distance_to_the_methods_dense_result(method: str, rank: int | None) -> None:
    if (method, rank) in (("svd", None), ("exact", 2)):
        return
    order = Order(pair(0.7, 0.4), method, rank=rank)
    result = order.result()
    wanted = {
        wish.target: torch.stack([dense(part.layer) * part.strength for part in wish.parts]).sum(0)
        for wish in order.wishes()
    }
    report = wished_error(result, order.wishes())
    error = math.hypot(*(float((dense(result.layers[target]) - want).norm()) for target, want in wanted.items()))
    size = math.hypot(*(float(want.norm()) for want in wanted.values()))
    assert report.relative_error == pytest.approx(error / size, rel=1e-5, abs=1e-7)
    exact = methods.method(method).whole is not None or methods.method(method).aligned
    assert (report.relative_error < 3e-7) == (rank is None and exact)
    if rank is None:
        return
    for target in SHAPES:
        values = torch.linalg.svdvals(wanted[target].flatten(1))
        assert result.layers[target].rank == 2
        assert report.shares[target].error == pytest.approx(float(values[2:].norm()), rel=1e-5)  # none is nearer


@pytest.mark.parametrize("method", ENTRIES)
def test_without_a_rank_the_ranks_add_up(method: str) -> None:
    layers = merge(pair(), method).layers
    assert layers[LINEAR].rank == layers[CONV].rank == 8 and type(layers[NORM]) is Norm
    assert merge([*pair(), *pair(), *pair()], method).layers[LINEAR].rank == 20  # no matrix has more
    assert merge(pair(), method, energy=0.5).layers[LINEAR].rank < 8


@pytest.mark.parametrize("method", IDS)
def test_the_operation_is_the_call_that_repeats_it(method: str) -> None:
    given = {"rank": 4} if method != "exact" else {}
    first = merge(pair(0.5, 0.25), method, **given)
    operation = dict(first.origin["operation"])
    parts = [Weighted(*pair()[n : n + 1][0].__dict__.values()) for n in range(2)]
    strengths = [part["strength"] for part in operation.pop("parts")]
    again = merge([Weighted(p.adapter, s, None, p.source) for p, s in zip(parts, strengths, strict=True)], **operation)
    for target, layer in first.layers.items():
        assert all(map(torch.equal, again.layers[target].tensors(), layer.tensors()))


# --- entries: which stay ----------------------------------------------------------------------------------------------


def lots(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_largest_keeps_that_many() -> None:
    change = torch.tensor([[3.0, -4.0, 1.0], [0.5, -2.0, 5.0]])
    assert largest(change, Thinning(0.5), lots()).tolist() == [[3.0, -4.0, 0.0], [0.0, 0.0, 5.0]]
    assert torch.equal(largest(change, Thinning(1.0), lots()), change)
    assert not largest(change, Thinning(0.1), lots()).any()  # not even one of six
    assert torch.equal(largest(torch.ones(4), Thinning(0.5), lots()), torch.ones(4))  # none of them is smaller


def test_middle_drops_both_ends() -> None:
    change = torch.arange(1.0, 11.0) * torch.tensor([1.0, -1.0] * 5)
    kept = middle(change, Thinning(0.5, gamma=0.2), lots())
    assert kept.abs().tolist() == [0, 0, 0, 4, 5, 6, 7, 8, 0, 0]
    assert torch.equal(middle(change, Thinning(1.0), lots()), change)


@pytest.mark.parametrize("thinning", [Thinning(0.3), Thinning(0.6, epsilon=0.4), Thinning(0.95)])
@pytest.mark.parametrize("keep", [random, graded])
def test_lots_keep_the_expected_value(keep: Any, thinning: Thinning) -> None:
    change = torch.randn(40, 500, generator=lots(5))
    kept = keep(change, thinning, lots())
    assert float((kept != 0).float().mean()) == pytest.approx(thinning.density, abs=0.02)
    assert float((kept * change.sign()).mean()) == pytest.approx(float(change.abs().mean()), rel=0.05)
    generator = lots(7)
    many = torch.stack([keep(change[:2], thinning, generator) for _ in range(400)]).mean(0)
    assert float((many - change[:2]).norm() / change[:2].norm()) < 0.2


def test_graded_prefers_large_entries() -> None:
    change = torch.arange(1.0, 1001.0).repeat(50, 1)
    kept = graded(change, Thinning(0.5, epsilon=0.6), lots()) != 0
    assert float(kept[:, :100].float().mean()) == pytest.approx(0.23, abs=0.03)
    assert float(kept[:, -100:].float().mean()) == pytest.approx(0.77, abs=0.03)
    assert float(graded(torch.tensor([5.0, 1.0]), Thinning(0.5, epsilon=1.0), lots())[0]) == 5.0


# --- PEFT -------------------------------------------------------------------------------------------------------------


def peft_model() -> tuple[Any, list[Adapter]]:
    """Two adapters on one layer in PEFT, and the same two here."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    configs = [
        peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
        for rank, alpha in ((4, 3), (6, 12))
    ]
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(20, 24)), configs[0], adapter_name="first")
    model.add_adapter("second", configs[1])
    found = model.base_model.model.get_submodule("0")
    target = Target("denoiser", "0")
    ours = [
        Adapter(None, {target: LoRA(found.lora_A[name].weight.detach(), found.lora_B[name].weight.detach(), alpha)})
        for name, alpha in (("first", 3.0), ("second", 12.0))
    ]
    return model, ours


def from_peft(model: Any, combination: str, strengths: list[float], rank: int, **settings: Any) -> Tensor:
    model.add_weighted_adapter(
        ["first", "second"], strengths, "sum", combination_type=combination, svd_rank=rank, **settings
    )
    return model.base_model.model.get_submodule("0").get_delta_weight("sum").detach()


@pytest.mark.parametrize(
    ("combination", "method", "strengths"),
    [
        ("cat", "exact", [0.7, 0.4]),
        ("svd", "svd", [0.7, 0.4]),
        ("magnitude_prune_svd", "magnitude-prune", [0.7, 0.4]),
        ("ties_svd", "ties", [0.6, 0.6]),  # unequal ones do not vote in PEFT, see below
        ("dare_linear_svd", "dare-linear", [0.7, 0.4]),
        ("dare_ties_svd", "dare-ties", [0.6, 0.6]),
    ],
)
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_methods_agree_with_peft(
    combination: str, method: str, strengths: list[float], density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT draws from torch's own generator, so that its lots are handed to it."""
    model, adapters = peft_model()
    parts = [Weighted(adapter, strength) for adapter, strength in zip(adapters, strengths, strict=True)]
    masks = iter([lot(index) < density for index in range(2)])
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(masks).to(chances))
    sparse = {"density": density} if method in DENSITY else {}
    theirs = from_peft(model, combination, strengths, 7, **sparse)
    ours = merge(parts, method, **({} if method == "exact" else {"rank": 7}), **sparse)
    found = ours.layers[Target("denoiser", "0")].delta()
    assert float((found - theirs).norm() / theirs.norm()) < 1e-5


def lot(index: int) -> Tensor:
    """The numbers that decide which entries of an adapter's layer stay, with seed 0."""
    return torch.rand(24, 20, generator=methods._lots(0, Target("denoiser", "0"), index))


def test_strengths_vote_here_and_not_in_peft() -> None:
    first, second = torch.tensor([[1.0, 1.0]]), torch.tensor([[-3.0, 2.0]])
    parts = [
        Weighted(Adapter(None, {LINEAR: Full(change)}), strength) for change, strength in ((first, 1.0), (second, -0.1))
    ]
    found = merge(parts, "ties", density=1.0).layers[LINEAR].delta()
    assert torch.allclose(found, torch.tensor([[(1 + 0.3) / 2, 1.0]]))  # PEFT: minus wins the first entry, with +0.3
    merge_utils = pytest.importorskip("peft.utils.merge_utils")
    theirs = merge_utils.ties([first, second], torch.tensor([1.0, -0.1]), 1.0)
    assert torch.allclose(theirs, torch.tensor([[0.3, (1 - 0.2) / 2]]))
    multiplied = merge_utils.ties([first, second * -0.1], torch.ones(2), 1.0)  # strengths first: the same as here
    assert torch.allclose(multiplied, found)


# --- mean of directions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SPHERES)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_slerp_is_the_arc_of_directions_and_the_line_of_norms(method: str, t: float) -> None:
    wanted = {}
    for target, first in changes(adapter(0)).items():
        second = dense(adapter(9, 5).layers[target])
        one, other = first / first.norm(), second / second.norm()
        angle = torch.arccos((one * other).sum())
        direction = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * other) / torch.sin(angle)
        wanted[target] = direction * ((1 - t) * first.norm() + t * second.norm())
    found = merge(pair(2 * (1 - t), 2 * t), method)
    close(found, wanted, 1e-6)
    if t in (0.0, 1.0):
        close(found, changes(adapter(9, 5) if t else adapter(0)))
    else:
        assert found.layers[LINEAR].rank == 8


def test_the_karcher_mean_of_many_is_where_the_tangents_cancel() -> None:
    adapters, shares = [adapter(seed) for seed in (0, 9, 18, 27)], [0.1, 0.2, 0.3, 0.4]
    found = merge([Weighted(part, share) for part, share in zip(adapters, shares, strict=True)], "karcher")
    for target, layer in found.layers.items():
        mean = dense(layer)
        vectors = [dense(part.layers[target]) for part in adapters]
        size = sum(share * float(vector.norm()) for share, vector in zip(shares, vectors, strict=True))
        assert float(mean.norm()) == pytest.approx(size, rel=1e-6)
        unit, pull = mean / mean.norm(), torch.zeros_like(mean)
        for share, vector in zip(shares, vectors, strict=True):
            cosine = float((unit * vector).sum() / vector.norm())
            pull += share * math.acos(cosine) / math.sin(math.acos(cosine)) * (vector / vector.norm() - cosine * unit)
        assert float(pull.norm()) < 1e-6


def test_equal_and_opposite_directions() -> None:
    twice = [Weighted(adapter(0)), Weighted(scale(adapter(0), 3.0))]
    close(merge(twice, "slerp"), changes(adapter(0), 2.0), 1e-6)
    against = [Weighted(adapter(0), source="a"), Weighted(scale(adapter(0), -1.0), source="b")]
    with pytest.raises(UnsupportedLayer, match="denoiser.attn.to_q: the changes point in opposite directions"):
        merge(against, "karcher")
    assert karcher(torch.eye(2, dtype=torch.float64) * 2 - 1, torch.tensor([0.5, 0.5]).double()) is None


def test_a_layer_that_only_one_has_keeps_its_share() -> None:
    few = Adapter("sd15", {LINEAR: adapter(9).layers[LINEAR]})
    found = merge([Weighted(adapter(0), 3.0), Weighted(few, 1.0)], "slerp")
    assert torch.equal(found.layers[CONV].up, adapter(0).layers[CONV].up)
    assert torch.allclose(found.layers[CONV].delta(), adapter(0).layers[CONV].delta() * 0.75, atol=1e-5)


# --- joint directions, right angles, differences ----------------------------------------------------------------------


def test_knots_is_ties_on_the_joint_right_singular_vectors() -> None:
    parts = pair(0.8, 0.5)
    found = merge(parts, "knots", density=0.4).layers[LINEAR]
    first, second = (dense(part.adapter.layers[LINEAR]) for part in parts)
    left, values, right = torch.linalg.svd(torch.cat([first, second], 1), full_matrices=False)
    pieces = [piece * s for piece, s in zip(right[:8].split([20, 20], 1), (0.8, 0.5), strict=True)]
    thin = [largest(piece, Thinning(0.4), lots()) for piece in pieces]
    sign = torch.where(thin[0] + thin[1] >= 0, 1.0, -1.0)
    agree = [piece * sign > 0 for piece in thin]
    count = (agree[0].double() + agree[1].double()).clamp(min=1)
    merged = sum(piece * mask for piece, mask in zip(thin, agree, strict=True)) / count
    wanted = left[:, :8] * values[:8] @ merged
    assert found.rank == 8 and float((found.delta() - wanted).norm() / wanted.norm()) < 1e-5


def test_knots_of_dense_changes() -> None:
    full = Adapter("sd15", {target: Full(layer.delta()) for target, layer in adapter(0).layers.items()})
    close(merge([Weighted(full), *pair()[1:]], "knots"), changes(merge(pair(), "knots")), 1e-5)


def test_an_orthogonal_result_meets_the_others_nowhere() -> None:
    others = [adapter(9, 2), adapter(30, 3)]
    result = merge([Weighted(adapter(0), 0.5), *(Weighted(other, -2.0) for other in others)], "orthogonal")
    for target, layer in result.layers.items():
        own = dense(layer)
        for other in (dense(one.layers[target]) for one in others):
            size = float(own.norm() * other.norm())
            assert abs(float((own * other).sum())) < 1e-6 * size
            if own.dim() > 1:
                matrix, theirs = own.flatten(1), other.flatten(1)
                assert float((matrix @ theirs.T).norm()) < 1e-6 * size
                assert float((matrix.T @ theirs).norm()) < 1e-6 * size
        if own.dim() > 1:
            assert layer.rank == 3 and float(own.norm()) > 0.1 * float(dense(adapter(0).layers[target]).norm())
    close(merge([Weighted(result), Weighted(others[0])], "orthogonal"), changes(result), 1e-6)  # once is enough


def test_nothing_is_left_of_what_lies_within_the_other() -> None:
    with pytest.raises(BadConfig, match="nothing would be left"):
        merge([Weighted(adapter(0)), Weighted(scale(adapter(0), 2.0))], "orthogonal")
    dense_one = Adapter("sd15", {LINEAR: Full(torch.randn(24, 20, generator=lots()))})
    with pytest.raises(UnsupportedLayer, match="denoiser.attn.to_q: the other adapter changes it in every direction"):
        merge([Weighted(adapter(0)), Weighted(dense_one)], "orthogonal")
    few = Adapter("sd15", {LINEAR: adapter(9).layers[LINEAR]})
    apart = merge([Weighted(adapter(0), 0.5), Weighted(few)], "orthogonal")
    assert torch.equal(apart.layers[CONV].up, adapter(0).layers[CONV].up)  # where they do not meet, nothing changes
    assert merge([Weighted(few), Weighted(adapter(0))], "orthogonal").layers.keys() == {LINEAR}


def test_subtract_takes_a_part_out_of_a_merge() -> None:
    both = merge(pair(0.7, 0.4))
    close(merge([Weighted(both), Weighted(adapter(9, 5), 0.4)], "subtract"), changes(adapter(0), 0.7), 1e-6)
    with pytest.raises(BadConfig, match="nothing would be left of them by subtract|cancel"):
        merge([Weighted(adapter(0)), Weighted(adapter(0))], "subtract")


# --- layers of other kinds --------------------------------------------------------------------------------------------


def products() -> Adapter:
    generator = lots(3)
    two = [torch.randn(24, 2, generator=generator) for _ in range(2)]
    four = [torch.randn(2, 20, generator=generator) for _ in range(2)]
    loha = LoHa(two[0], four[0], two[1], four[1], 2.0)
    return Adapter("sd15", {LINEAR: loha, CONV: Full(torch.randn(12, 8, 3, 3, generator=generator))})


@pytest.mark.parametrize("method", [name for name in IDS if name not in ("exact", "orthogonal")])
def test_other_algorithms_take_part_with_their_true_change(method: str) -> None:
    full = Adapter("sd15", {target: Full(layer.delta()) for target, layer in products().layers.items()})
    mixed, plain = (merge([Weighted(adapter(0)), Weighted(other, 0.5)], method, rank=6) for other in (products(), full))
    for target, layer in plain.layers.items():
        assert torch.allclose(mixed.layers[target].delta(), layer.delta(), atol=1e-4)
        assert target == NORM or mixed.layers[target].rank == 6


def with_dora() -> tuple[Adapter, dict[Target, Tensor]]:
    weight = torch.randn(24, 20, generator=lots(8))
    dora = DoRA(lora((24, 20), 3, 5), weight.norm(dim=1) * 1.1)
    return Adapter("sd15", {**adapter(0).layers, LINEAR: dora}), {LINEAR: weight}


@pytest.mark.parametrize("method", IDS)
def test_what_depends_on_the_base_is_refused_or_baked(method: str) -> None:
    source, base = with_dora()
    parts = [Weighted(source, 0.5), Weighted(adapter(9), 0.5)]
    arguments = {"rank": 64} if method == "svd" else {}
    if method == "orthogonal":
        parts.reverse()
    with pytest.raises(UnsupportedLayer, match=r"^attn.to_q: the effect of a DoRA layer depends on .* \(--base\)"):
        merge(parts, method, **arguments)
    if method == "orthogonal":  # a DoRA changes every direction
        return
    strength = 1.0 if method in SPHERES else 0.5
    change = Full((source.layers[LINEAR].apply(base[LINEAR], strength) - base[LINEAR]) / strength)
    baked = Adapter("sd15", {**source.layers, LINEAR: change})
    found = merge(parts, method, base=base.__getitem__, **arguments)
    wanted = merge([Weighted(baked, 0.5), parts[1]], method, **arguments)
    close(found, changes(wanted), 1e-5)


def test_a_base_that_does_not_fit_is_refused() -> None:
    source, _ = with_dora()
    with pytest.raises(
        WrongArchitecture, match=r"denoiser.attn.to_q: the base's weight of shape \(7, 20\) does not fit"
    ):
        merge([Weighted(source), Weighted(adapter(9))], base=lambda target: torch.zeros(7, 20))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "best"}, "unknown merge method 'best': choose one of exact, svd, ties"),
        ({"method": "ties", "density": 0.0}, "density 0: give the share that stays"),
        ({"method": "ties", "density": 1.5}, "density 1.5"),
        ({"method": "ties", "density": math.nan}, "density nan"),
        (
            {"method": "ties", "seed": 1},
            "ties has no use for seed: leave it out, or choose dare-linear, dare-ties, della",
        ),
        ({"method": "exact", "density": 0.5}, "exact has no use for density: leave it out, or choose ties"),
        ({"method": "slerp", "normalise": True}, "slerp has no use for normalise"),
        ({"method": "della", "density": 0.9, "epsilon": 0.5}, "epsilon 0.5: .* give a number from 0 to 0.2"),
        ({"method": "breadcrumbs", "density": 0.9, "gamma": 0.5}, "gamma 0.5: .* give a share from 0 to 0.1"),
        ({"method": "ties", "rank": 0}, "rank 0: give a whole number from 1"),
        ({"method": "karcher", "energy": 1.5}, "energy 1.5: give a share between 0 and 1"),
        ({"method": "exact", "rank": 4}, "the exact merge keeps every rank"),
        ({"method": "svd"}, "the svd merge needs a rank"),
    ],
)
def test_calls_at_fault_are_refused_in_one_line(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=said) as refusal:
        merge(pair(), **arguments)
    assert "\n" not in refusal.value.message


def test_numbers_of_adapters_and_shares_are_checked() -> None:
    for method, parts, said in (
        ("slerp", [*pair(), *pair()], "slerp needs two adapters, got 4"),
        ("slerp", pair()[:1], "slerp needs two adapters, got 1"),
        ("subtract", pair()[:1], "subtract needs two adapters or more, got 1"),
        ("karcher", pair(1.0, -0.5), "strength -0.5: karcher takes strengths as shares"),
        ("ties", pair(math.nan), "give a finite number"),
    ):
        with pytest.raises(BadConfig, match=said):
            merge(parts, method)


@pytest.mark.parametrize("method", IDS)
def test_families_nan_and_shapes_are_refused(method: str) -> None:
    arguments = {"rank": 4} if method == "svd" else {}
    with pytest.raises(WrongArchitecture, match="a is made for sd15, b for sdxl"):
        merge([pair()[0], Weighted(Adapter("sdxl", adapter(9).layers), source="b")], method, **arguments)
    broken = adapter(9)
    broken.layers[CONV].up[1, 1] = math.nan
    with pytest.raises(BadValues, match="^b: 1 of 3 layers hold NaN or infinity, first denoiser conv"):
        merge([pair()[0], Weighted(broken, source="b")], method, **arguments)
    other = Adapter("sd15", {LINEAR: lora((24, 16), 3, 0)})
    with pytest.raises(BadValues, match=r"^attn.to_q: shapes \(24, .*\) and \(24, .*\) differ"):
        merge([pair()[0], Weighted(other)], method, **arguments)


# --- quick ways to measure ------------------------------------------------------------------------------------------


def shares_alike(quick: Adapter, wanted: list[Weighted]) -> None:
    """The report is that of dense arithmetic."""
    report = relative_error(quick, wanted)
    for target, layer in quick.layers.items():
        sought = truth(wanted, target)
        error, size = float((product(layer) - sought).norm()), float(sought.norm())
        assert report.shares[target].error == pytest.approx(error, rel=1e-5, abs=1e-13 * size)
        assert report.shares[target].size == pytest.approx(size, rel=1e-5)
        assert report.per_target[target] == pytest.approx(error / size, rel=1e-5, abs=1e-13)


def product(layer: LoRA) -> Tensor:
    """A layer's change in float64."""
    return torch.einsum("or,ri...->oi...", layer.up.double().flatten(1), layer.down.double()) * layer.scale


def truth(parts: list[Weighted], target: Target) -> Tensor:
    return torch.stack([product(part.adapter.layers[target]) * part.strength for part in parts]).sum(0)


def only_lora(adapter: Adapter) -> Adapter:
    return Adapter("sd15", {target: adapter.layers[target] for target in SHAPES})


@pytest.mark.parametrize("strengths", [(0.7, -0.4), (1.0, 0.5), (1.0, -1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_stack_is_measured_by_what_its_up_lost(strengths: tuple[float, float], dtype: torch.dtype) -> None:
    parts = [Weighted(only_lora(part.adapter), strength) for part, strength in zip(pair(), strengths, strict=True)]
    whole = merge(parts)
    layers = {target: replace(layer, up=layer.up.to(dtype)) for target, layer in whole.layers.items()}
    shares_alike(Adapter("sd15", layers), parts)
    off = {target: replace(layer, up=layer.up + 1e-3 * layer.up.sign()) for target, layer in whole.layers.items()}
    shares_alike(Adapter("sd15", off), parts)


@pytest.mark.parametrize("strength", [0.7, 1.0, -2.0])
def test_another_scale_is_measured_without_a_norm(strength: float) -> None:
    source = only_lora(adapter(0))
    rounded = {
        target: replace(layer, alpha=float(torch.tensor(layer.alpha * strength, dtype=torch.float32)) * 1.001)
        for target, layer in source.layers.items()
    }
    shares_alike(Adapter("sd15", rounded), [Weighted(source, strength)])
    assert relative_error(Adapter("sd15", rounded), [Weighted(source, strength)]).relative_error == pytest.approx(
        1e-3, rel=1e-3
    )
    assert relative_error(source, [Weighted(source)]).relative_error == 0.0


def test_finite_looks_at_every_value() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2):
        for value in (math.nan, math.inf, -math.inf):
            tensor = torch.zeros(33)
            tensor[17] = value
            assert not finite(tensor.to(dtype)) and finite(torch.ones(3).to(dtype))
    assert finite(torch.zeros(0)) and finite(torch.tensor([1, 2])) and finite(torch.tensor(True))


# --- the command line -----------------------------------------------------------------------------------------------

QUERY = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")
KEY = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_k")


def on_disk(seed: int, rank: int = 4) -> Adapter:
    return Adapter("sd15", {target: lora((320, 320), rank, seed + i) for i, target in enumerate((QUERY, KEY))})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two LoRAs."""
    for seed, name in enumerate("ab"):
        convert.write(on_disk(10 * seed), tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["merge", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("ties", "keep"), ("della", "fp16"), ("knots", "keep"), ("slerp", "fp16"), ("orthogonal", "keep")],
)
def test_a_file_is_measured_against_the_methods_dense_result(
    here: Path, method: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["o.safetensors", "a.safetensors@0.5", "b.safetensors@0.4", "--method", method, "--dtype", dtype]
    facts = said(capsys, *call, "--rank", "3", "--to", "diffusers")
    parts = [Weighted(convert.read("a.safetensors"), 0.5), Weighted(convert.read("b.safetensors"), 0.4)]
    wanted = {
        wish.target: torch.stack([dense(part.layer) * part.strength for part in wish.parts]).sum(0)
        for wish in Order(parts, method).wishes()
    }
    found = changes(convert.read("o.safetensors"))
    error = math.hypot(*(float((found[target] - want).norm()) for target, want in wanted.items()))
    assert facts["relative_error"] == pytest.approx(
        error / math.hypot(*(float(want.norm()) for want in wanted.values())), rel=1e-5
    )
    assert facts["rank"] == 3 and facts["relative_error"] > 0.1


def test_a_size_is_met(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("svd", "ties"):
        call = ["--method", method, "--size", "16KB", "--dtype", "fp16", "--force"]
        facts = said(capsys, "o.safetensors", "a.safetensors", "b.safetensors", *call)
        assert 0 < (here / "o.safetensors").stat().st_size <= 16_000 and 0 < facts["relative_error"] < 1


def test_a_base_bakes_what_depends_on_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.randn(320, 320, generator=lots(8))
    dora = DoRA(lora((320, 320), 3, 5), weight.norm(dim=1) * 1.1)
    convert.write(Adapter("sd15", {**on_disk(0).layers, QUERY: dora}), here / "dora.safetensors")
    names = (f"model.diffusion_model.{one.module}.weight" for one in (QUERY, KEY))
    inputs = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3)}
    crossed = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file(
        {**{name: weight.clone() for name in names}, **inputs, crossed: torch.zeros(320, 768)}, "base.safetensors"
    )
    call = ["o.safetensors", "dora.safetensors@0.5", "a.safetensors"]
    assert main(["merge", *call]) == 2 and "(--base)" in capsys.readouterr().err and not Path("o.safetensors").exists()
    facts = said(capsys, *call, "--base", "base.safetensors")
    baked = dora.apply(weight, 0.5) - weight + on_disk(0).layers[QUERY].delta()
    found = changes(convert.read("o.safetensors"))[QUERY]
    assert facts["relative_error"] < 1e-6 and float((found - baked).norm() / baked.norm()) < 1e-5


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (["o", "a.safetensors", "b.safetensors", "--method", "ties", "--density", "2"], "density 2"),
        (["o", "a.safetensors", "b.safetensors", "--method", "slerp", "--seed", "2"], "slerp has no use for seed"),
        (["o", "a.safetensors", "b.safetensors", "--rank", "4"], "the exact merge keeps every rank"),
        (["o", "a.safetensors", "b.safetensors", "--size", "4MB"], "leave --size out"),
        (["o", "a.safetensors", "--size", "4MB", "--rank", "3", "--method", "svd"], "leave --rank and --energy out"),
        (["o", "a.safetensors", "--size", "much"], "is no size"),
        (["o", "a.safetensors", "b.safetensors", "--method", "ties", "--device", "moon"], "device 'moon'"),
        (["o", "a.safetensors", "b.safetensors", "--base", "gone.safetensors"], "gone.safetensors: no such file"),
        (["o", "a.safetensors", "--method", "orthogonal"], "orthogonal needs two adapters or more"),
        (["a.safetensors", "a.safetensors", "b.safetensors", "--method", "ties"], "a.safetensors: already exists"),
        (["a.safetensors", "a.safetensors", "b.safetensors", "--force"], "a.safetensors: is one of the inputs"),
    ],
)
def test_a_call_at_fault_is_one_line_and_writes_nothing(
    here: Path, call: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert main(["merge", *call]) == 2
    out, err = capsys.readouterr()
    assert out == "" and part in err and err.count("\n") == 1
    assert before == {path.name: path.read_bytes() for path in here.iterdir()}


def test_help_says_when_to_use_which_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["merge", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for row in METHODS:
        assert f"{row.id} {row.when}" in text
