"""Adapters baked into checkpoints: the stored weights are the changed ones, in every layout, and can be got back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_checkpoint import in_memory, narrow, shard
from torch import Tensor
from train_models import as_checkpoint, tiny_pipeline

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.baked_files import bake
from lorasmith.convert.baking import Oven, edits_of
from lorasmith.convert.checkpoint import Checkpoint, open_checkpoint
from lorasmith.convert.difference import extracted
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, BadValues, FileProblem, UnsupportedLayer, WrongArchitecture
from lorasmith.lora_core.layers import IA3, DoRA, Full, Layer, LoRA
from lorasmith.lora_core.ops.extract import Settings
from lorasmith.lora_core.ops.merge import Weighted

pytestmark = pytest.mark.filterwarnings("ignore")
EVERYTHING = Settings(rank=10_000, vectors=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keep small tensors off the thread pool, which costs more than it gives on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model as a pipeline, a file and a file in fp16; the same fine-tuned; their full difference."""
    folder = tmp_path_factory.mktemp("models")
    base = load_file(as_checkpoint(tiny_pipeline(folder / "base"), folder / "base.safetensors"))
    generator = torch.Generator().manual_seed(3)
    tuned = {
        key: tensor if key.startswith("first_stage") or not tensor.is_floating_point()
        else tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
        for key, tensor in base.items()
    }  # fmt: skip
    save_file(tuned, folder / "tuned.safetensors", {"modelspec.title": "mine"})
    save_file(base, folder / "base.safetensors", {"modelspec.title": "mine"})
    halved = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in base.items()}
    save_file(halved, folder / "half.safetensors")
    found = extracted(folder / "base.safetensors", folder / "tuned.safetensors", EVERYTHING).adapter
    convert.write(found, folder / "full.safetensors")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def largest_difference(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[key].double() - two[key].double()).abs().max()) for key in one)


