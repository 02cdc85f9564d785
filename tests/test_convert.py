"""Laws of conversion, on every key dump: nothing unknown, nothing lost, every delta kept between any two dialects."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dumps import KEYS, NAMES, constant, dump, effect, sample

from lorasmith import convert
from lorasmith.convert.architectures import ARCHITECTURES
from lorasmith.convert.codec import decode, encode, encode_like
from lorasmith.convert.detect import detect
from lorasmith.convert.formats import FORMATS, WRITABLE
from lorasmith.convert.keymap import keymap
from lorasmith.convert.regroup import alike
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import (
    AmbiguousFormat,
    BadConfig,
    BadValues,
    FileProblem,
    NotALoRA,
    UnknownFormat,
    UnsupportedLayer,
)
from lorasmith.lora_core.layers import Full, LoHa, LoRA, Norm, OFTv2
from lorasmith.lora_core.ops.report import difference

# What the file's writer calls itself, against the dialect that the tables must find.
DIALECTS = {
    "arenasys_sd15_kohya": "kohya",
    "cloneofsimo_lora_disney": "safeloras",
    "comfy_extract_sdxl": "comfy",
    "diffusers_old_sd15_attnprocs": "diffusers-attn-processor",
    "diffusers_old_sd15_unet_te_0.20": "diffusers-attn-processor",
    "diffusers_sd15_peft_AB": "diffusers",
    "diffusers_sd15_unet_te_tf5": "diffusers",
    "diffusers_sdxl_dreambooth_te": "diffusers",
    "kohya_sdxl_lora": "kohya",
    "onetrainer_sd15_comfy": "comfy",
    "onetrainer_sd15_legacy": "kohya",
    "onetrainer_sdxl_diffusers": "diffusers",
    "onetrainer_sdxl_kohya": "kohya",
    "onetrainer_sdxl_original": "original",
    "peft_sd15_lora": "peft",
}
LORA_FORMATS = [format.id for format in FORMATS if format.writable and "lora" in format.kinds]
TIED = {  # what several families would write alike, or too small an excerpt: no family is the true answer
    "diffusers_anima_cosmos_peft",
    "diffusers_chroma_peft",
    "diffusers_flux_bias",
    "diffusers_flux_dreambooth",
    "diffusers_sd3_dreambooth",
    "excerpt_comfy11487_zimage_musubi",
    "excerpt_comfy12452_sdxl_simpletuner",
    "excerpt_comfy2364_sd15_kohya",
    "excerpt_comfy6397_sd15_ia3",
    "excerpt_diffusers10599_onetrainer_flux",
    "excerpt_diffusers11224_sdxl_label_emb",
    "excerpt_hvwrapper325_hunyuan_musubi",
    "excerpt_kijai807_wan_diff_m",
    "invoke_anima_lora_kohya",
    "invoke_anima_lora_lokr",
    "invoke_flux_lokr_bfl",
    "invoke_qwen_image_lora_diffusers",
    "kohya_sd15_oft",
    "larsupb_sd15_locon",
    "onetrainer_anima_comfy",
    "onetrainer_anima_diffusers",
    "onetrainer_anima_kohya",
    "peft_sd15_boft",
    "peft_sd15_ia3",
}
SHAPED = [name for name in NAMES if dump(name).shaped]
DIFFERENT = "invoke_qwen_image_lora_diffusers"
WAYS_OUT = (  # what every refusal of a conversion offers
    *("which keep it", "approximate with --bake-to", "use the file as it is", "Choose another --to"),
    *("choose a dialect that keeps the layout", "which keeps the parts"),
)
INVENTED = "invoke_anima_lora_lokr"
NOWHERE = {"diffusers_custom_diffusion_sd15", "peft_sd15_boft", "sai_control_lora_sd15like"}


def shapes(tensors):
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def loaded(tensors, metadata=None):
    match = detect(shapes(tensors), metadata or {})
    return decode(tensors, match, metadata or {}), match


def assert_same_effect(one: Adapter, other: Adapter, tolerance: float = 1e-6) -> None:
    left, right = effect(one), effect(other)
    assert left.keys() == right.keys()
    for target in left:
        assert torch.linalg.norm(left[target] - right[target]) <= tolerance * torch.linalg.norm(left[target]), target


@pytest.mark.parametrize("name", NAMES)
def test_every_dump_is_read_in_full(name):
    file = dump(name)
    match = detect(file.keys, file.metadata)
    if match.architecture is None:
        assert file.family in match.candidates and name in TIED
    else:
        assert match.architecture == file.family and name not in TIED
    assert match.format == DIALECTS.get(name, match.format)
    assert match.format != "mixed"
    assert match.unknown == match.unplaced == match.incomplete == ()


def of_the_whole(name, tensors):
    """Return what some of a dump's keys stand for, its family told by all of them."""
    match = detect(dump(name).keys, dump(name).metadata)
    return replace(match, places={key: match.places[key] for key in tensors if key in match.places})


