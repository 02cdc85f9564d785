"""A model's weights by target: every family, every layout, single files and folders; Diffusers' converters as judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_against import LAYOUTS, checkpoint, names
from test_architectures import LAYOUTS as DUMPS
from torch import Tensor
from train_models import as_checkpoint, tiny_pipeline

from lorasmith.convert.against import model_as, model_of
from lorasmith.convert.checkpoint import Checkpoint, Entry, open_checkpoint
from lorasmith.convert.keymap import keymap
from lorasmith.convert.parameters import parameters, weight_files
from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import BadConfig, FileProblem, LorasmithError, UnsupportedLayer, WrongArchitecture

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class InMemory:
    """Stands in for a file; remembers what was read of it."""

    tensors: Mapping[str, Tensor]
    path: Path = Path("model.safetensors")
    read_rows: list[tuple[str, int, int | None]] = field(default_factory=list)

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        self.read_rows.append((key, start, stop))
        whole = self.tensors[key]
        return whole if (start, stop) == (0, None) else whole[start:stop]

    def dtype(self, key: str) -> torch.dtype:
        return self.tensors[key].dtype


def in_memory(tensors: Mapping[str, Tensor], family: str | None = None) -> Checkpoint:
    file = InMemory(tensors)
    entries = {key: Entry(file, key, tuple(tensor.shape)) for key, tensor in tensors.items()}
    shapes = {key: one.shape for key, one in entries.items()}
    model = model_as(family, shapes, "m") if family else model_of(shapes, "m")
    return Checkpoint(file.path, model, {}, entries)


def empty(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def narrow(model: str, seed: int = 0) -> dict[str, Tensor]:
    """A model's parameters with all their rows, which converters cut by fixed numbers, and two columns."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn([*shape[:1], *(min(size, 2) for size in shape[1:])], generator=generator)
        for key, shape in names(model).items()
    }


BODIES = [(dump, family) for dump, family, component, *_ in DUMPS if component == "denoiser"]


@pytest.mark.parametrize(("dump", "family"), BODIES)
def test_every_familys_modules_find_a_weight_of_their_shape(dump: str, family: str) -> None:
    found, map = in_memory(empty(names(dump)), family), keymap(family)
    missing = []
    for name, target in map.targets("denoiser", "original").items():
        if found.shape(target) is None:
            missing.append(name)
            continue
        for one in (target, *found.blocks(target)):
            weight, expected = found.weight(one), map.shape(one)
            assert weight.shape == found.shape(one)
            assert weight.numel() == torch.Size(expected).numel(), one
    assert len(missing) <= 0.1 * len(map.modules("denoiser")), missing  # what this variant of the family lacks


@pytest.mark.parametrize("family", LAYOUTS)
def test_text_encoders_in_single_files_find_a_weight_of_their_shape(family: str) -> None:
    found = in_memory(empty(checkpoint(family)))
    for part in found.model.components:
        for target in keymap(family).targets(part, "original").values():
            assert found.weight(target).shape == keymap(family).shape(target)


CONVERTERS = {  # a model in the original layout, and Diffusers' function that brings it into its own
    "flux-dev.bfl": "flux_transformer_checkpoint",
    "chroma.bfl": "chroma_transformer_checkpoint",
    "flux2-klein4b.bfl": "flux2_transformer_checkpoint",
    "sd3-medium.mmdit": "sd3_transformer_checkpoint",
    "sd35-medium.mmdit": "sd3_transformer_checkpoint",
    "auraflow.comfy": "auraflow_transformer_checkpoint",
    "lumina2.lumina": "lumina2",
    "mochi.genmo": "mochi_transformer_checkpoint",
    "z-image.lumina": "z_image_transformer_checkpoint",
    "wan21-1.3b-t2v.wan": "wan_transformer",
    "ltx-video-2b.comfy": "ltx_transformer_checkpoint",
}


@pytest.mark.parametrize("model", CONVERTERS)
def test_both_layouts_give_the_values_that_diffusers_own_converter_gives(model: str) -> None:
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    convert = getattr(utils, f"convert_{CONVERTERS[model]}_to_diffusers", None)
    if convert is None:
        pytest.skip("this version of Diffusers has no such converter")
    original = narrow(model)
    ours = in_memory(original)
    theirs = in_memory(convert(dict(original)))
    assert theirs.architecture == ours.architecture
    shared = [target for target in ours.targets if theirs.shape(target)]
    assert len(shared) >= 0.95 * len(ours.targets)
    for target in shared:
        assert torch.equal(ours.weight(target), theirs.weight(target)), target
        for part in ours.blocks(target):
            assert torch.equal(ours.weight(part), theirs.weight(part)), part