def test_base_and_full_difference_make_the_tuned_model(models: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.safetensors"
    assert run("bake", models / "base.safetensors", out, models / "full.safetensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    result, tuned = load_file(out), load_file(models / "tuned.safetensors")
    assert largest_difference(result, tuned) < 1e-6
    assert {key: one.dtype for key, one in result.items()} == {key: one.dtype for key, one in tuned.items()}
    assert 0 < facts["relative_error"] < 3e-6
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "mine"
    told = json.loads(metadata["lorasmith.recipe"])["tree"]
    assert told["operation"]["method"] == "bake" and told["operation"]["parts"][0]["strength"] == 1
    assert [one["file"] for one in told["inputs"]] == ["base.safetensors", "full.safetensors"]
    assert all(len(one["sha256"]) == 64 for one in told["inputs"])
    assert str(tmp_path) not in metadata["lorasmith.recipe"]
    again = tmp_path / "again.safetensors"
    assert run("redo", out, again, "--in", models) == 0
    assert "redone, the same bit for bit: " in capsys.readouterr().out
    assert largest_difference(load_file(again), result) == 0


def test_an_extraction_is_redone_bit_for_bit(models: Path, tmp_path: Path, capsys) -> None:
    assert run("redo", models / "full.safetensors", tmp_path / "full.safetensors") == 0
    assert capsys.readouterr().out.startswith("redone, the same bit for bit: ")
    assert largest_difference(load_file(tmp_path / "full.safetensors"), load_file(models / "full.safetensors")) == 0


def test_what_is_baked_can_be_taken_out_again(models: Path, tmp_path: Path) -> None:
    lora, baked, back = models / "full.safetensors", tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert run("bake", models / "base.safetensors", baked, f"{lora}@0.7@-0.3") == 0
    assert run("bake", baked, back, f"{lora}@0.7@-0.3", "--unbake") == 0
    base = load_file(models / "base.safetensors")
    assert largest_difference(load_file(back), base) < 1e-6
    assert largest_difference(load_file(baked), base) > 0.01


def test_the_error_is_that_of_rounding_to_the_dtype_of_the_file(models: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.safetensors"
    assert run("bake", models / "half.safetensors", out, models / "full.safetensors@0.5", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    before, after = load_file(models / "half.safetensors"), load_file(out)
    delta = load_file(models / "tuned.safetensors")
    base = load_file(models / "base.safetensors")
    wanted, missed = 0.0, 0.0
    for key, tensor in after.items():
        assert tensor.dtype == before[key].dtype
        change = 0.5 * (delta[key].double() - base[key].double())
        wanted += float(change.square().sum())
        missed += float((tensor.double() - before[key].double() - change).square().sum())
    assert facts["relative_error"] == pytest.approx((missed / wanted) ** 0.5, rel=1e-3)
    assert facts["relative_error"] > 1e-4


def test_another_dtype_is_written_throughout(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert run("bake", models / "base.safetensors", out, models / "full.safetensors", "--dtype", "bf16") == 0
    assert {one.dtype for one in load_file(out).values() if one.is_floating_point()} == {torch.bfloat16}


def test_a_folder_stays_a_folder_and_holds_the_same(models: Path, tmp_path: Path) -> None:
    folder, out = tiny_pipeline(tmp_path / "model"), tmp_path / "out"
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    shard(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert run("bake", folder, out, models / "full.safetensors") == 0
    assert run("bake", models / "base.safetensors", tmp_path / "f.safetensors", models / "full.safetensors") == 0
    one, two = open_checkpoint(out), open_checkpoint(tmp_path / "f.safetensors")
    assert set(one.targets) == set(two.targets)
    for target in one.targets:
        assert torch.equal(one.weight(target).flatten(), two.weight(target).flatten()), target
    stale = {"unet/diffusion_pytorch_model.fp16.safetensors"}
    assert files_below(out) == files_below(folder) - stale
    assert load_file(out / "vae/diffusion_pytorch_model.safetensors").keys()
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out", "f.safetensors"}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def oven(checkpoint: Checkpoint, layers: Mapping[Target, Layer], **options: bool) -> Oven:
    return Oven(checkpoint, edits_of(checkpoint, [Weighted(Adapter("flux", layers), 0.5)], **options))


def layer(out: int, inner: int, seed: int) -> LoRA:
    return LoRA(noise(2, inner, seed=seed), noise(out, 2, seed=seed + 1), 2.0)


QKV, LAST = Target("denoiser", "double_blocks.0.img_attn.qkv"), Target("denoiser", "final_layer.adaLN_modulation.1")


def both_layouts() -> tuple[Checkpoint, Checkpoint]:
    """FLUX.1 with two columns, in the original layout and, by Diffusers' converter, in its own."""
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    original = narrow("flux-dev.bfl")
    theirs = utils.convert_flux_transformer_checkpoint_to_diffusers(dict(original))
    return in_memory(original, "flux"), in_memory(theirs, "flux")


def test_split_fused_and_swapped_weights_change_as_the_whole_one_does() -> None:
    one, two = both_layouts()
    part = Target("denoiser", "single_blocks.1.linear1", 3)
    layers: dict[Target, Layer] = {
        QKV: layer(9216, 2, 1),
        LAST: layer(6144, 2, 3),
        part: layer(12288, 2, 5),
        Target("denoiser", "double_blocks.0.img_attn.qkv", None, "bias"): Full(noise(9216, seed=8)),
    }
    for target, added in layers.items():
        wanted = one.weight(target).double() + 0.5 * added.delta().double()
        for checkpoint in (one, two):
            baked = {**raw(checkpoint), **changed(oven(checkpoint, layers))}
            got = in_memory(baked, "flux").weight(target)
            assert torch.equal(got, wanted.float()), (target, checkpoint is two)


def raw(checkpoint: Checkpoint) -> dict[str, Tensor]:
    return {key: entry.read() for key, entry in checkpoint.entries.items()}


def changed(hot: Oven) -> dict[str, Tensor]:
    """Return the tensors that change, and none besides."""
    return {key: hot.baked(key) for key in hot.checkpoint.entries if hot.touches([key])}


def test_a_layer_that_needs_the_whole_weight_gets_it_in_either_layout() -> None:
    one, two = both_layouts()
    inner = layer(9216, 2, 1)
    dora = DoRA(inner, noise(1, 2, seed=7).abs() + 1)  # lengths of columns, over all rows
    wanted = dora.apply(one.weight(QKV).double(), 0.5)
    for checkpoint in (one, two):
        hot = oven(checkpoint, {QKV: dora})
        got = in_memory({**raw(checkpoint), **changed(hot)}, "flux").weight(QKV)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_factor_on_what_leaves_a_module_acts_on_its_bias_too() -> None:
    one, _ = both_layouts()
    ia3 = IA3(noise(9216, 1, seed=2), on_input=False, absolute=True)
    hot = oven(one, {QKV: ia3})
    assert sorted(changed(hot)) == [f"{QKV.module}.bias", f"{QKV.module}.weight"]


def test_layers_without_a_weight_are_refused_or_listed() -> None:
    one, _ = both_layouts()
    layers = {QKV: layer(9216, 2, 1), Target("denoiser", "nowhere"): layer(3, 2, 1), LAST: layer(6143, 2, 1)}
    with pytest.raises(WrongArchitecture, match="2 layers find no weight of their shape, first denoiser") as error:
        oven(one, layers)
    assert "\n" not in error.value.message
    hot = oven(one, layers, allow_partial=True)
    assert (hot.edits.count, list(hot.edits.unplaced)) == (1, ["denoiser.nowhere", f"denoiser.{LAST.module}"])


def test_what_depends_on_the_weight_cannot_be_taken_out() -> None:
    one, _ = both_layouts()
    dora = DoRA(layer(9216, 2, 1), noise(9216, 1, seed=7))
    with pytest.raises(UnsupportedLayer, match="DoRA layer, whose effect depends on the weight"):
        oven(one, {QKV: dora}, unbake=True)


def test_values_that_a_file_cannot_hold_are_refused() -> None:
    one, _ = both_layouts()
    nan = {QKV: LoRA(torch.full((1, 2), float("nan")), noise(9216, 1), 1.0)}
    with pytest.raises(BadValues, match=r"denoiser double_blocks\.0\.img_attn\.qkv"):
        oven(one, nan)
    with pytest.raises(BadConfig, match="nothing to bake"):
        edits_of(one, [Weighted(Adapter("flux", {QKV: layer(9216, 2, 1)}), 0.0)])
    hot = Oven(one, edits_of(one, [Weighted(Adapter("flux", {QKV: layer(9216, 2, 1)}), 1e5)]), "fp16")
    with pytest.raises(BadValues, match="choose bf16 or fp32"):
        hot.baked(f"{QKV.module}.weight")


def test_nothing_is_left_where_the_work_breaks_off(models: Path, tmp_path: Path) -> None:
    lora = convert.read(models / "full.safetensors")

    def stop(done: int, total: int) -> None:
        if done == 300:
            raise KeyboardInterrupt

    for source, name in ((models / "base.safetensors", "out.safetensors"), (models / "base", "out")):
        with pytest.raises(KeyboardInterrupt):
            bake(open_checkpoint(source), [Weighted(lora)], tmp_path / name, seen=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (("base.safetensors", "base.safetensors", "full.safetensors", "--force"), "one of the inputs"),
        (("base.safetensors", "full.safetensors", "full.safetensors", "--force"), "one of the inputs"),
        (("base.safetensors", "tuned.safetensors", "full.safetensors"), "already exists"),
        (("base", "base", "full.safetensors", "--force"), "one of the inputs"),
        (("full.safetensors", "new", "full.safetensors"), "is a LoRA itself"),
        (("base.safetensors", "new", "base.safetensors"), "not a LoRA"),
        (("base.safetensors", "new", "full.safetensors@nan"), "strength nan"),
        (("base.safetensors", "new", "full.safetensors@much"), "is no strength"),
        (("base.safetensors", "new", "full.safetensors@0"), "nothing to bake"),
        (("base.safetensors", "new", "full.safetensors", "--dtype", "fp7"), "dtype 'fp7'"),
        (("sdxl", "new", "full.safetensors"), "is made for Stable Diffusion 1.x"),
    ],
)
def test_refusals_are_one_line_and_nothing_is_written(models: Path, capsys, call: tuple[str, ...], words: str) -> None:
    if "sdxl" in call and not (models / "sdxl").exists():
        tiny_pipeline(models / "sdxl", sdxl=True)
        capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in models.iterdir()}
    checkpoint, out, lora, *options = call
    assert run("bake", models / checkpoint, models / out, models / lora, *options) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and words in told, told
    assert {path: path.stat().st_mtime_ns for path in models.iterdir()} == before


def test_pickled_shards_are_refused(models: Path, tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "model")
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "unet" / "diffusion_pytorch_model.bin")
    lora = convert.read(models / "full.safetensors")
    bake(open_checkpoint(folder), [Weighted(lora)], tmp_path / "out")
    assert (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert not (tmp_path / "out" / "unet" / "diffusion_pytorch_model.bin").exists()
    one = folder / "unet" / "diffusion_pytorch_model.bin"
    one.rename(one.with_name("diffusion_pytorch_model-00001-of-00001.bin"))
    with pytest.raises(UnsupportedLayer, match="convert it to safetensors first"):
        bake(open_checkpoint(folder), [Weighted(lora)], tmp_path / "out2")
    with pytest.raises(FileProblem, match="already exists"):
        bake(open_checkpoint(folder), [Weighted(lora)], tmp_path / "out", overwrite=True)