@pytest.mark.parametrize("name", SHAPED)
def test_every_dump_is_spelled_back_alike(name):
    """All keys, each with a number of its own; then one layer of each kind of module with random values."""
    file = dump(name)
    if name == DIFFERENT:
        with pytest.raises(AmbiguousFormat, match="would mean different layers"):
            loaded(sample(name))
        return
    for tensors in (constant(name), sample(name)):
        match = of_the_whole(name, tensors)
        adapter = decode(tensors, match, file.metadata)
        again = encode_like(adapter, match)
        assert again.keys() == tensors.keys()
        folded = "alpha" in json.dumps(file.metadata)  # a scale that only the header held is folded into up
        for key, tensor in tensors.items():
            assert again[key].shape == tensor.shape
            assert folded or torch.equal(again[key], tensor), key


@pytest.mark.parametrize("name", SHAPED)
def test_every_dump_keeps_every_effect_in_every_format(name):
    file = dump(name)
    if name in (DIFFERENT, INVENTED):
        pytest.skip("an excerpt whose shapes fit no model")
    found = of_the_whole(name, sample(name))
    adapter = decode(sample(name), found, file.metadata)
    said = 0
    for format in WRITABLE:
        try:
            tensors = convert.files.tensors_for(adapter, format)
        except UnsupportedLayer as refusal:
            assert any(way in refusal.message for way in WAYS_OUT), refusal.message
            continue
        said += 1
        metadata = convert.files.metadata_for(adapter, "x")
        if format == "peft":
            metadata.update(convert.peft.configs_of(adapter, keymap(found.candidates[0])))
        back, match = loaded(tensors, metadata)
        assert set(found.candidates) & set(match.candidates)
        one, other = alike([back, adapter])
        assert difference(one, other).relative_error < 1e-5, format
    assert said or name in NOWHERE


@pytest.mark.parametrize("first", LORA_FORMATS)
@pytest.mark.parametrize("second", LORA_FORMATS)
@pytest.mark.parametrize("name", ["kohya_sd15_c3lier", "kohya_sd21_lora", "lycoris_sdxl_locon_tucker"])
def test_pairs_of_formats_are_bit_equal_where_scales_are_powers_of_two(name, first, second, tmp_path):
    file = dump(name)
    adapter, _ = loaded(file.tensors, file.metadata)
    layers = {
        target: LoRA(layer.down, layer.up, 1.0, layer.mid) for target, layer in list(adapter.layers.items())[::25]
    }
    start = Adapter(adapter.architecture, layers)
    one = convert.read(
        convert.write(start, tmp_path / "one", first)
        if first == "peft"
        else convert.write(start, tmp_path / "one.safetensors", first)
    )
    two = convert.read(convert.write(one, tmp_path / "two.safetensors", second))
    for target, layer in start.layers.items():
        if layer.mid is None:
            assert torch.equal(two.layers[target].delta().flatten(1), layer.delta().flatten(1)), target
    assert_same_effect(start, two)


def test_scales_of_the_header_are_read_and_patterns_and_rslora_count():
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn{}.to_q.lora_{}.weight"
    tensors = {
        module.format(n, side): torch.ones((4, 320) if side == "A" else (320, 4)) for n in (1, 2) for side in "AB"
    }
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 2}, "unet.use_rslora": False}
    adapter, _ = loaded(tensors, {"lora_adapter_metadata": json.dumps(settings)})
    by_module = {target.module.split(".")[-2]: layer.scale for target, layer in adapter.layers.items()}
    assert by_module == {"attn1": 2.0, "attn2": 0.5}
    adapter, _ = loaded(tensors, {"lora_adapter_metadata": json.dumps({**settings, "unet.use_rslora": True})})
    assert {target.module.split(".")[-2]: layer.scale for target, layer in adapter.layers.items()} == {
        "attn1": 4.0,
        "attn2": 1.0,
    }
    without = {key: value for key, value in settings.items() if key != "unet.lora_alpha"}
    adapter, _ = loaded(tensors, {"lora_adapter_metadata": json.dumps(without)})  # PEFT's own default is 8
    assert {target.module.split(".")[-2]: layer.scale for target, layer in adapter.layers.items()}["attn1"] == 2.0


