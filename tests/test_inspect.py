"""What `info` says of a file: its facts, its health, its words, and what each host does with it."""

import hashlib
import json
import math

import pytest
import torch
from dumps import NAMES, dump, sample

from lorasmith import convert
from lorasmith.convert.detect import detect
from lorasmith.convert.hosts import verdicts
from lorasmith.convert.inspect import info, text
from lorasmith.convert.words import base_model, trigger_words
from lorasmith.lora_core import store
from lorasmith.lora_core.errors import LorasmithError, NotALoRA, UnknownFormat

CONTRACT = {  # the command line's page: what `info --json` prints
    "file": str,
    "bytes": int,
    "sha256": str,
    "autov2": str,
    "autov3": str,
    "architecture": (str, type(None)),
    "candidates": list,
    "format": str,
    "kinds": dict,
    "components": dict,
    "layers": int,
    "ranks": dict,
    "alphas": dict,
    "dtypes": dict,
    "parameters": int,
    "unknown_keys": list,
    "riders": list,
    "incomplete": list,
    "health": (dict, type(None)),
    "trigger_words": list,
    "base_model": (str, type(None)),
    "metadata": dict,
    "hosts": dict,
    "against": (dict, type(None)),
}

QKV = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"


def layer(name: str, rank: int = 4, width: int = 320, alpha: float | None = 2.0) -> dict[str, torch.Tensor]:
    """One kohya layer of random values."""
    tensors = {f"{name}.lora_down.weight": torch.randn(rank, width), f"{name}.lora_up.weight": torch.randn(width, rank)}
    return tensors if alpha is None else {**tensors, f"{name}.alpha": torch.tensor(alpha)}


def saved(path, tensors, metadata=None):
    return store.save(path / "style.safetensors", tensors, metadata or {})


@pytest.fixture(scope="module")
def kohya(tmp_path_factory):
    content = dump("kohya_sd15_lora", torch.float16)
    return saved(tmp_path_factory.mktemp("kohya"), content.tensors, content.metadata)


def test_result_is_the_contract(kohya):
    result = info(kohya)
    assert list(result) == list(CONTRACT)
    assert all(isinstance(result[name], kind) for name, kind in CONTRACT.items())
    assert set(result["hosts"]) == {"comfyui", "a1111", "forge", "diffusers"}
    assert all(set(host) == {"loads", "why"} and "\n" not in host["why"] for host in result["hosts"].values())
    assert json.loads(json.dumps(result)) == result


def test_counts(kohya):
    result = info(kohya)
    assert (result["architecture"], result["candidates"], result["format"]) == ("sd15", ["sd15"], "kohya")
    assert (result["layers"], result["components"]) == (264, {"denoiser": 192, "clip_l": 72})
    assert result["kinds"]["lora"] == 264 and sum(result["kinds"].values()) == 264
    assert result["ranks"] == {"2": 264} and result["dtypes"] == {"F16": 792}
    assert set(result["alphas"]) == {"0.5", "1.0", "2.0", "3.0"} and sum(result["alphas"].values()) == 264
    stored = store.load(kohya)
    assert result["parameters"] == sum(tensor.numel() for tensor in stored.tensors.values())
    assert result["bytes"] == kohya.stat().st_size


def test_hashes_are_of_the_file_and_of_its_tensors(kohya):
    result = info(kohya)
    data = kohya.read_bytes()
    assert result["sha256"] == hashlib.sha256(data).hexdigest()
    assert result["autov2"] == result["sha256"][:10]
    assert result["autov3"] == hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


def test_fast_reads_the_header_alone(kohya, monkeypatch):
    for name in ("sha256", "autov3", "load"):
        monkeypatch.setattr(store, name, None)
    monkeypatch.setattr("lorasmith.convert.inspect.read_tensors", None)
    result = info(kohya, fast=True)
    assert result["health"] is None and result["sha256"] == ""
    assert list(result) == list(CONTRACT) and result["layers"] == 264


def test_keys_are_listed_on_demand(kohya):
    keys = info(kohya, keys=True)["keys"]
    assert set(keys) == set(store.header(kohya).shapes)
    assert keys[f"{QKV}q.lora_down.weight"] == {
        "dtype": "F16",
        "shape": [2, 320],
        "component": "denoiser",
        "module": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
        "role": "down",
    }


