"""Recipes: every result says how it was made, and is made again from that, bit for bit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_against import checkpoint
from test_cli import adapter, refusal

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert import selection
from lorasmith.convert.operations import OPERATIONS
from lorasmith.convert.redo import read_recipe, redo
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.layers import DoRA, Full, LoHa, LoRA
from lorasmith.lora_core.ops import bake, merge, prune, rescale, resize, scale
from lorasmith.lora_core.ops.recipe import RECIPE, VERSION, Recipe, Source, leaves, words
from lorasmith.nodes import actions, algebra

CONV = Target("denoiser", "input_blocks.3.0.op")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three LoRAs, one of them with other kinds of layers and in another dialect; the current one."""
    convert.write(adapter(1), tmp_path / "a.safetensors")
    convert.write(adapter(2, rank=3), tmp_path / "b.safetensors", dtype="fp16")
    convert.write(mixed(), tmp_path / "c.safetensors", "diffusers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Folders:
    """Of a host, the folders alone."""

    def __init__(self, folder: Path):
        self.folder = folder

    def lora_path(self, name: str) -> Path:
        return self.folder / "loras" / name

    def output_folder(self) -> Path:
        return self.folder / "output"


def mixed() -> Adapter:
    """A LoRA with a convolution."""
    make = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 320, 3, 3, generator=make), torch.randn(320, 2, 1, 1, generator=make)
    return replace(adapter(3), layers={**adapter(3).layers, CONV: LoRA(down, up, 1.0)})


def products() -> Adapter:
    """A LoHa and a dense change beside LoRAs."""
    make = torch.Generator().manual_seed(4)
    first, second, *_ = adapter(4).layers
    factors = [torch.randn(320, 2, generator=make), torch.randn(2, 320, generator=make)]
    loha = LoHa(factors[0], factors[1], factors[0] + 1, factors[1] - 1, alpha=1.0, shape=(320, 320))
    bias = replace(second, parameter="bias")
    return replace(adapter(4), layers={**adapter(4).layers, first: loha, bias: Full(torch.ones(1280))})


def tensors(path: str | Path) -> dict[str, torch.Tensor]:
    return dict(store.load(path).tensors)


def same_bytes(one: str | Path, other: str | Path) -> None:
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert tensor.dtype == right[key].dtype and torch.equal(tensor, right[key]), key


def tree(path: str | Path) -> Any:
    return json.loads(convert.read(path).metadata[RECIPE])["tree"]


# --- each operation ---------------------------------------------------------------------------------------------------

Make = Callable[[list[Adapter]], Adapter]

MADE: dict[str, Make] = {
    "scale": lambda given: scale.scale(given[0], 0.3, -2),
    "exact": lambda given: merge.merge([merge.Weighted(given[0], 0.7, 0), merge.Weighted(given[1], -0.1)]),
    "svd": lambda given: merge.merge([merge.Weighted(one, 0.7) for one in given], "svd", 3, 0.99),
    "bake-to-lora": lambda given: bake.to_lora(given[0], 2),
    "resize": lambda given: resize.resize(given[1], "energy", 0.6, None, "fp16"),
    "rescale": lambda given: rescale.rescale(given[0], 1.0, "fp32"),
    "prune": lambda given: prune.prune(given[0], 0.5),
    "select": lambda given: selection.pick(given[2], ["attention"], "denoiser", ["mid.attentions.0"], drop=True),
}


METHODS = [method for operation in OPERATIONS if not operation.models for method in operation.methods]