def test_peft_config_beside_the_weights_gives_the_scale(tmp_path):
    file = dump("peft_sd15_lora")
    tensors, config = dict(file.tensors), json.loads(file.metadata["adapter_config.json"])
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    expected = config["lora_alpha"] / 2  # our dumps have rank 2
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert {layer.scale for layer in convert.read(path).layers.values()} == {expected}


EXCHANGED = {("hunyuandit", "norm2"), ("hunyuandit", "norm3")}  # names that mean each other's module in Diffusers


def test_a_name_that_means_another_module_in_diffusers_is_read_by_its_prefix():
    map = keymap("hunyuandit")
    ours, theirs = (map.place(f"{prefix}.blocks.0.norm2.diff") for prefix in ("diffusion_model", "transformer"))
    assert ours.target.module == "blocks.0.norm2" and theirs.target.module == "blocks.0.norm3"


@pytest.mark.parametrize("family", [family.id for family in ARCHITECTURES])
def test_no_two_modules_share_a_key(family):
    map = keymap(family)
    for format in FORMATS:
        for part in map.family.components:
            keys = {}
            for target in map.targets(part.id, "original").values():
                for spelling in {
                    p.spelling
                    for p in map._prefixes
                    if p.component == part.id and p.spelling.prefixes in format.prefixes
                }:
                    for naming in format.namings:
                        name = map.name(target, map.family.kohya_naming if naming == "family" else naming)
                        if name:
                            key = f"{spelling.prefix}{spelling.joiner}{name.replace('.', spelling.joiner)}"
                            if (family, name.rpartition(".")[2]) not in EXCHANGED:
                                assert keys.setdefault(key, target) == target


def test_dense_layers_and_norms_survive_kohya_and_comfy(tmp_path):
    map = keymap("sd15")
    conv, norm = Target("denoiser", "out.2"), Target("denoiser", "out.0")
    layers = {
        conv: Full(torch.randn(map.shape(conv))),
        Target("denoiser", "out.2", parameter="bias"): Full(torch.randn(4)),
        norm: Norm(torch.randn(320)),
        Target("denoiser", "out.0", parameter="bias"): Norm(torch.randn(320)),
        Target("denoiser", "input_blocks.1.1.proj_in"): LoRA(torch.randn(2, 320, 1, 1), torch.randn(320, 2, 1, 1), 2.0),
    }
    for format in ("kohya", "comfy"):
        back = convert.read(convert.write(Adapter("sd15", layers), tmp_path / f"{format}.safetensors", format))
        assert back.layers.keys() == layers.keys()
        for target, layer in layers.items():
            assert type(back.layers[target]) is type(layer) and torch.equal(back.layers[target].delta(), layer.delta())


def test_linear_factors_of_a_convolution_get_its_dimensions_for_diffusers():
    target = Target("denoiser", "input_blocks.1.1.proj_in")
    tensors = encode(Adapter("sd15", {target: LoRA(torch.randn(2, 320), torch.randn(320, 2), 2.0)}), "diffusers")
    assert {tensor.dim() for tensor in tensors.values()} == {4}
    linear = encode(
        Adapter("sd21", {target: LoRA(torch.randn(2, 320, 1, 1), torch.randn(320, 2, 1, 1), 2.0)}), "diffusers"
    )
    assert {tensor.dim() for tensor in linear.values()} == {2}


def test_flat_kernels_of_a_convolution_get_their_dimensions_back():
    module = "diffusion_model.input_blocks.1.0.in_layers.2"
    down, up = torch.randn(2, 320, 3, 3), torch.randn(320, 2)
    tensors = {f"{module}.lora_down.weight": down.flatten(1), f"{module}.lora_up.weight": up}
    adapter, match = loaded(tensors)
    (layer,) = adapter.layers.values()
    assert match.candidates == ("sd15", "sd21", "sdxl") and layer.shape == (320, 320, 3, 3)
    assert torch.equal(layer.down, down) and torch.allclose(layer.delta().flatten(1), up @ down.flatten(1), atol=1e-4)