@pytest.mark.parametrize("name", [name for name in NAMES if dump(name).shaped])
def test_every_dump_is_described(name, tmp_path):
    content = dump(name)
    tensors = {key: tensor.to(torch.float16) for key, tensor in sample(name).items()}
    result = info(saved(tmp_path, tensors, content.metadata))
    assert content.family in result["candidates"]
    assert sum(result["kinds"].values()) == sum(result["components"].values()) == result["layers"] > 0
    assert result["incomplete"] == [] and result["health"] == {"nan": 0, "inf": 0, "zero_layers": 0}
    assert ("Wrong:" in text(result)) == (result["format"] == "peft" and "adapter_config.json" not in content.metadata)


def test_partial_load_is_counted_and_explained():
    content = dump("diffusers_sd15_peft_AB")
    result = verdicts(detect(content.keys, content.metadata), content.keys, content.metadata)
    assert result["comfyui"]["why"] == (
        "reads only 108 of 236 layers, which gives a wrong picture: of attention it knows only the old Diffusers names "
        "(attn1.processor.to_q), not attn1.to_q"
    )
    assert result["forge"]["why"].startswith(
        "refuses the file, as any with more than 12 keys it does not know (256 here)"
    )
    assert "0 modules" in result["a1111"]["why"]


def test_scale_that_only_the_header_has_is_told_where_it_is_ignored(tmp_path):
    name = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    tensors = {f"{name}.lora_A.weight": torch.randn(4, 768), f"{name}.lora_B.weight": torch.randn(320, 4)}
    config = json.dumps({"r": 4, "lora_alpha": 8})
    result = info(saved(tmp_path, tensors, {"adapter_config.json": config}))
    assert result["alphas"] == {"8.0": 1}
    assert result["hosts"]["comfyui"]["loads"]
    assert "ignores the scale 2 in the header" in result["hosts"]["comfyui"]["why"]
    assert "--to kohya" in text(result)


@pytest.mark.parametrize(
    ("tensors", "host", "word"),
    [
        (layer("lora_te_encoder_layers_0_mlp_fc1", width=768), "comfyui", "text_model"),
        (layer("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"), "diffusers", "SDXL only"),
        (
            {
                **layer("lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q", width=640),
                **layer("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k", width=640),
            },
            "diffusers",
            "drops all layers in the original names",
        ),
        ({**layer(f"{QKV}q"), "bundle_emb.x.clip_l": torch.ones(2, 768)}, "diffusers", "textual inversion"),
        (
            {
                **layer("lora_unet_down_blocks_0_attentions_0_proj_in"),
                **layer("lora_te_text_model_encoder_layers_0_self_attn_q_proj", width=768),  # SD 1's, not SD 2's
            },
            "diffusers",
            "size mismatch",
        ),
        ({"lora_unet_down_blocks_0_attentions_0_norm.w_norm": torch.ones(320)}, "a1111", "norm without its bias"),
    ],
)
def test_single_facts(tensors, host, word):
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    verdict = verdicts(detect(shapes), shapes, {})[host]
    assert not verdict["loads"] and word in verdict["why"]


def test_untagged_sdxl_is_hidden_by_the_webuis_until_it_is_written_anew(tmp_path):
    content = dump("excerpt_comfy5655_sdxl_kohya", torch.float16)
    path = saved(tmp_path, content.tensors, {"ss_output_name": "x"})
    before = info(path)
    assert "hides it with SDXL" in before["hosts"]["a1111"]["why"] and before["hosts"]["a1111"]["loads"]
    after = info(convert.write(convert.read(path), tmp_path / "new.safetensors", format="kohya"))
    assert "hides" not in after["hosts"]["a1111"]["why"] + after["hosts"]["forge"]["why"]


def test_mixed_dialects_are_named(tmp_path):
    other = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {
        **layer(f"{QKV}q"),
        f"{other}.lora_A.weight": torch.randn(4, 768),
        f"{other}.lora_B.weight": torch.randn(320, 4),
    }
    result = info(saved(tmp_path, tensors))
    assert (result["format"], result["formats"]) == ("mixed", ["diffusers", "kohya"])
    assert "written as diffusers: " in text(result) and " and kohya: " in text(result)


def test_health_counts_values_and_layers(tmp_path):
    tensors = {**layer(f"{QKV}q"), **layer(f"{QKV}k"), **layer(f"{QKV}v"), **layer(f"{QKV}out_0", alpha=0.0)}
    tensors[f"{QKV}q.lora_down.weight"][0, :3] = math.nan
    tensors[f"{QKV}q.lora_up.weight"][0, 0] = -math.inf
    tensors[f"{QKV}k.lora_up.weight"].zero_()
    result = info(saved(tmp_path, tensors))
    assert result["health"] == {"nan": 3, "inf": 1, "zero_layers": 2}
    assert "Wrong: 3 values are NaN and 1 infinite" in text(result) and "Next: do not use it" in text(result)


