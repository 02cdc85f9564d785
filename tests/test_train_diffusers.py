"""Training on diffusers models: small pipelines with random weights, from folders and from checkpoint files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from train_families import sdxl_checkpoint  # noqa: E402
from train_models import as_checkpoint, config, one_thread, pictures, same_file, tiny_pipeline  # noqa: E402

from lorasmith.convert import read  # noqa: E402
from lorasmith.convert.keymap import names  # noqa: E402
from lorasmith.convert.training import diffusers_names, train  # noqa: E402
from lorasmith.lora_core.adapter import Target  # noqa: E402
from lorasmith.lora_core.errors import BadConfig, FileProblem, WrongArchitecture  # noqa: E402
from lorasmith.lora_core.train import checkpoint_file, diffusers_load  # noqa: E402
from lorasmith.lora_core.train.config import TrainConfig  # noqa: E402
from lorasmith.lora_core.train.create import create  # noqa: E402
from lorasmith.lora_core.train.diffusers_backend import DiffusersBackend, open_backend  # noqa: E402
from lorasmith.lora_core.train.engine import Event  # noqa: E402
from lorasmith.lora_core.train.families import family_of  # noqa: E402
from lorasmith.lora_core.train.inject import attached  # noqa: E402
from lorasmith.lora_core.train.tokenizers import byte_letters, tokenizer_for  # noqa: E402

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sd15": tiny_pipeline(root / "sd15"),
        "sd21": tiny_pipeline(root / "sd21", v2=True, prediction="v_prediction"),
        "sdxl": tiny_pipeline(root / "sdxl", sdxl=True),
    }


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    pictures(tmp_path / "data", {"a": "a red cat", "b": "a blue dog", "c": "z"}, (48, 32))
    return tmp_path


def tiny(tmp: Path, model: Path, **keys: Any) -> TrainConfig:
    base = {"model": str(model), "resolution": 32, "steps": 3, "data": str(tmp / "data")}
    return config(tmp, **{**base, **keys})


def backend_of(run: TrainConfig) -> DiffusersBackend:
    return open_backend(run, diffusers_names)


def test_stopped_and_resumed_equals_uninterrupted(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    keys = {"text_encoder": True, "accumulate": 2, "random_flip": True}
    keys |= {"validation_prompt": "a red cat", "sample_every": 2}
    whole = [event.loss for event in train(tiny(tmp, pipelines["sd15"], **keys, out=str(tmp / "whole")))]
    parts = tiny(tmp, pipelines["sd15"], **keys)
    seen: list[Event] = []
    for event in train(parts, stop=lambda: bool(seen) and seen[-1].step == 1):
        seen.append(event)
        torch.rand(2)  # a foreign draw
    assert (seen[-1].event, seen[-1].step) == ("stopped", 1)
    seen += train(parts, resume=True)
    losses = [loss for loss in whole[:-1] if loss is not None]
    assert [event.loss for event in seen if event.event == "step"] == losses and len(losses) == 3
    assert same_file(tmp / "whole/tiny.safetensors", tmp / "run/tiny.safetensors")
    assert same_file(*(tmp / name / "state/000003/state.safetensors" for name in ("whole", "run")))


def test_the_file_holds_what_was_trained_under_the_fields_names(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    run = tiny(tmp, pipelines["sd15"], text_encoder=True, instance_prompt="sks", rank=4, alpha=2)
    list(train(run))
    adapter = read(tmp / "run/tiny.safetensors")
    assert adapter.architecture == "sd15" and len(adapter.layers) == 16 * 8 + 2 * 4
    assert all(layer.rank == 4 and layer.alpha == 2 for layer in adapter.layers.values())  # type: ignore[union-attr]
    assert any(layer.delta().abs().max() > 0 for layer in adapter.layers.values())  # type: ignore[union-attr]
    with safe_open(tmp / "run/tiny.safetensors", "pt") as file:
        facts, keys = file.metadata(), list(file.keys())
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    expected = {
        **{"ss_base_model_version": "sd_v1", "ss_v2": "False", "ss_network_module": "networks.lora"},
        **{"ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_steps": "3", "ss_output_name": "tiny"},
        **{"ss_sd_model_name": "sd15", "modelspec.title": "tiny", "modelspec.trigger_phrase": "sks"},
        **{"modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.prediction_type": "epsilon"},
    }
    assert {key: facts[key] for key in expected} == expected
    assert json.loads(facts["ss_tag_frequency"]) == {"data": {"a red cat": 1, "a blue dog": 1, "z": 1}}
    assert str(tmp) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("targets", "denoiser", "text"),
    [("attention", 128, 8), ("attention+ff", 160, 12), ("linear", 192, 12)],
)
def test_presets(tmp: Path, pipelines: Mapping[str, Path], targets: str, denoiser: int, text: int) -> None:
    chosen = backend_of(tiny(tmp, pipelines["sd15"], targets=targets, text_encoder=True)).modules()
    assert sum(target.component == "denoiser" for target in chosen) == denoiser
    assert sum(target.component == "clip_l" for target in chosen) == text


def test_the_widest_preset_takes_every_linear_and_convolution(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    backend = backend_of(tiny(tmp, pipelines["sd15"], targets="all"))
    layers = [part for part in backend.parts.denoiser.modules() if isinstance(part, (torch.nn.Linear, torch.nn.Conv2d))]
    assert set(backend.modules().values()) == set(layers)


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_other_families_train_both_text_and_image_layers(tmp: Path, pipelines: Mapping[str, Path], family: str) -> None:
    run = tiny(tmp, pipelines[family], text_encoder=True, targets="linear", steps=2)
    start, *_, done = train(run)
    assert (start.more["architecture"], done.event) == (family, "done")
    assert start.more["objective"] == ("v_prediction" if family == "sd21" else "epsilon")
    adapter = read(tmp / "run/tiny.safetensors")
    components = {"sd21": {"denoiser", "clip_h"}, "sdxl": {"denoiser", "clip_l", "clip_g"}}[family]
    assert {target.component for target in adapter.layers} == components
    for component in components:
        moved = [layer.delta().abs().max() for t, layer in adapter.layers.items() if t.component == component]  # type: ignore[union-attr]
        assert max(moved) > 0


def test_one_step_equals_pefts(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    peft = pytest.importorskip("peft")
    run = tiny(tmp, pipelines["sd15"], rank=3, alpha=6)
    backend = backend_of(run)
    made = create(backend.modules(), run)
    for place, pair in enumerate(made.values()):
        pair.up.data = torch.randn(pair.up.shape, generator=torch.Generator().manual_seed(place)) * 0.1
    unet = backend.parts.denoiser.double()
    for pair in made.values():
        pair.down.data, pair.up.data = pair.down.data.double(), pair.up.data.double()
    generator = torch.Generator().manual_seed(0)
    noisy, context = (torch.randn(s, generator=generator).double() for s in ((2, 4, 4, 4), (2, 77, 16)))
    t = torch.tensor([3, 700])
    with attached(backend.modules(), made):
        ours = unet(noisy, t, context).sample
        ours.square().mean().backward()
    unet.add_adapter(
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    )
    unet.double()
    spelled = {target: name for name, target in diffusers_names("sd15", "denoiser").items()}
    for target, pair in made.items():
        layer = unet.get_submodule(spelled[target])
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = pair.down.data, pair.up.data
    theirs = unet(noisy, t, context).sample
    theirs.square().mean().backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for target, pair in made.items():
        layer = unet.get_submodule(spelled[target])
        torch.testing.assert_close(pair.down.grad, layer.lora_A["default"].weight.grad, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(pair.up.grad, layer.lora_B["default"].weight.grad, rtol=1e-7, atol=1e-12)


def test_previews_are_private_and_show_the_adapter(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    run = tiny(tmp, pipelines["sd15"])
    backend = backend_of(run)
    state = torch.random.get_rng_state()
    first, second, other = (np.asarray(backend.sample("a cat", seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, second) and not np.array_equal(first, other) and first.shape == (32, 32, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    made = create(backend.modules(), run)
    for pair in made.values():
        pair.up.data += 1
    with attached(backend.modules(), made):
        assert not np.array_equal(np.asarray(backend.sample("a cat", 1)), first)
    assert np.array_equal(np.asarray(backend.sample("a cat", 1)), first)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    found = []
    for on in (False, True):
        run = tiny(
            tmp, pipelines["sd15"], text_encoder=True, gradient_checkpointing=on, out=str(tmp / str(on)), steps=2
        )
        found.append([event.loss for event in train(run) if event.event == "step"])
    assert found[0] == found[1]


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_models_train_a_float32_adapter(
    tmp: Path, pipelines: Mapping[str, Path], precision: str
) -> None:
    *_, done = train(tiny(tmp, pipelines["sd15"], precision=precision, steps=1))
    assert done.event == "done"
    adapter = read(tmp / "run/tiny.safetensors")
    assert {tensor.dtype for layer in adapter.layers.values() for tensor in layer.tensors()} == {torch.float32}  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_a_checkpoint_file_loads_as_its_pipeline_without_network(
    tmp: Path, pipelines: Mapping[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    write = sdxl_checkpoint if family == "sdxl" else partial(as_checkpoint, open_clip=family == "sd21")
    file = write(pipelines[family], tmp / f"{family}.safetensors")
    configs = tmp / "configs"
    configs.mkdir()
    (configs / family).symlink_to(pipelines[family])
    ours = checkpoint_file.load_file(file, str(pipelines[family] / "tokenizer"), configs=configs)
    theirs = diffusers_load.load(str(pipelines[family]))
    assert ours.architecture == theirs.architecture == family
    pairs = [(ours.denoiser, theirs.denoiser), (ours.vae, theirs.vae)]
    pairs += [(ours.text_encoders[name], theirs.text_encoders[name]) for name in ours.text_encoders]
    for ours_part, theirs_part in pairs:
        a, b = ours_part.state_dict(), theirs_part.state_dict()
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    torch.testing.assert_close(ours.scheduler.alphas_cumprod, theirs.scheduler.alphas_cumprod)
    pads = {name: vocabulary.pad_token_id for name, vocabulary in ours.tokenizers.items()}
    assert pads == {"sd15": {"clip_l": 513}, "sd21": {"clip_h": 0}, "sdxl": {"clip_l": 513, "clip_g": 0}}[family]


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_committed_configs_have_the_released_models_shapes(family: str) -> None:
    from lorasmith.convert.keymap import keymap

    folder = checkpoint_file.CONFIGS / family
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text()))
    for name, target in names(family, "denoiser", "diffusers").items():
        shape = keymap(family).shape(target)
        if shape is not None:
            assert tuple(unet.get_submodule(name).weight.shape) == shape, name


def test_names_meet_every_layer_of_the_text_encoders(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    chosen = backend_of(tiny(tmp, pipelines["sdxl"], targets="all", text_encoder=True)).modules()
    assert Target("clip_g", "text_model.encoder.layers.1.mlp.fc2") in chosen


def test_models_that_do_not_fit_are_told_in_one_line(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    with pytest.raises(FileProblem, match="nowhere: not found; give a diffusers folder, a checkpoint file or a hub id"):
        diffusers_load.load(str(tmp / "nowhere"))
    with pytest.raises(FileProblem, match="has no .unet. or .transformer. folder"):
        diffusers_load.load(str(tmp / "data"))
    with pytest.raises(WrongArchitecture, match="takes 9 channels; inpainting models"):
        family_of({"_class_name": "UNet2DConditionModel", "in_channels": 9, "out_channels": 4})
    list(train(tiny(tmp, pipelines["sd15"], steps=1)))
    with pytest.raises(WrongArchitecture, match="no Stable Diffusion 1.x, 2.x or XL checkpoint"):
        diffusers_load.load(str(tmp / "run/tiny.safetensors"))
    with pytest.raises(BadConfig, match="config: 'format' is 'kohia'; choose one of"):
        list(train(tiny(tmp, pipelines["sd15"], format="kohia")))
    with pytest.raises(BadConfig, match="config: 'device' is 'cuda:77'"):
        list(train(tiny(tmp, pipelines["sd15"], device="cuda:77")))


def test_a_missing_tokenizer_says_what_to_set(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasmith.lora_core.train.tokenizers._folders", lambda beside: iter(()))
    monkeypatch.setattr("lorasmith.lora_core.train.tokenizers._cached", lambda: None)
    monkeypatch.setattr("lorasmith.lora_core.train.tokenizers._packaged", lambda: None)
    with pytest.raises(FileProblem, match="set 'tokenizer' to a folder with CLIP's vocab.json and merges.txt"):
        tokenizer_for(None, "tokenizer", beside=tmp / "model.safetensors")


def test_a_tokenizer_that_is_not_there_is_told_in_one_line(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    file = as_checkpoint(pipelines["sd15"], tmp / "sd15.safetensors")
    (tmp / "configs").mkdir()
    (tmp / "configs/sd15").symlink_to(pipelines["sd15"])
    with pytest.raises(FileProblem, match=r"^/nofolder: cannot be loaded \(.*\); set 'tokenizer' to a folder"):
        checkpoint_file.load_file(file, "/nofolder", configs=tmp / "configs")


def test_a_tokenizer_beside_the_checkpoint_is_found(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    (tmp / "tokenizer").symlink_to(pipelines["sd15"] / "tokenizer")
    found = tokenizer_for(None, "tokenizer", beside=tmp / "model.safetensors")
    assert found("a").input_ids == [512, 256 + byte_letters().index("a"), 513]


def test_missing_libraries_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(BadConfig, match="needs diffusers and transformers") as caught:
        diffusers_load.load("anything")
    command = f"{Path(sys.executable).name} -m pip install diffusers transformers accelerate"
    way = f"run '{command}', or use the .venv that 'python install.py --demo' makes"
    assert caught.value.message.endswith(f"; {way}")


def test_captions_longer_than_77_tokens_are_warned_of(tmp: Path, pipelines: Mapping[str, Path]) -> None:
    (tmp / "data/a.txt").write_text("x" * 75)  # a letter is a token here, and there are two marks
    (tmp / "data/b.txt").write_text("x" * 76)
    warnings = [event.message for event in train(tiny(tmp, pipelines["sd15"], steps=1)) if event.event == "warning"]
    assert warnings == ["1 captions are longer than the text encoder reads and are cut: b.png"]
