"""An adapter out of two models: as near as its rank allows, with the error that it really has."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import InMemory
from torch import Tensor
from train_models import as_checkpoint, tiny_pipeline

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.checkpoint import open_checkpoint
from lorasmith.convert.difference import extracted, pairs
from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import BadConfig, BadValues, LorasmithError, WrongArchitecture
from lorasmith.lora_core.layers import Additive, Full, LoKr, LoRA
from lorasmith.lora_core.ops.extract import Pair, Settings, extract, halves
from lorasmith.lora_core.ops.sketch import residual, sketch, square_norm
from lorasmith.nodes.extract import extract_lora
from lorasmith.nodes.fit import Weights

pytestmark = pytest.mark.filterwarnings("ignore")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectrum(out: int, inner: int, values: Tensor, seed: int = 0) -> Tensor:
    left, right = (torch.linalg.qr(noise(side, len(values), seed=seed + n)).Q for n, side in enumerate((out, inner)))
    return (left * values) @ right.T


SPECTRA = {
    "flat": lambda out, inner: noise(out, inner),
    "slow": lambda out, inner: spectrum(out, inner, torch.arange(1, min(out, inner) + 1.0) ** -0.5),
    "low rank and noise": lambda out, inner: noise(out, 24) @ noise(24, inner) / 40 + 0.01 * noise(out, inner, seed=5),
    "rank 5": lambda out, inner: noise(out, 5) @ noise(5, inner, seed=1),
}


@pytest.mark.parametrize("kind", SPECTRA)
@pytest.mark.parametrize("shape", [(400, 300), (200, 900), (96, 80)])
@pytest.mark.parametrize("rank", [8, 40])
def test_a_sketch_holds_nearly_all_that_the_best_product_holds(kind: str, shape: tuple[int, int], rank: int) -> None:
    matrix = SPECTRA[kind](*shape)
    squares = torch.linalg.svdvals(matrix.double()).square()
    best = float(squares[:rank].sum())
    found = sketch(matrix, rank)
    left = residual(matrix.clone(), found.factors)
    captured = float(squares.sum()) - left**2
    assert found.factors.rank <= rank
    assert captured >= 0.999 * best
    assert found.energy == pytest.approx(captured, rel=1e-4)
    assert best <= (found.energy + found.missing) * (1 + 1e-5)  # the bound holds
    assert torch.equal(sketch(matrix, rank).factors.rows, found.factors.rows)


def test_a_sketch_leaves_the_global_random_numbers_and_its_matrix_alone() -> None:
    matrix = noise(300, 250)
    before, copy = torch.random.get_rng_state(), matrix.clone()
    sketch(matrix, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(matrix, copy)


@pytest.mark.parametrize("kind", ["slow", "low rank and noise", "flat"])
@pytest.mark.parametrize("energy", [0.3, 0.8, 1.0])
def test_energy_is_reached_with_nearly_the_least_rank(kind: str, energy: float) -> None:
    matrix = SPECTRA[kind](260, 300)
    squares = torch.linalg.svdvals(matrix.double()).square()
    least = int((squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)).nonzero()[0]) + 1
    found = sketch(matrix, energy=energy).factors
    assert least <= found.rank <= least + 1 + least // 20
    share = 1 - residual(matrix.clone(), found) ** 2 / float(squares.sum())
    assert share >= energy - 1e-5


def test_the_residual_is_that_of_the_dense_computation() -> None:
    matrix = SPECTRA["slow"](180, 200)
    factors = sketch(matrix, 7).factors.to(torch.float16).to(torch.float32)
    dense = float((matrix.double() - factors.rows.double() @ factors.columns.double()).norm())
    assert residual(matrix, factors) == pytest.approx(dense, rel=1e-6)
    assert square_norm(torch.full((3, 3), 2.0)) == 36.0


def pair(delta: Tensor, module: str = "a", seed: int = 9) -> Pair:
    base = noise(*delta.shape, seed=seed)
    return Pair(Target("denoiser", module), base, base + delta)


@pytest.mark.parametrize("dtype", ["keep", "fp16"])
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_the_stated_error_is_the_dense_one(kind: str, dtype: str) -> None:
    given = [
        pair(0.1 * SPECTRA["slow"](48, 40), "linear"),
        pair(0.01 * noise(24, 16, 3, 3), "conv"),
        pair(0.03 * noise(40), "norm"),
    ]
    result = extract(given, Settings(kind, rank=6, conv_rank=3, dtype=dtype))
    wanted, missed = 0.0, 0.0
    for one in given:
        change = one.tuned.double() - one.base.double()
        layer = result.adapter.layers.get(one.target)
        made = layer.delta().double() if isinstance(layer, Additive) else torch.zeros_like(change)
        wanted += float(change.square().sum())
        missed += float((change - made).square().sum())
        if isinstance(layer, LoRA):
            assert layer.rank == (3 if one.target.module == "conv" else 6)
    assert result.report.relative_error == pytest.approx(math.sqrt(missed / wanted), rel=1e-5)
    assert (result.vectors, set(result.adapter.layers)) == (1, {given[0].target, given[1].target})
    assert result.left_out == pytest.approx(float((given[2].tuned - given[2].base).norm()) / wanted**0.5, rel=1e-5)


def test_vectors_are_taken_whole_where_they_are_asked_for() -> None:
    one = pair(0.1 * noise(12))
    result = extract([one], Settings(vectors=True))
    layer = result.adapter.layers[one.target]
    assert isinstance(layer, Full)
    assert torch.equal(layer.delta(), one.tuned - one.base)
    assert result.report.relative_error == 0


def test_a_kronecker_product_is_found_again() -> None:
    delta = torch.kron(noise(4, 5), noise(6, 8, seed=1))
    result = extract([pair(delta)], Settings("lokr"))
    (layer,) = result.adapter.layers.values()
    assert isinstance(layer, LoKr)
    assert [halves(24), halves(40)] == [(4, 6), (5, 8)]
    assert result.report.relative_error < 1e-5
    low = torch.kron(noise(4, 5), noise(6, 2, seed=1) @ noise(2, 8, seed=2))
    assert extract([pair(low)], Settings("lokr", rank=2)).report.relative_error < 1e-5


def test_rounding_makes_no_layer_and_equal_models_are_said_to_be_equal() -> None:
    base = noise(64, 64)
    target, other = Target("denoiser", "a"), Target("denoiser", "b")
    with pytest.raises(BadConfig, match="equal in all 1 weights"):
        extract([Pair(target, base, base.clone())], Settings())
    for dtype in (torch.float16, torch.bfloat16):
        rounded = Pair(target, base, base.to(dtype))
        with pytest.raises(BadConfig, match="equal up to rounding"):
            extract([rounded], Settings())
        result = extract([rounded, pair(0.1 * noise(64, 64, seed=3), "b")], Settings(rank=4))
        assert (result.rounding, list(result.adapter.layers)) == (1, [other])
        assert result.report.shares[target].error > 0
    eight = base.to(torch.float8_e4m3fn)
    with pytest.raises(BadConfig, match="equal in all 1 weights"):
        extract([Pair(target, eight, eight.clone())], Settings())
    changed = base.clone()
    changed[3, 4] += 0.01  # one value is no rounding
    assert extract([Pair(target, base, changed.half())], Settings(rank=1)).rounding == 0
    with pytest.raises(BadConfig, match="only 1 norms, biases and embeddings differ"):
        extract([pair(noise(5))], Settings())


@pytest.mark.parametrize(
    ("given", "settings", "kind", "words"),
    [
        (pair(noise(4, 4)), {"rank": 0}, BadConfig, "rank 0"),
        (pair(noise(4, 4)), {"energy": 1.5}, BadConfig, "energy 1.5"),
        (pair(noise(4, 4)), {"kind": "loha"}, BadConfig, "kind 'loha'"),
        (pair(noise(4, 4)), {"kind": "lokr", "energy": 0.5}, BadConfig, "no energy"),
        (pair(noise(4, 4)), {"dtype": "fp7"}, BadConfig, "fp7"),
        (pair(noise(4, 4)), {"device": "abacus"}, BadConfig, "abacus"),
        (pair(torch.full((4, 4), float("nan")), "x.y"), {}, BadValues, r"denoiser\.x\.y.*NaN"),
        (Pair(Target("denoiser", "x"), noise(4, 4), noise(4, 5)), {}, WrongArchitecture, r"\[4, 4\].*\[4, 5\]"),
    ],
)
def test_what_cannot_be_done_is_one_line(given: Pair, settings: dict, kind: type[LorasmithError], words: str) -> None:
    with pytest.raises(kind, match=words) as error:
        extract([given], Settings(**settings))
    assert "\n" not in error.value.message


def test_inputs_that_are_not_ours_stay_as_they_are() -> None:
    one = pair(0.1 * noise(50, 40))
    before = one.tuned.clone()
    extract([one], Settings(rank=2))
    assert torch.equal(one.tuned, before)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small tensors off the thread pool, which costs more than it gives on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model as a pipeline and a file, and the same fine-tuned as a file."""
    folder = tmp_path_factory.mktemp("models")
    file = as_checkpoint(tiny_pipeline(folder / "base"), folder / "base.safetensors")
    generator = torch.Generator().manual_seed(3)
    tuned = {
        key: tensor if key.startswith("first_stage") or not tensor.is_floating_point()
        else tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in load_file(file).items()
    }  # fmt: skip
    save_file(tuned, folder / "tuned.safetensors")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_states_the_error_of_all_that_differs(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    assert run("extract", models / "base.safetensors", models / "tuned.safetensors", out, "--rank", 4, "--json") == 0
    told = capsys.readouterr()
    facts = json.loads(told.out)
    layers = convert.read(out).layers
    wanted, missed = 0.0, 0.0
    for one in pairs(open_checkpoint(models / "base.safetensors"), open_checkpoint(models / "tuned.safetensors")):
        change = one.tuned.double() - one.base.double()
        layer = layers.get(one.target)
        made = layer.delta().double().reshape(change.shape) if isinstance(layer, Additive) else 0 * change
        wanted += float(change.square().sum())
        missed += float((change - made).square().sum())
    assert facts["relative_error"] == pytest.approx(math.sqrt(missed / wanted), rel=1e-5)
    assert facts["vectors_left_out"] == 426
    assert (facts["rank"], facts["architecture"]) == (4, "sd15")
    assert "norms, biases and embeddings differ and were left out" in told.err


def test_a_file_and_a_folder_of_one_model_give_the_same(models: Path) -> None:
    settings = Settings(rank=3)
    one = extracted(models / "base.safetensors", models / "tuned.safetensors", settings)
    two = extracted(models / "base", models / "tuned.safetensors", settings)
    assert one.adapter.layers.keys() == two.adapter.layers.keys()
    for target, layer in one.adapter.layers.items():
        other = two.adapter.layers[target]
        assert isinstance(layer, LoRA) and isinstance(other, LoRA)
        assert torch.equal(layer.up, other.up) and torch.equal(layer.down, other.down)


def test_a_result_can_be_made_again_from_its_recipe(models: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run("extract", models / "base.safetensors", models / "tuned.safetensors", out, "--rank", 2) == 0
    assert run("redo", out, again, "--in", models) == 0
    one, two = load_file(out), load_file(again)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("base.safetensors", "base"), "are equal in all"),
        (("base", "base"), "given as both models"),
        (("base", "missing.safetensors"), "no such file"),
        (("base", "tuned.safetensors", "--rank", "0"), "rank 0"),
        (("base", "tuned.safetensors", "--to", "nothing"), "cannot be written"),
        (("base", "tuned.safetensors", "--rank", "many"), "invalid int value"),
        (("base", "sdxl"), "name two models of one family"),
    ],
)
def test_refusals_are_one_line_and_nothing_is_written(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], call: tuple[str, ...], words: str
) -> None:
    if "sdxl" in call and not (models / "sdxl").exists():
        tiny_pipeline(models / "sdxl", sdxl=True)
        capsys.readouterr()
    base, tuned, *options = call
    assert run("extract", models / base, models / tuned, tmp_path / "out.safetensors", *options) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and words in told
    assert list(tmp_path.iterdir()) == []


