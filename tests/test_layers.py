"""Laws of the layers and of their rows: what holds for every algorithm, whatever the numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadValues, UnsupportedLayer, WrongArchitecture
from lorasmith.lora_core.layers import (
    BOFT,
    IA3,
    Additive,
    DiagOFT,
    DoRA,
    Full,
    GLoRA,
    KohyaOFT,
    Layer,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    OFTv2,
    PeftBOFT,
    Replace,
    Transform,
)
from lorasmith.lora_core.ops.health import health, is_zero, values
from lorasmith.lora_core.ops.merge import Weighted, merge
from lorasmith.lora_core.ops.report import difference, relative_error
from lorasmith.lora_core.ops.rows import cut, height, stack, swap_halves
from lorasmith.lora_core.ops.scale import scale

TARGET = Target("denoiser", "attn.qkv")
OUT, IN = 24, 8
PARTS = ((0, 8), (8, 16), (16, 24))
STATIC = torch.Generator().manual_seed(0)


def r(*sides: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*sides, generator=STATIC).to(dtype)


def lora(out: int = OUT, rank: int = 4, alpha: float = 2.0, kernel: tuple[int, ...] = (), mid: bool = False) -> LoRA:
    ones = (1,) * len(kernel)
    down = r(rank, IN, *(ones if mid else kernel), dtype=torch.float16)
    core = r(rank, rank, *kernel, dtype=torch.float16) if mid else None
    return LoRA(down, r(out, rank, *ones, dtype=torch.float16), alpha, core)


def loha(out: int = OUT) -> LoHa:
    return LoHa(r(out, 2), r(2, IN * 9), r(out, 2), r(2, IN * 9), 3.0, shape=(out, IN, 3, 3))


def tucker_loha() -> LoHa:
    return LoHa(r(2, OUT), r(2, IN), r(2, OUT), r(2, IN), 3.0, r(2, 2, 3, 3), r(2, 2, 3, 3))


LAYERS: dict[str, Layer] = {
    "lora": lora(),
    "lora-conv": lora(kernel=(3, 3)),
    "lora-tucker": lora(kernel=(3, 3), mid=True),
    "lora-scalar": replace(lora(), scalar=torch.tensor(0.3)),
    "full": Full(r(OUT, IN), scale=0.5),
    "bias": Full(r(OUT)),
    "norm": Norm(r(OUT)),
    "loha": loha(),
    "loha-tucker": tucker_loha(),
    "lokr": LoKr(3.0, w1=r(6, 2), w2_a=r(4, 1), w2_b=r(1, 4)),
    "lokr-whole": LoKr(3.0, w1=r(6, 2), w2=r(4, 4, 3, 3)),
    "lokr-both": LoKr(3.0, w1_a=r(6, 1), w1_b=r(1, 2), w2_a=r(2, 4), w2_b=r(2, 4), t2=r(2, 2, 3, 3)),
    "lokr-peft": LoKr(3.0, w1=r(6, 2), w2=r(4, 4), r=8),
    "dora": DoRA(lora(), r(OUT, 1)),
    "dora-peft": DoRA(lora(kernel=(3, 3)), r(1, OUT, 1, 1), peft=True),
    "dora-peft-linear": DoRA(lora(), r(OUT), peft=True),
    "dora-loha": DoRA(loha(), r(OUT, 1, 1, 1)),
    "dora-input": DoRA(lora(), r(1, IN)),
    "kohya-oft": KohyaOFT(r(6, 4, 4), 1e3),
    "kohya-oft-bound": KohyaOFT(r(6, 4, 4), 1e-2),
    "diag-oft": DiagOFT(r(6, 4, 4), rescale=r(OUT, 1)),
    "diag-oft-bound": DiagOFT(r(6, 4, 4), 1e-2),
    "boft": BOFT(r(2, 6, 4, 4), rescale=r(OUT, 1)),
    "oft-v2": OFTv2(0.1 * r(2, 6)),
    "oft-v2-shared": OFTv2(0.1 * r(1, 6), terms=None),
    "peft-boft": PeftBOFT(r(2, 2, 4, 4), r(OUT, 1)),
    "glora": GLoRA(r(IN, 2), r(2, IN), r(OUT, 2), r(2, IN), 3.0),
    "ia3": IA3(r(OUT), on_input=False),
    "ia3-peft": IA3(r(OUT, 1), on_input=False, absolute=True),
    "ia3-input": IA3(r(IN), on_input=True),
    "replace": Replace(r(OUT, IN)),
}
EVERY = pytest.mark.parametrize("name", LAYERS)
NO_CUT = {"boft", "dora-input", "kohya-oft-bound", "diag-oft-bound"}
NO_SWAP = {"boft"}


def weight_for(layer: Layer, dtype: torch.dtype = torch.float32) -> Tensor:
    sides = [size or (OUT, IN)[side] for side, size in enumerate(layer.shape)]
    return torch.randn(sides, generator=torch.Generator().manual_seed(7)).to(dtype)


def same_bytes(one: Layer, other: Layer) -> bool:
    """Whether two layers are the same, field by field, dtypes included."""
    if type(one) is not type(other):
        return False
    for item in fields(one):
        left, right = getattr(one, item.name), getattr(other, item.name)
        if isinstance(left, Tensor):
            if left.dtype != right.dtype or not torch.equal(left, right):
                return False
        elif isinstance(left, Additive):
            if not same_bytes(left, right):  # type: ignore[arg-type]
                return False
        elif left != right:
            return False
    return True


def close(found: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> bool:
    return found.shape == wanted.shape and float((found - wanted).norm()) <= tolerance * float(wanted.norm())


# --- the contract ---------------------------------------------------------------------------------------------------


@EVERY
def test_strength_zero_leaves_the_weight_and_no_strength_its_form(name: str) -> None:
    layer = LAYERS[name]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        weight = weight_for(layer, dtype)
        before = weight.clone()
        assert torch.equal(layer.apply(weight, 0), weight)
        for strength in (1, -0.5):
            changed = layer.apply(weight, strength)
            assert changed.shape == weight.shape and changed.dtype == dtype and not torch.equal(changed, weight)
        assert torch.equal(weight, before)


@EVERY
def test_work_is_done_in_float32_or_better(name: str) -> None:
    layer, weight = LAYERS[name], weight_for(LAYERS[name])
    single, double = layer.apply(weight, 0.7), layer.apply(weight.double(), 0.7)
    assert double.dtype == torch.float64 and close(single.double(), double)
    if not name.startswith("replace"):
        assert torch.equal(layer.apply(weight.half(), 0.7), layer.apply(weight.half().float(), 0.7).half())


@EVERY
def test_every_tensor_is_named_once(name: str) -> None:
    layer = LAYERS[name]
    inner = [layer.layer] if isinstance(layer, DoRA) else []
    owned = [getattr(owner, item.name) for owner in (layer, *inner) for item in fields(owner)]
    wanted = [id(tensor) for tensor in owned if isinstance(tensor, Tensor)]
    assert sorted(map(id, layer.tensors())) == sorted(wanted) and isinstance(layer, Additive | Transform)


@EVERY
def test_scaled_is_the_effect_at_that_strength_or_none(name: str) -> None:
    layer, weight = LAYERS[name], weight_for(LAYERS[name]).double()
    assert layer.scaled(1) is layer or same_bytes(layer.scaled(1), layer)
    for strength in (0.5, -3.0, 0.1):
        result = layer.scaled(strength)
        if result is not None:
            assert close(result.apply(weight), layer.apply(weight, strength), 1e-6)
    nothing = layer.scaled(0)
    assert nothing is None or torch.allclose(nothing.apply(weight), weight, atol=1e-12)
    can = ("lora", "full", "bias", "norm", "loha", "lokr", "glora", "ia3", "dora-peft")
    assert (layer.scaled(0.5) is not None) == name.startswith(can)


@EVERY
def test_a_weight_of_another_model_is_refused(name: str) -> None:
    layer = LAYERS[name]
    for sides in ((OUT + 1, IN + 1), (OUT + 1, IN + 3, 3, 3)):
        with pytest.raises(WrongArchitecture, match="the adapter was made for another model") as refusal:
            layer.apply(torch.ones(sides))
        assert "\n" not in refusal.value.message


def test_a_widened_weight_is_padded_with_zeros_first() -> None:
    layer = LoRA(r(2, 6), r(5, 2), 2.0, reshape=torch.tensor([5, 6]))
    weight = r(5, 3)
    wide = layer.apply(weight)
    assert torch.equal(wide, LoRA(layer.down, layer.up, 2.0).apply(torch.nn.functional.pad(weight, (0, 3))))
    assert torch.equal(layer.apply(wide), wide + layer.delta())
    assert layer.apply(weight, 0).shape == (5, 6)
    with pytest.raises(WrongArchitecture, match=r"shape \(5, 6\) met one of shape \(5, 7\)"):
        layer.apply(r(5, 7))


def test_a_scalar_is_one_more_factor() -> None:
    for name in ("lora", "loha", "lokr", "lokr-whole"):
        layer = LAYERS[name]
        assert isinstance(layer, LoRA | LoHa | LoKr)
        assert close(replace(layer, scalar=torch.tensor(0.25)).delta(), layer.delta() * 0.25)


def test_two_whole_kronecker_factors_have_scale_one_but_in_peft() -> None:
    whole, peft = LAYERS["lokr-whole"], LAYERS["lokr-peft"]
    assert isinstance(whole, LoKr) and whole.scale == 1.0 and whole.alpha == 3.0
    assert isinstance(peft, LoKr) and peft.scale == 3 / 8
    assert isinstance(LAYERS["lokr"], LoKr) and LAYERS["lokr"].scale == 3.0
    with pytest.raises(UnsupportedLayer, match="lacks one of its two factors"):
        LoKr(1.0, w1=r(2, 2), w2_a=r(2, 1))


def test_the_magnitudes_shape_tells_the_side() -> None:
    square = LoRA(r(1, 6), r(6, 1), 1.0)
    sides = {(6,): False, (6, 1): False, (1, 6): True, (1, 6, 1, 1): True, (6, 1, 1, 1): False}
    for shape, on_input in sides.items():
        assert DoRA(square, r(*shape)).on_input is on_input
    assert not DoRA(square, r(1, 6, 1, 1), peft=True).on_input
    assert not DoRA(LoRA(r(1, 6), r(1, 1), 1.0), r(1, 1)).on_input


def test_a_dora_has_the_lengths_of_its_magnitude() -> None:
    for name, axis in (("dora", 1), ("dora-input", 0)):
        layer = LAYERS[name]
        assert isinstance(layer, DoRA)
        lengths = layer.apply(weight_for(layer).double()).norm(dim=axis)
        assert torch.allclose(lengths, layer.magnitude.flatten().abs().double(), rtol=1e-5)


@pytest.mark.parametrize("name", ["kohya-oft", "diag-oft-bound", "oft-v2-shared", "boft", "peft-boft"])
def test_a_rotation_keeps_lengths(name: str) -> None:
    layer = LAYERS[name]
    if isinstance(layer, BOFT | DiagOFT):
        layer = replace(layer, rescale=None)
    if isinstance(layer, PeftBOFT):
        layer = replace(layer, rescale=torch.ones(OUT, 1))
    weight = weight_for(layer).double()
    axis = 0 if isinstance(layer, KohyaOFT | DiagOFT | BOFT) else 1
    assert torch.allclose(layer.apply(weight).norm(dim=axis), weight.norm(dim=axis), rtol=1e-6)


# --- rows -----------------------------------------------------------------------------------------------------------


@EVERY
def test_a_part_acts_as_the_whole_does_on_its_rows(name: str) -> None:
    layer, weight = LAYERS[name], weight_for(LAYERS[name])
    if name in NO_CUT:
        with pytest.raises(UnsupportedLayer, match="cannot be rearranged: .*; choose a dialect that keeps") as refusal:
            cut(layer, 0, 8, OUT)
        assert "\n" not in refusal.value.message
        return
    for start, stop in (*PARTS, (0, 24), (4, 20)):
        for strength in (1, 0.5):
            part = cut(layer, start, stop, OUT)
            assert close(part.apply(weight[start:stop], strength), layer.apply(weight, strength)[start:stop])


@EVERY
def test_parts_put_together_are_the_same_bytes(name: str) -> None:
    layer = LAYERS[name]
    if name in NO_CUT:
        return
    for heights in ([8, 8, 8], [4, 12, 8]):
        edges = list(itertools.accumulate(heights, initial=0))
        parts = [cut(layer, start, stop, OUT) for start, stop in itertools.pairwise(edges)]
        assert same_bytes(stack(parts, heights), layer)


@EVERY
def test_halves_exchanged_twice_are_the_layer(name: str) -> None:
    layer, weight = LAYERS[name], weight_for(LAYERS[name])
    if name in NO_SWAP:
        with pytest.raises(UnsupportedLayer, match="mix rows"):
            swap_halves(layer)
        return
    swapped = swap_halves(layer)
    assert same_bytes(swap_halves(swapped), layer)
    rolled = weight.roll(OUT // 2, 0)
    assert close(swapped.apply(rolled, 0.5), layer.apply(weight, 0.5).roll(OUT // 2, 0))


def test_cuts_across_blocks_are_refused() -> None:
    for name, text in (("kohya-oft", "blocks of 4 rows"), ("diag-oft", "blocks of 4 rows"), ("lokr", "multiple of 4")):
        with pytest.raises(UnsupportedLayer, match=text):
            cut(LAYERS[name], 0, 6, OUT)
    with pytest.raises(UnsupportedLayer, match="LoRA layer of 24 rows was taken for rows 0 to 8 of 32"):
        cut(LAYERS["lora"], 0, 8, 32)
    with pytest.raises(UnsupportedLayer, match="two halves of 3 rows"):
        swap_halves(lora(3))
    with pytest.raises(UnsupportedLayer, match="block of 7 rows"):
        stack([lora(8), lora(8)], [8, 7])


def fused(heights: tuple[int, ...], ranks: tuple[int, ...], order: list[int] | None = None) -> LoRA:
    """A block-sparse LoRA, its ranks in another order where one is given."""
    up = torch.block_diag(*(r(rows, rank).abs() + 1 for rows, rank in zip(heights, ranks, strict=True))).half()
    down = r(sum(ranks), IN, dtype=torch.float16)
    order = order or list(range(sum(ranks)))
    return LoRA(down[order], up[:, order], alpha=sum(ranks) / 2)


@pytest.mark.parametrize("order", [None, [5, 0, 3, 1, 4, 2]])
def test_idle_ranks_go_and_the_scale_stays(order: list[int] | None) -> None:
    heights, ranks = (8, 4, 12), (2, 1, 3)
    layer, edges = fused(heights, ranks, order), (0, 8, 12, 24)
    parts = [cut(layer, *pair, OUT) for pair in itertools.pairwise(edges)]
    assert [part.rank for part in parts if isinstance(part, LoRA)] == list(ranks)
    assert all(isinstance(part, LoRA) and part.scale == layer.scale == 0.5 for part in parts)
    whole = stack(parts, heights)
    assert isinstance(whole, LoRA) and whole.rank == 6 and close(whole.delta(), layer.delta())
    assert same_bytes(whole, layer) == (order is None)
    again = [cut(whole, *pair, OUT) for pair in itertools.pairwise(edges)]
    assert all(map(same_bytes, again, parts))


def test_a_slice_that_does_nothing_keeps_its_ranks_and_an_inexact_alpha_is_not_made() -> None:
    layer = LoRA(r(3, IN), torch.block_diag(r(8, 1), r(8, 2), torch.zeros(8, 0)), alpha=1.0)
    assert [cut(layer, *pair, OUT).rank for pair in PARTS] == [3, 3, 3]  # type: ignore[union-attr]
    quiet = replace(layer, alpha=3.0)
    assert [cut(quiet, *pair, OUT).rank for pair in PARTS] == [1, 2, 3]  # type: ignore[union-attr]
    assert same_bytes(stack([cut(quiet, *pair, OUT) for pair in PARTS], [8, 8, 8]), quiet)


def test_different_layers_go_side_by_side_and_come_apart_again() -> None:
    for make in (lambda rank: lora(8, rank, rank / 2), lambda rank: loha(8)):
        parts: list[Any] = [make(rank) for rank in (2, 4, 4)]
        whole, weight = stack(parts, [8, 8, 8]), weight_for(stack(parts, [8, 8, 8]))
        assert whole.rank == sum(part.rank for part in parts)  # type: ignore[union-attr]
        for part, (start, stop) in zip(parts, PARTS, strict=True):
            assert close(whole.apply(weight)[start:stop] - weight[start:stop], part.delta(), 1e-5)
            if isinstance(part, LoRA):
                assert same_bytes(cut(whole, start, stop, OUT), part)


def test_scales_that_differ_go_into_up_and_an_absent_block_is_zero() -> None:
    one, two = lora(8, 4, 4.0), lora(8, 4, 1.0)
    whole = stack([one, None, two], [8, 8, 8])
    assert isinstance(whole, LoRA) and whole.up.dtype == torch.float16  # a quarter of a half-precision value is one
    assert close(whole.delta(), torch.cat([one.delta(), torch.zeros(8, IN), two.delta()]))
    third = stack([one, replace(two, alpha=4 / 3)], [8, 8])
    assert isinstance(third, LoRA) and third.up.dtype == torch.float32
    assert close(third.delta(), torch.cat([one.delta(), two.delta() * 4 / 3]), 1e-7)
    full = stack([None, Full(torch.ones(8, IN), scale=2.0)], [16, 8])
    assert torch.equal(full.apply(torch.zeros(OUT, IN)).sum(1), torch.tensor([0.0] * 16 + [16.0] * 8))
    quiet = stack([IA3(r(8, 1), False, absolute=True), None], [8, 4])
    assert torch.equal(quiet.apply(torch.ones(12, IN))[8:], torch.ones(4, IN))


def test_what_has_no_common_form_is_refused() -> None:
    refused: list[tuple[list[Layer | None], list[int], str]] = [
        ([lora(8), Full(r(8, IN))], [8, 8], "layers of Full and LoRA"),
        ([DoRA(lora(8), r(8, 1)), None], [8, 8], "none of this kind does nothing"),
        ([DoRA(lora(8), r(1, IN)), DoRA(lora(8), r(1, IN))], [8, 8], "lengths are those of columns"),
        ([OFTv2(r(2, 6)), OFTv2(r(2, 6))], [8, 8], "upper differs"),
        ([Replace(r(8, IN)), None], [8, 8], "none of this kind does nothing"),
        ([LoKr(1.0, w1=r(2, 2), w2=r(4, 4)), LoKr(1.0, w1=r(2, 2), w2=r(4, 4))], [8, 8], "w2 differs"),
        ([KohyaOFT(r(2, 4, 4), 0.01), KohyaOFT(r(2, 4, 4), 0.01)], [8, 8], "bounds all blocks together"),
        ([None, None], [8, 8], "nothing to put together"),
    ]
    for layers, heights, text in refused:
        with pytest.raises(UnsupportedLayer, match=text) as refusal:
            stack(layers, heights)
        assert "\n" not in refusal.value.message
    assert height(OFTv2(r(2, 6))) is None and height(lora(8)) == 8


# --- the operations on adapters -------------------------------------------------------------------------------------


def adapter(layer: Layer) -> Adapter:
    return Adapter("sd15", {TARGET: layer})


@EVERY
def test_a_layer_differs_from_itself_by_nothing_and_from_another_by_something(name: str) -> None:
    layer = LAYERS[name]
    assert difference(adapter(layer), adapter(layer)).relative_error == 0.0
    first, *_ = [item.name for item in fields(layer) if isinstance(getattr(layer, item.name), Tensor)]
    other = replace(layer, **{first: getattr(layer, first) + r(*getattr(layer, first).shape)})
    found = difference(adapter(other), adapter(layer)).relative_error
    assert 1e-3 < found < math.inf
    assert difference(adapter(layer), Adapter("sd15", {})).worst == math.inf
    assert difference(Adapter("sd15", {}), adapter(layer)).relative_error == 1.0


def test_a_dora_is_compared_with_another_on_one_weight() -> None:
    layer = LAYERS["dora"]
    assert isinstance(layer, DoRA)
    flat = replace(layer, magnitude=layer.magnitude.flatten())
    assert difference(adapter(flat), adapter(layer)).relative_error == 0.0
    with pytest.raises(UnsupportedLayer, match="attn.qkv: DoRA and LoRA layers have no sum to compare with"):
        relative_error(adapter(layer), [Weighted(adapter(layer)), Weighted(adapter(lora()))])
    with pytest.raises(BadValues, match="attn.qkv: shapes differ"):
        difference(adapter(layer), adapter(LAYERS["oft-v2"]) if IN != 8 else adapter(IA3(r(5), on_input=True)))


@EVERY
def test_scale_scales_or_says_what_to_do(name: str) -> None:
    layer, weight = LAYERS[name], weight_for(LAYERS[name]).double()
    assert scale(adapter(layer), 1).layers[TARGET] is layer
    if layer.scaled(0.5) is None:
        with pytest.raises(
            UnsupportedLayer, match=rf"attn.qkv: a {type(layer).__name__} layer .* set the strength in the program"
        ):
            scale(adapter(layer), 0.5)
        return
    assert close(scale(adapter(layer), 0.5).layers[TARGET].apply(weight), layer.apply(weight, 0.5), 1e-6)


@EVERY
def test_merging_adds_what_can_be_added(name: str) -> None:
    layer = LAYERS[name]
    assert same_bytes(merge([Weighted(adapter(layer))]).layers[TARGET], layer)
    parts = [Weighted(adapter(layer)), Weighted(adapter(layer), 0.5)]
    if isinstance(layer, Transform):
        with pytest.raises(UnsupportedLayer, match="depends on the base weight, .* apply both, one after the other"):
            merge(parts)
        return
    if isinstance(layer, LoHa | LoKr):
        with pytest.raises(UnsupportedLayer, match="give a rank"):
            merge(parts)
        best = merge(parts, "svd", rank=OUT)
        assert type(best.layers[TARGET]) is LoRA and relative_error(best, parts).relative_error < 1e-6
        return
    assert relative_error(merge(parts), parts).relative_error < 1e-6


def test_a_loha_or_lokr_becomes_the_best_lora_of_a_rank() -> None:
    for name in ("loha", "lokr", "lokr-both"):
        layer = LAYERS[name]
        assert isinstance(layer, LoHa | LoKr)
        parts = [Weighted(adapter(layer), 0.5), Weighted(adapter(lora(kernel=layer.shape[2:])), -1)]
        result = merge(parts, "svd", rank=3)
        wanted = 0.5 * layer.delta().double() - parts[1].adapter.layers[TARGET].delta().double()  # type: ignore[union-attr]
        optimum = float(torch.linalg.svdvals(wanted.flatten(1))[3:].norm() / wanted.norm())
        assert relative_error(result, parts).relative_error == pytest.approx(optimum, rel=1e-4)
        assert result.layers[TARGET].shape == layer.shape


@EVERY
def test_health_sees_every_number(name: str) -> None:
    layer = LAYERS[name]
    assert health(adapter(layer)).sound and health(adapter(layer)).zero_layers == 0
    for tensor in layer.tensors():
        first = tensor.flatten()[0].clone()
        tensor.flatten()[0] = math.nan
        assert health(adapter(layer)).nan == 1
        tensor.view(-1)[0] = first
    assert all(math.isfinite(float(value)) for value in values(layer) if not value.dim())


@EVERY
def test_a_layer_that_does_nothing_is_seen(name: str) -> None:
    layer = LAYERS[name]
    if isinstance(layer, DoRA | Replace):
        assert not is_zero(layer)
        return
    still: Callable[[Any], Layer] = {
        LoRA: lambda it: replace(it, up=it.up * 0),
        LoHa: lambda it: replace(it, w2_b=it.w2_b * 0),
        LoKr: lambda it: replace(
            it, **{"w1" if it.w1 is not None else "w1_a": torch.zeros(6, 2 if it.w1 is not None else 1)}
        ),
        Full: lambda it: replace(it, scale=0.0),
        Norm: lambda it: replace(it, diff=it.diff * 0),
        GLoRA: lambda it: replace(it, a1=it.a1 * 0, b2=it.b2 * 0),
        IA3: lambda it: replace(it, scale=it.scale * 0 + float(it.absolute)),
        DiagOFT: lambda it: replace(it, blocks=torch.ones_like(it.blocks), rescale=None),
        BOFT: lambda it: replace(it, blocks=it.blocks * 0, rescale=torch.ones(OUT, 1)),
        KohyaOFT: lambda it: replace(it, blocks=it.blocks * 0),
        OFTv2: lambda it: replace(it, upper=it.upper * 0),
        PeftBOFT: lambda it: replace(it, blocks=it.blocks * 0, rescale=torch.ones(OUT, 1)),
    }[type(layer)]
    quiet, weight = still(layer), weight_for(layer)
    assert is_zero(quiet) and torch.allclose(quiet.apply(weight), weight, atol=1e-6)