def test_openclip_gives_the_values_that_diffusers_own_converter_gives() -> None:
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    lead = "conditioner.embedders.1.model."
    generator = torch.Generator().manual_seed(1)
    shapes = names("sdxl.ldm.openclip_g")
    small = {key: [16 * size // 1280 if size % 1280 == 0 else size for size in shape] for key, shape in shapes.items()}
    text = {f"{lead}{key}": torch.randn(shape, generator=generator) for key, shape in small.items()}
    stub = SimpleNamespace(config=SimpleNamespace(hidden_size=16))
    converted = utils.convert_open_clip_checkpoint(stub, dict(text), prefix=lead)
    body = names("sdxl.ldm.unet")
    ours = in_memory({**empty({f"model.diffusion_model.{key}": shape for key, shape in body.items()}), **text})
    checked = 0
    for target in ours.targets:
        name = f"{target.module}.{target.parameter}"
        if target.component == "clip_g" and name in converted:
            assert torch.equal(ours.weight(target), converted[name]), name
            checked += 1
    assert checked >= 32 * 16 + 4


def test_one_model_is_the_same_in_a_file_a_pickle_a_folder_and_shards(tmp_path: Path) -> None:
    folder = tiny_pipeline(tmp_path / "pipeline")
    file = as_checkpoint(folder, tmp_path / "model.safetensors")
    torch.save({"state_dict": load_file(file)}, tmp_path / "model.ckpt")
    torch.save(load_file(file), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    sharded = tiny_pipeline(tmp_path / "sharded")
    shard(sharded / "unet" / "diffusion_pytorch_model.safetensors")
    first, *others = (
        open_checkpoint(path) for path in (file, tmp_path / "model.ckpt", tmp_path / "old.ckpt", folder, sharded)
    )
    assert first.architecture == "sd15"
    assert {target.component for target in first.targets} == {"denoiser", "clip_l"}
    assert len(first.targets) > 600
    for other in others:
        assert set(other.targets) == set(first.targets), other.path
        for target in first.targets:
            one, two = first.weight(target), other.weight(target)
            assert torch.equal(one.flatten(1), two.flatten(1)) if one.dim() > 1 else torch.equal(one, two), target


def shard(file: Path) -> None:
    """Cut a weight file in two."""
    tensors = list(load_file(file).items())
    half = len(tensors) // 2
    for n, part in enumerate((tensors[:half], tensors[half:])):
        save_file(dict(part), file.with_name(f"{file.stem}-{n + 1:05}-of-00002.safetensors"))
    index = {"weight_map": {}}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps(index))
    file.unlink()


def test_no_more_is_read_than_what_is_asked_for() -> None:
    found = in_memory(narrow("flux-dev.bfl"))
    file = next(iter(found.entries.values())).file
    block = Target("denoiser", "single_blocks.3.linear1", 3)
    assert found.weight(block).shape == (12288, 2)
    assert file.read_rows == [("single_blocks.3.linear1.weight", 9216, 21504)]


def test_every_stored_tensor_is_told_what_it_holds() -> None:
    held = parameters("sdxl")["conditioner.embedders.1.model.transformer.resblocks.5.attn.in_proj_bias"]
    assert [target.module.rpartition(".")[2] for target in held.targets] == ["q_proj", "k_proj", "v_proj"]
    assert {target.parameter for target in held.targets} == {"bias"}
    assert parameters("flux")["transformer.norm_out.linear.weight"].swapped
    assert not parameters("flux")["model.diffusion_model.final_layer.adaLN_modulation.1.weight"].swapped


def test_plain_files_come_before_variants(tmp_path: Path) -> None:
    for name in ("model.fp16-00001-of-00002", "model-00001-of-00002", "model-00002-of-00002", "model.non_ema"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "model.bin").touch()
    assert [file.name for file in weight_files(tmp_path)] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


BAD: dict[str, tuple[Callable[[Path], object], type[LorasmithError], str]] = {
    "nothing there": (lambda path: None, FileProblem, "no such file"),
    "empty folder": (lambda path: path.mkdir(), FileProblem, "no model in this folder"),
    "text": (lambda path: path.write_text("hello there"), FileProblem, "neither a safetensors file"),
    "LoRA": (
        lambda path: save_file({f"lora_unet_x.lora_{n}.weight": torch.ones(2, 2) for n in ("up", "down")}, path),
        BadConfig,
        "is a LoRA itself",
    ),
    "unknown family": (
        lambda path: save_file({f"rings.{n}.turn.weight": torch.ones(2, 2) for n in range(9)}, path),
        BadConfig,
        "a family that no table knows",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_model_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, kind, words = BAD[case]
    make(tmp_path / "m")
    with pytest.raises(kind, match=words) as error:
        open_checkpoint(tmp_path / "m")
    assert "\n" not in error.value.message


def test_absent_and_scaled_weights_are_refused_in_one_line() -> None:
    tensors = narrow("flux-dev.bfl")
    with pytest.raises(WrongArchitecture, match=r"without denoiser\.double_blocks\.99\.x"):
        in_memory(tensors).weight(Target("denoiser", "double_blocks.99.x"))
    scaled = in_memory({**tensors, "single_blocks.0.linear1.scale_weight": torch.ones(1)})
    codes = in_memory({**tensors, "img_in.weight": tensors["img_in.weight"].to(torch.int8)})
    for one in (scaled, codes):
        with pytest.raises(UnsupportedLayer, match="codes with scales"):
            one.weight(Target("denoiser", "single_blocks.0.linear1"))