def test_factor_without_its_partner_is_incomplete_and_said(tmp_path):
    tensors = {**layer(f"{QKV}q"), f"{QKV}k.lora_up.weight": torch.randn(320, 4)}
    result = info(saved(tmp_path, tensors))
    assert result["incomplete"] == [f"{QKV}k.lora_up.weight"]
    assert "lack a part" in text(result) and "download or save it again" in text(result)
    assert not result["hosts"]["a1111"]["loads"]


def test_layers_that_no_table_knows_are_listed_and_said(tmp_path):
    tensors = {**layer(f"{QKV}q"), **layer(f"{QKV}k"), **layer("lora_unet_strange_module", width=8, alpha=None)}
    result = info(saved(tmp_path, tensors))
    assert (result["format"], result["layers"]) == ("kohya", 2)
    assert result["unknown_keys"] == [f"lora_unet_strange_module.lora_{part}.weight" for part in ("down", "up")]
    assert "2 keys of layers are not known" in text(result) and "it cannot be used here yet" in text(result)


def test_bundled_embedding_is_no_fault(tmp_path):
    tensors = {**layer(f"{QKV}q"), "bundle_emb.my word.clip_l": torch.ones(2, 768)}
    result = info(saved(tmp_path, tensors))
    assert (result["riders"], result["unknown_keys"]) == (["bundle_emb.my word.clip_l"], [])
    assert "Also inside: 1 keys" in text(result) and "Wrong" not in text(result)


def test_against_is_part_of_the_result_and_of_the_text(kohya, tmp_path):
    unet = {"model.diffusion_model.input_blocks.1.1.proj_in.weight": torch.zeros(320, 320, 1, 1)}
    model = store.save(tmp_path / "m.safetensors", unet)
    result = info(kohya, against=model)
    assert result["against"] == info(kohya, against=model, fast=True)["against"]
    assert (result["against"]["model"], result["against"]["verdict"]) == (str(model), "partial")
    assert "Fits only in part m.safetensors (1 of 264 layers)" in text(result)
    assert json.loads(json.dumps(result)) == result


def test_what_is_no_lora_is_refused(tmp_path):
    with pytest.raises(NotALoRA):
        info(saved(tmp_path, {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}))
    with pytest.raises(UnknownFormat):
        info(store.save(tmp_path / "other.safetensors", {f"a.{n}.lora_up.weight": torch.zeros(2, 2) for n in range(9)}))
    with pytest.raises(LorasmithError):
        info(tmp_path / "missing.safetensors")


def test_peft_folder_and_file_say_the_same(tmp_path):
    content = dump("peft_sd15_lora")
    store.save(tmp_path / "adapter_model.safetensors", content.tensors)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"r": 2, "lora_alpha": 6, "base_model_name_or_path": "a/b"})
    )
    file, folder = info(tmp_path / "adapter_model.safetensors"), info(tmp_path)
    assert file["alphas"] == {"6.0": 128} and file["base_model"] == "a/b"
    different = {name for name in CONTRACT if file[name] != folder[name]}
    assert different <= {"file"}


def test_pickled_lora_is_described(tmp_path):
    path = tmp_path / "pytorch_lora_weights.bin"
    torch.save(dict(dump("diffusers_old_sd15_attnprocs").tensors), path)
    result = info(path)
    assert (result["format"], result["layers"]) == ("diffusers-attn-processor", 128)
    assert result["health"] == {"nan": 0, "inf": 0, "zero_layers": 0}


def test_text_is_short_and_ends_with_what_to_do(tmp_path):
    content = dump("kohya_sd15_lora", torch.float16)
    alike = {key: torch.ones(()) if key.endswith(".alpha") else tensor for key, tensor in content.tensors.items()}
    lines = text(info(saved(tmp_path, alike))).splitlines()
    assert lines[0].startswith("style.safetensors: a LoRA for Stable Diffusion 1.x (sd15), written as kohya")
    assert "  Loads in full: ComfyUI, A1111, Forge, Diffusers" in lines
    assert lines[-1] == "  Next: load it" and len(lines) < 8


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "photo of sks dog"}, ["photo of sks dog"]),
        ({"instance_prompt": "a sks dog"}, ["a sks dog"]),
        ({"ss_datasets": '[{"subsets": [{"class_tokens": "sks dog"}, {"class_tokens": null}]}]'}, ["sks dog"]),
        ({"ss_dataset_dirs": '{"10_sks dog": {"n_repeats": 10}, "pictures": {}}'}, ["sks dog"]),
        ({"ss_tag_frequency": '{"a": {"sks": 9, " dog": 5, "tree": 1}, "b": {"tree": 1}}'}, ["sks", "dog"]),
        ({"modelspec.trigger_phrase": "SKS", "ss_tag_frequency": '{"a": {"sks": 9}}'}, ["SKS"]),
        ({"modelspec.trigger_phrase": " ", "instance_prompt": "None"}, []),
        (
            {"modelspec.trigger_phrase": " ink,\n  Next: run it \x1b[2J\u202e\ud800\u2028墨"},
            ["ink, Next: run it [2J 墨"],
        ),
    ],
)
def test_trigger_words_of_headers(metadata, words):
    assert trigger_words(metadata) == words