class TwoModels:
    """Stands in for the running host with loaded models, each a dict of parameters."""

    def __init__(self) -> None:
        self.shown: list[int] = []

    def weights(self, model: dict[str, Tensor], clip: dict[str, Tensor] | None) -> Weights:
        shapes = {key: tuple(one.shape) for key, one in {**model, **(clip or {})}.items()}
        return Weights(shapes, denoiser=True, text_encoder=clip is not None)

    def parameters(self, model: dict[str, Tensor], clip: dict[str, Tensor] | None) -> InMemory:
        return InMemory({**model, **(clip or {})})

    def progress(self, total: int) -> TwoModels:
        return self

    def show(self, done: int) -> None:
        self.shown.append(done)

    def cancelled(self) -> None:
        return None


def live(file: Path, before: str, after: str) -> dict[str, Tensor]:
    return {after + key[len(before) :]: one for key, one in load_file(file).items() if key.startswith(before)}


def test_the_node_gives_what_the_command_gives(models: Path) -> None:
    wires = [
        live(models / f"{name}.safetensors", before, after)
        for before, after in (("model.diffusion_model.", "diffusion_model."), ("cond_stage_model.", "clip_l."))
        for name in ("tuned", "base")
    ]
    host = TwoModels()
    tuned, base, tuned_clip, base_clip = wires
    made, report = extract_lora(host, tuned, base, "lora", 3, 0.0, 0, False, tuned_clip, base_clip).values
    wanted = extracted(models / "base.safetensors", models / "tuned.safetensors", Settings(rank=3))
    assert made.layers.keys() == wanted.adapter.layers.keys()
    assert all(torch.equal(made.layers[target].up, wanted.adapter.layers[target].up) for target in made.layers)
    error = f"relative error {wanted.report.relative_error:.2g}"
    assert f"{error}; 426 changed norms, biases and embeddings left out" in report
    assert host.shown[-1] == len(host.shown) - 1 > 600
    with pytest.raises(BadConfig, match="only one of the two CLIPs"):
        extract_lora(host, tuned, base, "lora", 3, 0.0, 0, False, tuned_clip)
    with pytest.raises(BadConfig, match="the models are equal"):
        extract_lora(host, base, base, "lora", 3, 0.0, 0, False)
