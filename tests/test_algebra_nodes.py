"""The algebra nodes without ComfyUI, and the layers that wait until they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_nodes import FakeHost

from lorasmith import convert
from lorasmith.convert.regroup import alike
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues, UnsupportedLayer, WrongArchitecture
from lorasmith.lora_core.layers import DoRA, Full, Layer, LoHa, LoRA
from lorasmith.lora_core.ops import sums
from lorasmith.lora_core.ops.lazy import Lazy, mapped, outlines, subset
from lorasmith.lora_core.ops.merge import Weighted, merge
from lorasmith.lora_core.ops.report import difference
from lorasmith.lora_core.ops.scale import scale
from lorasmith.lora_core.ops.sums import added
from lorasmith.nodes.actions import save_lora
from lorasmith.nodes.algebra import block_strengths, pick_layers, sum_loras
from lorasmith.nodes.catalog import nodes
from lorasmith.nodes.spec import Choice, Number
from lorasmith.nodes.verdict import summary

QUERY = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")
VALUE = Target("denoiser", "middle_block.1.transformer_blocks.0.attn1.to_v")
FORWARD = Target("denoiser", "output_blocks.3.1.transformer_blocks.0.ff.net.2")
TEXT = Target("clip_l", "text_model.encoder.layers.3.mlp.fc1")
SHAPES = {QUERY: (320, 320), VALUE: (1280, 1280), FORWARD: (1280, 5120), TEXT: (3072, 768)}


def adapter(seed: int, *targets: Target, rank: int = 2, family: str | None = "sd15") -> Adapter:
    make = torch.Generator().manual_seed(seed)
    layers: dict[Target, Layer] = {
        target: LoRA(
            torch.randn(rank, SHAPES[target][1], generator=make),
            torch.randn(SHAPES[target][0], rank, generator=make),
            alpha=1.0,
        )
        for target in targets or SHAPES
    }
    return Adapter(family, layers, {"ss_output_name": f"lora{seed}"})


def only(result: object) -> Adapter:
    made = result.values[0]  # type: ignore[attr-defined]
    assert isinstance(made, Adapter)
    return made


class Counted(Mapping[Target, Layer]):
    """Layers that count how often they are asked for."""

    def __init__(self, layers: Mapping[Target, Layer]):
        self.layers, self.asked = layers, 0

    def __getitem__(self, target: Target) -> Layer:
        self.asked += 1
        return self.layers[target]

    def __iter__(self) -> Iterator[Target]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


def lazy(made: Adapter) -> Lazy:
    assert isinstance(made.layers, Lazy)
    return made.layers


# --- lazy layers


def test_a_layer_is_computed_once_and_on_first_use() -> None:
    counted = Counted(adapter(0).layers)
    found = Lazy(counted.layers, counted.__getitem__)
    assert len(found) == 4 and list(found) == list(SHAPES) and QUERY in found and "x" not in found
    assert counted.asked == found.computed == 0
    assert found[QUERY] is found[QUERY] and counted.asked == found.computed == 1
    assert all(found[target] is layer for target, layer in counted.layers.items()) and counted.asked == 4
    with pytest.raises(KeyError):
        found[Target("denoiser", "nowhere")]


def test_what_is_made_of_lazy_layers_is_lazy_and_of_others_is_not() -> None:
    counted = Counted(adapter(0).layers)
    layers = Lazy(adapter(0).layers, counted.__getitem__)
    doubled = subset(mapped(layers, lambda target, layer: layer.scaled(2.0)), lambda target: target != TEXT)
    assert isinstance(doubled, Lazy) and len(doubled) == 3 and counted.asked == 0
    torch.testing.assert_close(doubled[QUERY].delta(), counted.layers[QUERY].delta() * 2)
    assert counted.asked == 1
    assert type(mapped(dict(layers), lambda target, layer: layer)) is dict


# --- the sum


def test_the_sum_is_a_plus_weighted_b_and_c() -> None:
    a, b, c = adapter(1), adapter(2, QUERY, VALUE, rank=3), adapter(3, QUERY, TEXT)
    made = only(sum_loras(a, b, 0.5, -2.0, c))
    for target in SHAPES:
        expected = a.layers[target].delta()
        for part, strength in ((b, 0.5), (c, -2.0)):
            if target in part.layers:
                expected = expected + strength * part.layers[target].delta()
        torch.testing.assert_close(made.layers[target].delta(), expected, rtol=1e-5, atol=1e-5)


def test_the_sum_is_the_exact_merge_bit_for_bit() -> None:
    a, b = adapter(1), adapter(2, QUERY, VALUE, rank=3)
    parts = [Weighted(a, 1.0), Weighted(b, -0.7, 0.3)]
    made, merged = added(parts), merge(parts)
    assert difference(made, merged).worst == 0 and made.layers.keys() == merged.layers.keys()
    assert (made.metadata, made.origin, made.architecture) == (merged.metadata, merged.origin, merged.architecture)


def test_chains_cost_nothing_until_a_layer_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Target] = []
    stored = sums.stored_layer

    def counted(target: Target, *rest: Any) -> Layer:
        computed.append(target)
        return stored(target, *rest)

    monkeypatch.setattr(sums, "stored_layer", counted)
    a, b, c = adapter(1), adapter(2), adapter(3)
    first = only(sum_loras(a, b, -1.0, 1.0))
    second = only(sum_loras(first, c, 0.5, 1.0))
    third = only(block_strengths(second, "IN01=0.5\nBASE=0"))
    fourth = scale(only(pick_layers(third, "attention", "denoiser", "", "keep")), 2.0)
    assert computed == [] and list(fourth.layers) == [QUERY, VALUE]
    assert "2 layers, rank 6" in summary(fourth) and fourth.metadata["ss_network_dim"] == "6" and computed == []
    expected = a.layers[QUERY].delta() - b.layers[QUERY].delta() + 0.5 * c.layers[QUERY].delta()
    torch.testing.assert_close(fourth.layers[QUERY].delta(), expected, rtol=1e-5, atol=1e-5)
    assert computed == [QUERY, QUERY] and lazy(first).computed == lazy(fourth).computed == 1
    assert fourth.layers[QUERY] is fourth.layers[QUERY] and computed == [QUERY, QUERY]


def test_outlines_tell_what_comes() -> None:
    a, b = adapter(1), adapter(2, QUERY, rank=5)
    dense = Adapter("sd15", {VALUE: Full(torch.ones(1280, 1280))})
    made = added([Weighted(a), Weighted(b), Weighted(dense)])
    for target, outline in outlines(made.layers).items():
        layer = made.layers[target]
        assert type(outline) is type(layer) and outline.shape == layer.shape
        if isinstance(layer, LoRA) and isinstance(outline, LoRA):
            assert (outline.rank, outline.alpha) == (layer.rank, layer.alpha)


def test_the_order_of_fused_and_split_weights_does_not_matter() -> None:
    whole = Target("denoiser", "double_blocks.0.img_attn.qkv")
    make = torch.Generator().manual_seed(0)
    qkv, rows = (
        LoRA(torch.randn(2, 3072, generator=make), torch.randn(out, 2, generator=make), 2.0) for out in (9216, 3072)
    )
    fused = Adapter("flux", {whole: qkv})
    split = Adapter("flux", {replace(whole, block=1): rows})
    proj = replace(whole, module="double_blocks.0.img_attn.proj")
    both = replace(fused, layers={**fused.layers, proj: rows})
    first = only(sum_loras(both, both, 1.0, 1.0))
    made = only(sum_loras(first, split, 1.0, 1.0))
    assert lazy(first).computed == 1  # the one that had to be cut
    q, k, v = (fused.layers[whole].delta() * 2).chunk(3)
    for block, expected in enumerate((q, k + rows.delta(), v)):
        torch.testing.assert_close(made.layers[replace(whole, block=block)].delta(), expected, rtol=1e-5, atol=1e-4)
    assert difference(*alike([made, only(sum_loras(split, first, 1.0, 1.0))])).worst < 1e-6


def test_what_needs_no_numbers_is_refused_at_once() -> None:
    a = adapter(1)
    with pytest.raises(WrongArchitecture, match="lora1 is made for sd15, lora2 for sdxl"):
        sum_loras(a, adapter(2, family="sdxl"), 1.0, 1.0)
    loha = LoHa(torch.ones(320, 2), torch.ones(2, 320), torch.ones(320, 2), torch.ones(2, 320), 2.0)
    with pytest.raises(UnsupportedLayer, match="LoHa layer cannot be stacked"):
        sum_loras(a, Adapter("sd15", {QUERY: loha}), 1.0, 1.0)
    with pytest.raises(UnsupportedLayer, match="DoRA layer depends on the base weight"):
        sum_loras(a, Adapter("sd15", {QUERY: DoRA(a.layers[QUERY], torch.ones(320))}), 1.0, 1.0)
    with pytest.raises(BadValues, match="shapes .* differ"):
        sum_loras(a, Adapter("sd15", {QUERY: a.layers[VALUE]}), 1.0, 1.0)
    with pytest.raises(BadConfig, match="finite number"):
        sum_loras(a, a, float("nan"), 1.0)
    with pytest.raises(BadConfig, match="nothing is left to add"):
        added([Weighted(a, 0.0)])


def test_a_layer_that_holds_nan_is_named_when_it_is_asked_for() -> None:
    broken = adapter(2)
    assert isinstance(broken.layers[VALUE], LoRA)
    broken.layers[VALUE].up[0, 0] = float("nan")
    made = only(sum_loras(adapter(1), broken, 1.0, 1.0))
    assert made.layers[QUERY] is not None
    with pytest.raises(BadValues, match="lora2: 1 of 1 layers hold NaN or infinity, first denoiser middle_block.1"):
        made.layers[VALUE]


def test_a_sum_is_saved_like_any_lora(tmp_path: Path) -> None:
    a, b = adapter(1), adapter(2, QUERY)
    made = only(sum_loras(a, b, 0.5, 1.0))
    path, report = save_lora(FakeHost(tmp_path), made, "sum", "kohya", "keep").values
    assert "relative error 0.0 (exact)" in report
    assert difference(convert.read(path), merge([Weighted(a), Weighted(b, 0.5)])).worst == 0


# --- strengths by block


def test_block_strengths_multiply_and_say_what_they_did() -> None:
    source = adapter(1)
    result = block_strengths(source, "M00=0.5\nOUT03=0")
    made = only(result)
    assert list(made.layers) == [QUERY, VALUE, TEXT] and made.layers[QUERY] is source.layers[QUERY]
    torch.testing.assert_close(made.layers[VALUE].delta(), source.layers[VALUE].delta() * 0.5)
    assert result.values[1] == "mid.attentions.0=0.5\nup.1.attentions.0=0"
    preset = only(block_strengths(source, "OUTD"))
    assert list(preset.layers) == [FORWARD, TEXT]
    assert only(block_strengths(source, "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0")).layers == preset.layers


@pytest.mark.parametrize("text", ["M99=1", "M00", "1,2,3", "all=0"])
def test_bad_block_texts_are_one_line(text: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        block_strengths(adapter(1), text)
    assert "\n" not in refusal.value.message


def test_without_entries_nothing_changes() -> None:
    source = adapter(1)
    made = only(block_strengths(source, ""))
    assert all(made.layers[target] is layer for target, layer in source.layers.items()) and len(made.layers) == 4


# --- picking


@pytest.mark.parametrize(
    ("kind", "part", "blocks", "expected"),
    [
        ("all", "all", "", [QUERY, VALUE, FORWARD, TEXT]),
        ("attention", "all", "", [QUERY, VALUE]),
        ("mlp", "all", "", [FORWARD, TEXT]),
        ("mlp", "denoiser", "", [FORWARD]),
        ("all", "text encoder", "", [TEXT]),
        ("all", "all", "IN01, up\nclip_l.3", [QUERY, FORWARD, TEXT]),
        ("attention", "denoiser", "M00-OUT11", [VALUE]),
    ],
)
def test_layers_are_kept_and_dropped(kind: str, part: str, blocks: str, expected: list[Target]) -> None:
    source = adapter(1)
    kept = only(pick_layers(source, kind, part, blocks, "keep"))
    assert list(kept.layers) == expected and all(kept.layers[at] is source.layers[at] for at in expected)
    if len(expected) < len(SHAPES):
        rest = only(pick_layers(source, kind, part, blocks, "drop"))
        assert set(rest.layers) == set(SHAPES) - set(expected)
        whole = merge([Weighted(kept), Weighted(rest)])
        assert difference(whole, source).worst == 0


def test_nothing_left_and_unknown_blocks_are_refused() -> None:
    with pytest.raises(BadConfig, match="none of the 4 layers is left"):
        pick_layers(adapter(1), "convolution", "all", "", "keep")
    with pytest.raises(BadConfig, match="unknown block 'M99'"):
        pick_layers(adapter(1), "all", "all", "M99", "keep")


def test_text_encoders_alone_fit_several_families() -> None:
    alone = adapter(1, TEXT, family=None)
    made = only(block_strengths(alone, "clip_l.3=0.5"))
    torch.testing.assert_close(made.layers[TEXT].delta(), alone.layers[TEXT].delta() * 0.5)


# --- the catalog


def test_the_nodes_stand_behind_merge(tmp_path: Path) -> None:
    found = {node.id: node for node in nodes(FakeHost(tmp_path))}
    order = list(found)
    start = order.index("LorasmithMergeLoras")
    assert order[start + 1 : start + 4] == ["LorasmithBlockStrengths", "LorasmithPickLayers", "LorasmithSumLoras"]
    numbers = [one for one in found["LorasmithSumLoras"].inputs if isinstance(one, Number)]
    assert all(one.low < 0 < one.high for one in numbers)
    (kinds,) = (one for one in found["LorasmithPickLayers"].inputs if isinstance(one, Choice) and one.id == "kind")
    assert kinds.listed() == ["all", "attention", "mlp", "convolution", "norm", "other"]