@pytest.mark.parametrize("method", METHODS)
def test_each_operation_is_redone_bit_for_bit(method: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "b", "c"]
    if method == "bake-to-lora":
        convert.write(products(), "p.safetensors")
        names = ["p"]
    if method not in MADE:
        for seed, name in enumerate(names):  # dense matrices are slow: one small layer
            layers = dict([*adapter(seed).layers.items()][:1])
            convert.write(Adapter("sd15", layers), f"small-{name}.safetensors")
        names = [f"small-{name}" for name in names]
    given = [convert.read(f"{name}.safetensors") for name in names]
    make = MADE.get(method, lambda two: merge.merge([merge.Weighted(one, 0.4) for one in two[:2]], method, 3))
    convert.write(make(given), "first.safetensors", dtype="bf16" if method == "svd" else "keep")
    assert tree("first.safetensors")["operation"]["method"] == method
    assert main(["redo", "first.safetensors", "again.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"redone, the same bit for bit: \d layers, rank \d+, relative error 0\.0 \(exact\)\n", out), out
    assert err == ""
    same_bytes("first.safetensors", "again.safetensors")
    assert store.header("again.safetensors").metadata[RECIPE] == store.header("first.safetensors").metadata[RECIPE]


@pytest.mark.parametrize("format", ["kohya", "diffusers", "comfy", "peft"])
def test_a_conversion_is_redone_in_its_dialect_and_dtype(format: str, here: Path) -> None:
    assert main(["convert", "c.safetensors", "out.safetensors", "--to", format, "--dtype", "bf16"]) == 0
    assert main(["redo", "out.safetensors"]) == 0
    same_bytes("out.safetensors", "out-redone.safetensors")
    recipe = read_recipe("out.safetensors")
    assert (recipe.format, recipe.dtype, recipe.tree["file"]) == (format, "bf16", "c.safetensors")


def test_what_was_spelled_as_an_input_is_so_again(here: Path) -> None:
    assert main(["scale", "c.safetensors", "out.safetensors", "--strength", "0.5"]) == 0
    assert read_recipe("out.safetensors").like == 0
    assert main(["redo", "out.safetensors", "again.safetensors"]) == 0
    same_bytes("out.safetensors", "again.safetensors")
    assert tensors("again.safetensors").keys() == tensors("c.safetensors").keys()


def test_a_chain_of_nodes_is_redone(here: Path) -> None:
    (here / "loras").mkdir()
    for name in "ab":
        (here / f"{name}.safetensors").rename(here / "loras" / f"{name}.safetensors")
    host: Any = Folders(here)
    a, b = (actions.load_lora(host, f"{name}.safetensors").values[0] for name in "ab")
    (scaled,) = actions.scale_lora(a, 0.5, 0.25).values
    merged, _ = actions.merge_loras(scaled, 0.8, b, -1.0, 1.0, 1.0, "svd", 3, lora_c=a).values
    path, _ = actions.save_lora(host, merged, "chain", "kohya", "fp16").values
    assert words(tree(path)) == "svd (rank 3) of (scale (strength 0.5, text encoder 0.25) of a.safetensors)@0.8, " \
        "b.safetensors@-1 and a.safetensors@1"  # fmt: skip
    assert main(["redo", path, "again.safetensors", "--in", "loras"]) == 0
    same_bytes(path, "again.safetensors")


def test_sums_that_wait_and_layers_that_were_picked_are_redone(here: Path) -> None:
    a, b = (convert.read(f"{name}.safetensors") for name in "ab")
    (summed,) = algebra.sum_loras(a, b, -0.5, 1.0).values
    (picked,) = algebra.pick_layers(summed, "attention", "all", "mid, clip_l", "keep").values
    weighed, _ = algebra.block_strengths(picked, "mid=0.5").values
    convert.write(weighed, "lazy.safetensors")
    assert main(["redo", "lazy.safetensors", "again.safetensors"]) == 0
    same_bytes("lazy.safetensors", "again.safetensors")


def test_what_no_file_holds_is_named_and_not_redone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = actions.to_lora_model(adapter(1)).values[0]
    (lora,) = actions.from_lora_model(state).values
    convert.write(scale.scale(lora, 0.5), "made.safetensors")
    convert.write(scale.scale(adapter(1), 0.5), "memory.safetensors")
    said = "the recipe begins with an adapter {}, which no file holds; save that first"
    assert refusal(capsys, "redo", "made.safetensors") == said.format("taken from a LORA_MODEL")
    assert refusal(capsys, "redo", "memory.safetensors") == said.format("in memory")
    assert not list(here.glob("*redone*"))


# --- what a file tells ------------------------------------------------------------------------------------------------


def test_a_recipe_names_files_by_hash_and_tells_no_folder(here: Path) -> None:
    deep = here / "private folder" / "me"
    deep.mkdir(parents=True)
    (here / "a.safetensors").rename(deep / "a.safetensors")
    assert main(["merge", "out.safetensors", str(deep / "a.safetensors@0.8"), "b.safetensors"]) == 0
    text = store.header("out.safetensors").metadata[RECIPE]
    assert "private" not in text and str(here) not in text
    data = json.loads(text)
    assert data["recipe"] == 1 and data["lorasmith"] == VERSION and data["torch"] == torch.__version__
    assert data["tensors"] == store.header("out.safetensors").metadata["sshs_model_hash"]
    files = [deep / "a.safetensors", here / "b.safetensors"]
    assert data["tree"]["inputs"] == [
        {"file": file.name, "bytes": file.stat().st_size, "sha256": store.sha256(file)} for file in files
    ]


def test_what_nobody_knows_the_origin_of_has_no_recipe(here: Path) -> None:
    assert RECIPE not in store.header("a.safetensors").metadata


def test_info_tells_a_recipe_in_words_and_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["merge", "out.safetensors", "a.safetensors@0.8", "b.safetensors@1@0", "--method", "svd", "--rank", "2"])
    main(["convert", "a.safetensors", "copy.safetensors", "--to", "comfy", "--dtype", "bf16"])
    capsys.readouterr()
    assert main(["info", "out.safetensors", "copy.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "  Made: svd (rank 2) of a.safetensors@0.8 and b.safetensors@1@0\n" in out
    assert "  Made: a.safetensors, written anew as bf16\n" in out
    assert main(["info", "--recipe", "out.safetensors"]) == 0
    (here / "recipe.json").write_text(capsys.readouterr().out)
    assert main(["redo", "recipe.json", "again.safetensors"]) == 0
    same_bytes("out.safetensors", "again.safetensors")


def test_a_chain_of_files_records_its_last_step(here: Path) -> None:
    main(["scale", "a.safetensors", "one.safetensors", "--strength", "2"])
    main(["scale", "one.safetensors", "two.safetensors", "--strength", "3"])
    assert words(tree("two.safetensors")) == "scale (strength 3) of one.safetensors"
    assert read_recipe("two.safetensors").tree["inputs"][0]["sha256"] == store.sha256("one.safetensors")


def test_the_version_is_that_of_the_package() -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text()


# --- finding inputs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def merged(here: Path) -> Path:
    """A merge of a and b."""
    main(["merge", "out.safetensors", "a.safetensors@0.8", "b.safetensors"])
    return here


def test_inputs_are_found_under_another_name_and_in_other_folders(merged: Path) -> None:
    (merged / "x").mkdir()
    (merged / "a.safetensors").rename(merged / "x" / "renamed.safetensors")
    (merged / "b.safetensors").rename(merged / "a.safetensors")
    assert main(["redo", "out.safetensors", "again.safetensors", "--in", "x"]) == 0
    same_bytes("out.safetensors", "again.safetensors")


def test_the_folder_of_the_recipe_is_looked_into(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (merged / "elsewhere").mkdir()
    monkeypatch.chdir(merged / "elsewhere")
    assert main(["redo", "../out.safetensors"]) == 0
    same_bytes("../out.safetensors", "out-redone.safetensors")


def test_a_missing_input_and_another_one_are_one_line_each(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    digest = store.sha256("b.safetensors")[:10]
    (merged / "b.safetensors").unlink()
    wanted = f"b.safetensors: not found (SHA-256 {digest}...); give its folder with --in"
    assert refusal(capsys, "redo", "out.safetensors", "again.safetensors") == wanted
    convert.write(adapter(9), "b.safetensors")
    found = refusal(capsys, "redo", "out.safetensors", "again.safetensors")
    assert found == (
        f"b.safetensors: is another file than the recipe's (SHA-256 {digest}...); give that one's folder with --in"
    )
    assert not (merged / "again.safetensors").exists()


def test_an_input_is_never_replaced(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    before = store.sha256("b.safetensors")
    said = refusal(capsys, "redo", "out.safetensors", "b.safetensors", "--force")
    assert said == "b.safetensors: is one of the inputs; give the result another name"
    assert store.sha256("b.safetensors") == before


def test_a_file_that_changed_in_between_has_no_hash(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = convert.read("a.safetensors")
    convert.write(adapter(9), "a.safetensors", overwrite=True)
    convert.write(scale.scale(source, 0.5), "out.safetensors")
    assert tree("out.safetensors")["inputs"][0]["sha256"] is None
    said = "a.safetensors: changed while it was in use, so that the recipe has no hash to find it by"
    assert refusal(capsys, "redo", "out.safetensors") == said
    (here / "b.safetensors").unlink()
    assert Source.of("b.safetensors").digest() is None


def test_a_folder_of_peft_is_an_input_and_a_result(here: Path) -> None:
    main(["convert", "c.safetensors", "folder", "--to", "peft"])
    assert (here / "folder").is_dir()
    main(["scale", "folder", "out.safetensors", "--strength", "0.5", "--to", "kohya"])
    recipe = read_recipe("out.safetensors")
    assert [leaf["file"] for leaf in leaves(recipe.tree)] == ["folder"]
    assert main(["redo", "out.safetensors", "again.safetensors"]) == 0
    same_bytes("out.safetensors", "again.safetensors")
    config = here / "folder" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))
    with pytest.raises(BadConfig, match="is another file than the recipe's"):
        redo(recipe, [here])
    assert read_recipe("folder/adapter_model.safetensors").tree["file"] == "c.safetensors"


def test_other_bits_are_said_to_be_other(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read_recipe("out.safetensors").data()
    (merged / "r.json").write_text(json.dumps({**data, "tensors": "0" * 64, "torch": "1.0"}))
    capsys.readouterr()
    assert main(["redo", "r.json"]) == 0
    out, err = capsys.readouterr()
    assert out == "redone, not the same bit for bit: 3 layers, rank 5, relative error not measured\n"
    assert err == "lorasmith: warning: the first result was made with torch 1.0, whose rounding may differ\n"
    assert main(["redo", "out.safetensors", "j.safetensors", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["identical"] is True and facts["relative_error"] == 0 and set(facts["per_block"].values()) == {0.0}


# --- recipes from strangers -------------------------------------------------------------------------------------------


def scaled(**changes: Any) -> dict[str, Any]:
    """The recipe of a scaled file, some of it changed."""
    leaf = {"file": "a.safetensors", "bytes": 1, "sha256": "0" * 64}
    operation = {"method": "scale", "strength": 0.5, "text_encoder": None}
    return {"recipe": 1, "tree": {"operation": operation, "inputs": [leaf]}, "format": "kohya", **changes}


def operated(**parameters: Any) -> dict[str, Any]:
    one = scaled()
    one["tree"]["operation"] |= parameters
    return one


def deep() -> dict[str, Any]:
    one = scaled()["tree"]
    for _ in range(100):
        one = {"operation": {"method": "scale"}, "inputs": [one]}
    return scaled(tree=one)


DAMAGED = "its recipe is damaged; get another copy of it"
BAD: list[tuple[Any, str]] = [
    ([], "is no recipe; 'info --recipe FILE' prints that of a result"),
    ({}, "is no recipe"),
    (scaled(recipe=2), "its recipe is of a later Lorasmith"),
    (scaled(tree=None), DAMAGED),
    (scaled(tree={"file": "../../etc/passwd", "sha256": "0"}), DAMAGED),
    (scaled(tree={"file": "C:\\a", "sha256": "0"}), DAMAGED),
    (scaled(tree={"file": "..", "sha256": "0"}), DAMAGED),
    (scaled(tree={"operation": {}, "inputs": []}), DAMAGED),
    (scaled(dtype=3), DAMAGED),
    (scaled(like=7), DAMAGED),
    (deep(), DAMAGED),
    (operated(method="frobnicate"), "operation 'frobnicate' is not known; a later Lorasmith may know it"),
    (operated(strength="much"), "scale has strength 'much', which cannot be"),
    (operated(strength=True), "scale has strength True, which cannot be"),
    (operated(extra=1), "scale has extra 1, which cannot be"),
    (scaled(tree={"operation": {"method": "scale"}, "inputs": scaled()["tree"]["inputs"]}), "scale is not whole"),
    (operated(), "a.safetensors: is another file than the recipe's"),
]


@pytest.mark.parametrize(("data", "said"), BAD)
def test_a_recipe_that_cannot_be_is_one_line(
    data: Any, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "r.json").write_text(json.dumps(data))
    assert said in refusal(capsys, "redo", "r.json", "out.safetensors")
    assert not (here / "out.safetensors").exists()


def test_a_recipe_whose_strengths_do_not_fit_its_inputs_is_one_line(
    merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read_recipe("out.safetensors").data()
    for parts, said in (([], "0 strengths for 2 inputs"), ([{"strength": "x"}] * 2, "a strength that is no number")):
        data["tree"]["operation"]["parts"] = parts
        (merged / "r.json").write_text(json.dumps(data))
        capsys.readouterr()
        assert said in refusal(capsys, "redo", "r.json", "again.safetensors")


def test_what_is_no_recipe_at_all_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "r.json").write_bytes(b"\xff\xfe\x00")
    (here / "n.json").write_text("[" * 100_000)
    assert refusal(capsys, "redo", "r.json").startswith("r.json: is no recipe")
    assert refusal(capsys, "redo", "n.json").startswith("n.json: is no recipe")
    assert refusal(capsys, "redo", "gone.json").startswith("gone.json: cannot be read")
    assert refusal(capsys, "redo", "a.safetensors").startswith("a.safetensors: has no recipe")
    assert refusal(capsys, "info", "--recipe", "a.safetensors").startswith("a.safetensors: has no recipe")
    assert "already exists" in refusal(capsys, "redo", "a.safetensors", "b.safetensors")
    damaged = Recipe.of(json.dumps(scaled()), "x")
    assert damaged.dtype == "keep"


# --- models as inputs -------------------------------------------------------------------------------------------------


def model(path: Path, seed: int = 0) -> Path:
    """Write a checkpoint, all of it tiny but for the weight that a layer of `adapter` changes."""
    shapes = {key: [2 if size > 1 else 1 for size in shape] for key, shape in checkpoint("sd15").items()}
    target = next(iter(adapter(1).layers))
    shapes[f"model.diffusion_model.{target.module}.weight"] = [320, 320]
    make = torch.Generator().manual_seed(seed)
    return store.save(path, {key: torch.randn(shape, generator=make) for key, shape in shapes.items()})


def test_a_merge_with_a_base_finds_that_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = model(here / "base.safetensors")
    target, layer = next(iter(adapter(1).layers.items()))
    assert isinstance(layer, LoRA)
    convert.write(Adapter("sd15", {target: DoRA(layer, torch.ones(320, 1))}), "dora.safetensors")
    convert.write(Adapter("sd15", {target: layer}), "a.safetensors", overwrite=True)
    call = ["merge", "out.safetensors", "dora.safetensors@0.5", "a.safetensors", "--method", "svd", "--rank", "4"]
    assert main([*call, "--base", str(base)]) == 0
    files = [leaf["file"] for leaf in leaves(tree("out.safetensors"))]
    assert files == ["dora.safetensors", "a.safetensors", "base.safetensors"]
    assert main(["redo", "out.safetensors"]) == 0
    same_bytes("out.safetensors", "out-redone.safetensors")
    base.unlink()
    model(base, seed=1)
    capsys.readouterr()
    assert "is another file than the recipe's" in refusal(capsys, "redo", "out.safetensors", "x.safetensors")


A, B = {"file": "A"}, {"file": "B"}
TOLD: list[tuple[dict[str, Any], list[Any], str]] = [
    ({"method": "scale", "strength": 0.5, "text_encoder": 0}, [A], "scale (strength 0.5, text encoder 0) of A"),
    ({"method": "select", "kinds": [], "blocks": ["x", "y"], "drop": True}, [A], "select (blocks x y, drop) of A"),
    ({"method": "scale", "blocks": {"mid": 0.5, "up": 0.0}}, [A], "scale (blocks mid=0.5 up=0) of A"),
    ({"method": "ties", "parts": [{"strength": 2.0}, {"text_encoder": 0}]}, [A, B], "ties of A@2 and B@1@0"),
    ({"method": "svd", "rank": 4, "base": "B", "parts": [{"strength": 2}]}, [A, B], "svd (rank 4) of A@2 and B"),
    ({"method": "bake", "allow_partial": False, "parts": [{"strength": 2}]}, [A, B], "bake of A and B@2"),
    ({"method": "exact", "parts": [1]}, [{"made": "in memory"}], "exact of an adapter in memory"),
    ({"method": "exact"}, [{"operation": {"method": "prune"}, "inputs": [A]}, A, B], "exact of (prune of A), A and B"),
]


@pytest.mark.parametrize(("operation", "inputs", "said"), TOLD)
def test_a_recipe_is_told_in_words(operation: dict[str, Any], inputs: list[Any], said: str) -> None:
    assert words({"operation": operation, "inputs": inputs}) == said


@pytest.mark.parametrize("method", ["subtract", "dare-ties", "della", "orthogonal", "ties", "exact"])
@pytest.mark.parametrize("idle", [0, 1, 2])
def test_a_strength_of_nothing_keeps_its_place(tmp_path: Path, method: str, idle: int) -> None:
    """The order of the inputs has a meaning: what is subtracted, which lots are drawn."""
    if (method, idle) == ("orthogonal", 0):
        pytest.skip("nothing would be left")
    for seed, name in enumerate("abc"):
        convert.write(adapter(seed), tmp_path / f"{name}.safetensors")
    given = [f"{tmp_path / name}.safetensors{'@0' if place == idle else ''}" for place, name in enumerate("abc")]
    out, again = str(tmp_path / "out.safetensors"), str(tmp_path / "again.safetensors")
    assert main(["merge", out, *given, "--method", method]) == 0
    assert main(["redo", out, again]) == 0
    one, two = (store.load(path).tensors for path in (out, again))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