def test_text_encoder_alone_fits_two_families_and_says_so():
    file = dump("kohya_sdxl_lora")
    tensors = {key: tensor for key, tensor in file.tensors.items() if key.startswith("lora_te1_")}
    adapter, match = loaded(tensors)
    assert match.architecture is None and {"sd15", "sdxl"} <= set(match.candidates)
    assert {target.component for target in adapter.layers} == {"clip_l"}
    assert loaded(tensors, {"ss_base_model_version": "sdxl_base_v1-0"})[1].architecture == "sdxl"


def test_small_models_with_sd1_names_are_told_by_the_header_or_the_kind_of_module():
    stem = "lora_unet_down_blocks_0_attentions_0_"
    attention = {
        f"{stem}transformer_blocks_0_attn1_to_q.lora_{way}.weight": (2, 64) if way == "down" else (64, 2)
        for way in ("down", "up")
    }
    assert detect(attention, {}).candidates == ("sd15", "sd21")
    assert detect(attention, {"ss_base_model_version": "sd_v1"}).architecture == "sd15"
    convolution = {
        f"{stem}proj_in.lora_{way}.weight": (2, 64, 1, 1) if way == "down" else (64, 2, 1, 1) for way in ("down", "up")
    }
    assert detect({**attention, **convolution}, {}).architecture == "sd15"


def test_what_cannot_be_told_apart_and_differs_is_refused():
    tensors = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": torch.ones(2, 64),
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.ones(64, 2),
    }
    with pytest.raises(AmbiguousFormat, match="fits sd15 and sd21 and .* alike .* Write ss_base_model_version"):
        loaded(tensors)


def test_refusals_say_what_where_and_what_next():
    with pytest.raises(UnknownFormat, match="a.safetensors: holds no tensors"):
        detect({}, {}, "a.safetensors")
    with pytest.raises(UnknownFormat, match=r"no known family comes close; unknown: 'foo.lora_A.weight'.*info --keys"):
        detect({"foo.lora_A.weight": (1, 2)}, {}, "a.safetensors")
    with pytest.raises(NotALoRA, match="model's own weights"):
        detect({f"model.diffusion_model.input_blocks.{i}.0.weight": (4, 4) for i in range(9)}, {}, "a.safetensors")
    with pytest.raises(NotALoRA, match="textual inversion"):
        detect({"emb_params": (2, 768)}, {}, "a.safetensors")
    with pytest.raises(BadConfig, match="cannot be written: choose kohya, diffusers, peft, comfy"):
        convert.files.tensors_for(Adapter("sd15", {}), "safeloras")


def test_an_up_without_its_down_is_named(tmp_path):
    file = dump("kohya_sd15_lora")
    tensors = dict(file.tensors)
    lost = next(key for key in tensors if key.endswith("lora_down.weight"))
    del tensors[lost]
    match = detect(shapes(tensors))
    assert set(match.incomplete) == {
        lost.replace("lora_down.weight", "lora_up.weight"),
        lost.replace("lora_down.weight", "alpha"),
    }
    with pytest.raises(UnknownFormat, match="2 keys make no whole layer, first .*down is missing"):
        loaded(tensors)


def test_layers_that_no_table_knows_stop_the_reader_but_embeddings_ride_along(tmp_path):
    file = dump("kohya_sd15_lora")
    from safetensors.torch import save_file

    stem = next(iter(file.tensors)).split(".")[0]
    save_file({**file.tensors, f"{stem}.lora_gate": torch.ones(768, 1)}, tmp_path / "gate.safetensors")
    with pytest.raises(UnknownFormat, match=r"closest is sd15/kohya \(792 of 793 keys\); unknown: .*lora_gate"):
        convert.read(tmp_path / "gate.safetensors")
    adapter, match = loaded({**file.tensors, "<s1>": torch.ones(768)})
    assert match.riders == ("<s1>",) and match.unknown == match.unplaced == ()
    assert torch.equal(encode(adapter, "kohya")["<s1>"], torch.ones(768))


