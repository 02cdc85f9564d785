"""Laws of pruning and rescaling: what goes is what was said, and what stays does the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues
from lorasmith.lora_core.layers import IA3, DoRA, Full, GLoRA, LoHa, LoKr, LoRA, Norm
from lorasmith.lora_core.ops.prune import dropped, prune
from lorasmith.lora_core.ops.report import difference
from lorasmith.lora_core.ops.rescale import rescale
from lorasmith.nodes import resize as node

QUERY, KEY, VALUE, OUT = (
    Target("denoiser", f"input_blocks.1.1.transformer_blocks.0.attn1.{name}")
    for name in ("to_q", "to_k", "to_v", "to_out.0")
)


def lora(seed: int, alpha: float = 4.0, dtype: torch.dtype = torch.float32, size: float = 1.0) -> LoRA:
    make = torch.Generator().manual_seed(seed)
    down, up = torch.randn(8, 32, generator=make), torch.randn(40, 8, generator=make) * size
    return LoRA(down.to(dtype), up.to(dtype), alpha)


def adapter(dtype: torch.dtype = torch.float32) -> Adapter:
    """Three layers of falling size, the third of which is zero, and one with two idle ranks."""
    idle = lora(3, dtype=dtype)
    idle.up[:, 2] = 0
    idle.down[5] = 0
    zero = replace(lora(2, dtype=dtype), up=torch.zeros(40, 8, dtype=dtype))
    return Adapter("sd15", {QUERY: lora(0, dtype=dtype), KEY: lora(1, dtype=dtype, size=1e-3), VALUE: zero, OUT: idle})


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


OTHERS = {
    "loha": LoHa(random(40, 3), random(3, 32), random(40, 3), random(3, 32), 2.0),
    "lokr": LoKr(2.0, w1=random(4, 4), w2_a=random(10, 4), w2_b=random(4, 8)),
    "glora": GLoRA(random(32, 4), random(4, 32), random(40, 4), random(4, 32), 1.0),
    "dora": DoRA(lora(5), random(40, 1).abs()),
}


# --- prune ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_what_does_nothing_goes_and_the_effect_stays(dtype: torch.dtype) -> None:
    source = adapter()
    source = replace(source, layers={t: replace(o, up=o.up.to(dtype)) for t, o in source.layers.items()})
    result = prune(source)
    assert result.layers.keys() == {QUERY, KEY, OUT} and result.layers[QUERY] is source.layers[QUERY]
    kept = [0, 1, 3, 4, 6, 7]
    out = result.layers[OUT]
    assert torch.equal(out.down, source.layers[OUT].down[kept]) and out.alpha == 3.0
    assert torch.equal(out.up.float(), source.layers[OUT].up.float()[:, kept]) and out.up.dtype == dtype
    assert difference(result, source).relative_error < 1e-7
    gone = dropped(source, result)
    assert gone.layers == (VALUE,) and gone.ranks == 2


def test_what_is_small_goes_by_its_share_of_the_whole() -> None:
    source = adapter()
    sizes = {target: float(layer.delta().double().norm()) for target, layer in source.layers.items()}
    total = math.sqrt(sum(size**2 for size in sizes.values()))
    share = sizes[KEY] / total
    assert KEY in prune(source, share * 0.9).layers
    result = prune(source, share * 1.1)
    assert result.layers.keys() == {QUERY, OUT} and result.layers[QUERY].rank == 8
    assert difference(result, source).relative_error == pytest.approx(share, rel=1e-5)


def test_small_ranks_go_by_the_same_measure() -> None:
    layer = lora(0)
    layer.up[:, 3] *= 1e-4
    source = Adapter("sd15", {QUERY: layer})
    result = prune(source, 1e-3)
    assert result.layers[QUERY].rank == 7 and result.layers[QUERY].scale == layer.scale
    term = layer.rows()[:, 3].double().norm() * layer.down[3].double().norm()
    assert difference(result, source).relative_error == pytest.approx(
        float(term / layer.delta().double().norm()), rel=1e-4
    )


def test_layers_that_depend_on_the_weight_go_only_without_any_effect() -> None:
    still, acting = IA3(torch.zeros(40, 1), on_input=False), IA3(torch.full((40, 1), 1e-9), on_input=False)
    source = Adapter("sd15", {**adapter().layers, KEY: still, VALUE: acting})
    assert KEY not in prune(source).layers and VALUE in prune(source, 0.5).layers


def test_other_kinds_are_measured_by_their_change() -> None:
    layers = {
        QUERY: OTHERS["loha"],
        KEY: OTHERS["lokr"].scaled(1e-6),
        VALUE: Norm(torch.full((8,), 1e-6)),
        OUT: Full(random(8)),
    }
    assert prune(Adapter("sd15", layers), 1e-3).layers.keys() == {QUERY, OUT}


def test_pruning_at_fault_is_one_line() -> None:
    for below in (-0.1, 1, math.nan):
        with pytest.raises(BadConfig, match="give a share of the whole"):
            prune(adapter(), below)
    with pytest.raises(BadConfig, match="every layer is zero"):
        prune(Adapter("sd15", {VALUE: adapter().layers[VALUE]}))
    broken = adapter()
    broken.layers[KEY].down[0, 0] = math.inf
    with pytest.raises(BadValues, match="attn1.to_k"):
        prune(broken)


# --- rescale ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 8.0, 1.0, 32.0])
def test_a_power_of_two_is_exact(alpha: float | None) -> None:
    source = Adapter("sd15", {QUERY: lora(0, 4.0, torch.float16), KEY: lora(1, 2.0, torch.bfloat16)})
    result = rescale(source, alpha)
    for target, layer in result.layers.items():
        assert layer.alpha == (alpha or 8.0) and layer.up.dtype == source.layers[target].up.dtype
        assert torch.equal(layer.down, source.layers[target].down)
        assert torch.equal(layer.delta(), source.layers[target].delta())
    assert result.metadata["ss_network_alpha"] == str(alpha or 8.0)


@pytest.mark.parametrize(("dtype", "bound"), [("keep", 5e-4), ("fp32", 1e-7)])
def test_else_one_factor_is_rounded_once(dtype: str, bound: float) -> None:
    source = Adapter("sd15", {QUERY: lora(0, 3.0, torch.float16)})
    result = rescale(source, 7.0, dtype)
    assert 0 < difference(result, source).relative_error < bound
    assert result.layers[QUERY].up.dtype == (torch.float16 if dtype == "keep" else torch.float32)


@pytest.mark.parametrize("name", OTHERS)
def test_all_kinds_with_an_alpha_do_the_same_with_another(name: str) -> None:
    layer, weight = OTHERS[name], random(40, 32)
    made = rescale(Adapter("sd15", {QUERY: layer}), 16.0).layers[QUERY]
    assert (made.layer if name == "dora" else made).alpha == 16.0 and type(made) is type(layer)
    for strength in (1.0, 0.3):
        torch.testing.assert_close(made.apply(weight, strength), layer.apply(weight, strength), rtol=1e-5, atol=1e-5)


def test_scalars_move_into_the_factor_and_idle_alphas_stay() -> None:
    early = replace(lora(0), scalar=torch.tensor(0.5))
    idle = LoKr(7.0, w1=random(4, 4), w2=random(10, 8))
    norm = Norm(torch.ones(8))
    result = rescale(Adapter("sd15", {QUERY: early, KEY: idle, VALUE: norm}))
    assert result.layers[KEY] is idle and result.layers[VALUE] is norm
    assert result.layers[QUERY].scalar is None and result.layers[QUERY].scale == 1
    assert torch.equal(result.layers[QUERY].delta(), early.delta())


def test_rescaling_at_fault_is_one_line() -> None:
    for alpha in (0, -1, math.nan, 1e9):
        with pytest.raises(BadConfig, match="give a number from 1e-06 to 1e"):
            rescale(adapter(), alpha)
    with pytest.raises(BadConfig, match="no layer has an alpha"):
        rescale(Adapter("sd15", {VALUE: Norm(torch.ones(4))}), 4)
    with pytest.raises(BadValues, match="attn1.to_q: too large for its dtype at this alpha"):
        rescale(Adapter("sd15", {QUERY: lora(0, 1e5, torch.float16)}), 1e-3)


# --- the command line and the node ------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    convert.write(adapter(torch.float16), tmp_path / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prune_says_what_went(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", "a.safetensors", "o.safetensors"]) == 0
    expected = "dropped 1 layers and 2 ranks, left 3 layers, rank 8, relative error"
    assert capsys.readouterr().out.startswith(expected)
    assert main(["prune", "a.safetensors", "o.safetensors", "--below", "0.01", "--json", "--force"]) == 0
    said = json.loads(capsys.readouterr().out)
    names = [f"denoiser.{target.module}" for target in (KEY, VALUE)]
    assert said["dropped"] == {"layers": names, "ranks": 2} and 0 < said["relative_error"] < 0.01
    assert convert.read("o.safetensors").layers.keys() == {QUERY, OUT}


def test_rescale_says_how_exact_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rescale", "a.safetensors", "o.safetensors", "--alpha", "rank"]) == 0
    assert capsys.readouterr().out.startswith("rescaled to alpha each layer's rank, 4 layers, rank 8, relative error ")
    assert {layer.alpha for layer in convert.read("o.safetensors").layers.values()} == {8.0}
    assert main(["rescale", "a.safetensors", "o.safetensors", "--alpha", "3", "--json", "--force"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["relative_error"] < 5e-4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("prune a.safetensors o --below 2", "below 2: give a share"),
        ("prune a.safetensors o --below x", "--below"),
        ("rescale a.safetensors o", "--alpha"),
        ("rescale a.safetensors o --alpha 0", "alpha 0: give a number"),
        ("rescale a.safetensors o --alpha lots", "'lots' is no alpha"),
        ("rescale a.safetensors a.safetensors --alpha 1", "is one of the inputs"),
    ],
)
def test_a_call_at_fault_is_one_line(call: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lorasmith: error: ") and err.count("\n") == 1 and words in err
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("call", ["prune", "rescale --alpha 2", "resize --rank 2", "resize --size 1MB"])
def test_a_damaged_file_is_named_with_its_layer(call: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = adapter(torch.float16)
    broken.layers[KEY].up[0, 0] = math.nan
    convert.write(broken, here / "bad.safetensors")
    verb, *others = call.split()
    assert main([verb, "bad.safetensors", "o", *others]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lorasmith: error: bad.safetensors: 1 of 4 layers hold NaN") and "attn1.to_k" in said
    assert not (here / "o").exists()


def test_the_node_prunes_and_sets_alpha() -> None:
    kept, report = node.prune_lora(adapter(), 0.0, "keep").values
    assert report.startswith("dropped 1 layers and 2 ranks; left ") and kept.layers[OUT].alpha == 3.0
    assert node.prune_lora(adapter(), 0.0, "rank").values[0].layers[OUT].alpha == 6.0