@pytest.mark.parametrize(
    ("suffix", "content", "words", "base"),
    [
        (".json", {"activation text": "sks, dog,", "sd version": "SDXL"}, ["sks", "dog"], "SDXL"),
        (".civitai.info", {"trainedWords": ["sks", 3], "baseModel": "SD 1.5"}, ["sks"], "SD 1.5"),
        (".metadata.json", {"civitai": {"trainedWords": ["sks"]}, "base_model": "Pony"}, ["sks"], "Pony"),
    ],
)
def test_words_of_sidecars(tmp_path, suffix, content, words, base):
    path = tmp_path / "style.v1.safetensors"
    (tmp_path / f"style.v1{suffix}").write_text(json.dumps(content), encoding="utf-8-sig")
    assert (trigger_words({}, path), base_model({}, path)) == (words, base)


@pytest.mark.parametrize(
    ("metadata", "base"),
    [
        ({"ss_sd_model_name": "v1-5.safetensors", "ss_base_model_version": "sd_v1"}, "v1-5.safetensors"),
        ({"ss_sd_model_name": "C:\\models\\v1-5.ckpt"}, "v1-5.ckpt"),
        ({"ss_sd_model_name": "/home/me/v1-5.ckpt"}, "v1-5.ckpt"),
        ({"ss_sd_model_name": "v1-5\n  Next: trust it\x9b2J"}, "v1-5 Next: trust it2J"),
        ({"ss_sd_model_name": "runwayml/stable-diffusion-v1-5"}, "runwayml/stable-diffusion-v1-5"),
        ({"ss_sd_model_name": "None", "ss_base_model_version": "sdxl_base_v1-0"}, "sdxl_base_v1-0"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "stable-diffusion-v1/lora"),
        ({"lora_adapter_metadata": '{"unet.base_model_name_or_path": "a/b"}'}, "a/b"),
        ({}, None),
    ],
)
def test_base_model_of_headers(metadata, base):
    assert base_model(metadata) == base


@pytest.mark.parametrize(
    "value",
    ["3", "null", "[]", "{}", '"x"', "[[", '{"a": 1}', '{"a": {"b": "c"}}', '{"": [{"subsets": 1}]}', "[" * 9999],
)
def test_wrong_types_never_crash(value, tmp_path):
    keys = (
        "modelspec.trigger_phrase",
        "ss_datasets",
        "ss_dataset_dirs",
        "ss_tag_frequency",
        "ss_sd_model_name",
        "ss_base_model_version",
    )
    for suffix in (".json", ".civitai.info", ".metadata.json"):
        (tmp_path / f"style{suffix}").write_text(value)
    result = info(saved(tmp_path, layer(f"{QKV}q"), dict.fromkeys(keys, value)))
    assert isinstance(result["trigger_words"], list) and isinstance(text(result), str)


@pytest.mark.parametrize(
    "listed", ["base_model: someone/sd15", "base_model:\n  - someone/sd15", "base_model: 'someone/sd15'"]
)
def test_the_base_model_of_a_model_card(tmp_path, listed):
    card = (
        f'---\nlicense: mit\n{listed}\ninstance_prompt: "a photo of sks dog"\ntags:\n- lora\n---\n# base_model: other\n'
    )
    (tmp_path / "README.md").write_text(card)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    assert (trigger_words({}, path), base_model({}, path)) == (["a photo of sks dog"], "someone/sd15")
    assert base_model({}, tmp_path) == "someone/sd15"
    assert base_model({"ss_sd_model_name": "v1-5"}, path) == "v1-5"


@pytest.mark.parametrize("card", ["", "# A model\nbase_model: a/b\n", "---\nbase_model: a/b\n", "\xff"])
def test_files_that_are_no_model_card(tmp_path, card):
    (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert base_model({}, tmp_path / "x.safetensors") is None