def test_metadata_names_the_family_and_drops_what_no_longer_holds(tmp_path):
    adapter = Adapter("sdxl", dict(loaded(dump("kohya_sdxl_lora").tensors)[0].layers), {
        "sshs_model_hash": "stale", "lora_adapter_metadata": "{}", "ss_output_name": "old", "ss_tag_frequency": "{}",
        "ss_base_model_version": "sdxl_base_v0-9",
    })  # fmt: skip
    written = convert.load(convert.write(adapter, tmp_path / "new.safetensors")).adapter.metadata
    assert written["ss_output_name"] == "new" and written["ss_base_model_version"] == "sdxl_base_v0-9"
    assert written["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert "lora_adapter_metadata" not in written and written["sshs_model_hash"] not in ("stale", "")


@pytest.mark.parametrize(
    "dtype, torch_dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_dtype_on_request_leaves_alphas_exact(dtype, torch_dtype, tmp_path):
    adapter = Adapter(
        "sd15", {Target("denoiser", "input_blocks.1.1.proj_in"): LoRA(torch.randn(3, 320), torch.randn(320, 3), 1.1)}
    )
    back = convert.read(convert.write(adapter, tmp_path / "x.safetensors", dtype=dtype))
    (layer,) = back.layers.values()
    assert layer.down.dtype == torch_dtype and layer.alpha == torch.tensor(1.1).item()


def test_dumps_are_there():
    assert len(NAMES) >= 37 and Path(KEYS).is_dir()


@pytest.mark.parametrize(
    "entry, text, why",
    [
        ("adapter_config.json", "[" * 100_000, "no JSON object"),
        ("adapter_config.json", "[1]", "no JSON object"),
        ("adapter_config.json", '{"r": 4, "lora_al', "no JSON object"),
        ("lora_adapter_metadata", "not json", "no JSON object"),
        ("adapter_config.json", '{"lora_alpha": "8"}', "'8' is no alpha"),
        ("adapter_config.json", json.dumps({"lora_alpha": 10**400}), "is no alpha"),
        ("adapter_config.json", '{"lora_alpha": 8, "alpha_pattern": [1]}', "no table"),
        ("adapter_config.json", json.dumps({"alpha_pattern": {"(a?[a-z0-9_.]*)*X": 3}}), "too complicated"),
    ],
)
def test_a_scale_that_cannot_be_read_is_refused_and_not_taken_for_1(entry, text, why):
    with pytest.raises(BadValues, match=f"{entry}: holds the LoRA's scale and cannot be read .*{why}"):
        loaded(dump("peft_sd15_lora").tensors, {entry: text})


def test_patterns_are_expressions_as_in_peft_and_a_byte_order_mark_is_no_fault():
    tensors = dump("peft_sd15_lora").tensors
    config = {"r": 2, "lora_alpha": 4, "alpha_pattern": {r".*attn2.*to_[kv]": 6}}
    adapter, _ = loaded(tensors, {"adapter_config.json": "\ufeff" + json.dumps(config)})
    scales = {target: layer.scale for target, layer in adapter.layers.items()}
    assert all(
        scale == (3.0 if "attn2.to_k" in t.module or "attn2.to_v" in t.module else 2.0) for t, scale in scales.items()
    )


Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
DOWN, UP = f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"
DOTTED = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    "shapes, why",
    [
        ({DOWN: (320,), UP: (320, 4)}, "its down has the shape"),
        ({DOWN: (), UP: (320, 4)}, "its down has the shape"),
        ({DOWN: (0, 320), UP: (320, 0)}, "its down has the shape"),
        ({DOWN: (4, 320), UP: (320, 8)}, "do not go together"),
        ({DOWN: (4, 320), UP: (320, 4, 3, 3)}, "do not go together"),
        ({DOWN: (4, 320), UP: (320, 4), f"{Q}.alpha": (2,)}, "its alpha has"),
        ({DOWN: (4, 320), UP: (320, 4), f"{Q}.alpha": (0,)}, "its alpha has"),
        (
            {DOWN: (4, 320, 3, 1), UP: (320, 4), f"{Q}.lora_mid.weight": (4, 4, 3)},
            "do not go together",
        ),
        (
            {f"{stem}.lora_{way}.weight": (4, 320) if way == "down" else (320, 4)
             for stem in (Q, Q.replace("lora_unet", "lycoris")) for way in ("down", "up")},
            "there twice",
        ),
        (
            {f"{DOTTED}.lora_{side}.{name}.weight": (4, 320) if side == "A" else (320, 4)
             for name in ("default", "second") for side in "AB"},
            "there twice",
        ),
        ({f"{DOTTED}.lora_A.a.weight": (4, 320), f"{DOTTED}.lora_B.b.weight": (320, 4)}, "different names"),
    ],
)  # fmt: skip
def test_layers_that_are_not_whole_are_listed_and_refused(shapes, why):
    match = detect(shapes, {})
    assert set(match.incomplete) == set(shapes)
    with pytest.raises(UnknownFormat, match=why):
        loaded({key: torch.ones(shape) for key, shape in shapes.items()}, {"ss_base_model_version": "sd_v1"})


def test_a_layer_of_another_algorithm_is_not_called_damaged_and_never_an_extra():
    other = {f"{Q}.alpha": (), f"{Q}.lora_gate": (4, 80, 80), "lora_unet_foo_bar.hada_w1_a": (4, 4)}
    whole = {f"{Q[:-1]}v.lora_down.weight": (4, 320), f"{Q[:-1]}v.lora_up.weight": (320, 4)}
    match = detect({**other, **whole}, {})
    assert match.incomplete == () and match.unplaced == (f"{Q}.lora_gate", "lora_unet_foo_bar.hada_w1_a")


def test_a_dense_layers_alpha_rides_along():
    tensors = {f"{Q}.diff": torch.ones(320, 320), f"{Q}.alpha": torch.tensor(3.0)}
    adapter, match = loaded(tensors, {"ss_base_model_version": "sd_v1"})
    assert encode_like(adapter, match).keys() == tensors.keys()


def test_a_peft_folder_is_replaced_as_a_whole_and_no_other_folder_ever(tmp_path):
    both = loaded(dump("kohya_sd15_lora").tensors)[0]
    unet = Adapter("sd15", {t: layer for t, layer in both.layers.items() if t.component == "denoiser"})
    convert.write(both, tmp_path / "p", "peft")
    assert {t.component for t in convert.read(tmp_path / "p").layers} == {"denoiser", "clip_l"}
    with pytest.raises(FileProblem, match="already exists"):
        convert.write(unet, tmp_path / "p", "peft")
    convert.write(unet, tmp_path / "p", "peft", overwrite=True)
    assert {t.component for t in convert.read(tmp_path / "p").layers} == {"denoiser"}
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with pytest.raises(FileProblem, match="not a folder of PEFT adapters"):
        convert.write(unet, tmp_path / "p", "peft", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"] and (tmp_path / "p" / "notes.txt").exists()


def test_dense_layers_are_refused_for_peft_in_one_line(tmp_path):
    dense = Adapter("sd15", {Target("denoiser", "out.2"): Full(torch.ones(4, 320, 3, 3))})
    with pytest.raises(UnsupportedLayer, match="cannot be said in the peft dialect"):
        convert.write(dense, tmp_path / "p", "peft")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_while_a_peft_folder_is_replaced_brings_the_old_one_back(tmp_path, monkeypatch):
    adapter = loaded(dump("peft_sd15_lora").tensors)[0]
    convert.write(adapter, tmp_path / "p", "peft")
    before = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}
    rename = Path.rename

    def interrupted(self, goal):
        if Path(goal) == tmp_path / "p" and self.name != "p":  # the new folder on its way in
            raise KeyboardInterrupt
        return rename(self, goal)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert.write(adapter, tmp_path / "p", "peft", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_rotation_with_settings_of_its_own_is_refused_in_one_line():
    layer = OFTv2(torch.zeros(10, 496), terms=None)
    adapter = Adapter("sd15", {Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q"): layer})
    with pytest.raises(UnsupportedLayer, match="OFT of version 2 with settings of its own cannot be said in the kohya"):
        encode(adapter, "kohya")


def test_layers_of_other_algorithms_become_lora_on_request(tmp_path):
    from lorasmith.lora_core.ops.bake import to_lora

    target = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    factors = [torch.randn(320, 2), torch.randn(2, 320), torch.randn(320, 2), torch.randn(2, 320)]
    adapter = Adapter("sd15", {target: LoHa(*factors, alpha=2.0)})
    full = to_lora(adapter, 4)  # the product of two of rank 2 has rank 4
    assert isinstance(full.layers[target], LoRA) and difference(full, adapter).relative_error < 1e-5
    assert 0.01 < difference(to_lora(adapter, 1), adapter).relative_error < 1
    with pytest.raises(UnsupportedLayer, match="which keep it, or approximate with --bake-to lora --rank N"):
        encode(adapter, "diffusers")
    assert {key.rpartition(".")[2] for key in encode(full, "diffusers")} == {"weight"}
