"""Which family a model is, from names and shapes alone, and how adapters meet it."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from dumps import NAMES, dump
from test_architectures import LAYOUTS as DUMPS

from lorasmith.convert.against import UNKNOWN, compare, model_of, read_model
from lorasmith.convert.architectures import ARCHITECTURES
from lorasmith.convert.detect import detect
from lorasmith.convert.keymap import keymap
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import BadConfig, FileProblem

MODELS = Path(__file__).parent / "models"
LAYOUTS = {  # what single files hold under which beginnings
    "sd15": {"model.diffusion_model.": "sd15.ldm.unet", "cond_stage_model.transformer.text_model.": "sd15.ldm.clip_l"},
    "sd21": {"model.diffusion_model.": "sd21.ldm.unet", "cond_stage_model.model.": "sd21.ldm.openclip_h"},
    "sdxl": {
        "model.diffusion_model.": "sdxl.ldm.unet",
        "conditioner.embedders.0.transformer.text_model.": "sd15.ldm.clip_l",
        "conditioner.embedders.1.model.": "sdxl.ldm.openclip_g",
    },
}


def names(model: str) -> dict[str, tuple[int, ...]]:
    content = json.loads(gzip.decompress((MODELS / f"{model}.json.gz").read_bytes()))
    return {key: tuple(shape) for key, shape in content["keys"].items()}


def below(prefix: str, model: str) -> dict[str, tuple[int, ...]]:
    return {prefix + key: shape for key, shape in names(model).items()}


def checkpoint(family: str) -> dict[str, tuple[int, ...]]:
    parts = [below(prefix, model) for prefix, model in LAYOUTS[family].items()]
    vae = {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}
    return {key: shape for part in [*parts, vae] for key, shape in part.items()}


def lora(name: str) -> tuple[dict, dict, str]:
    file = dump(name)
    return dict(file.keys), dict(file.metadata), file.family


def against(name: str, model) -> dict:
    keys, metadata, _ = lora(name)
    return compare(detect(keys, metadata), keys, model)


def save(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Write a model's header with next to no bytes behind it: each tensor keeps its dimensions, all of size 1 or 2."""
    small = {key: tuple(2 if size > 1 else 1 for size in shape) for key, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    return store.save(path, {key: torch.zeros(shape) for key, shape in small.items()})


@pytest.mark.parametrize("family", LAYOUTS)
def test_checkpoint_holds_every_module_of_its_family(family):
    model = model_of(checkpoint(family), "m.safetensors")
    assert model.architecture == family
    for part in next(f for f in ARCHITECTURES if f.id == family).components:
        for target in keymap(family).targets(part.id, "original").values():
            shape = keymap(family).shape(target)
            assert model.shapes[target] == shape, target


def test_openclip_weights_are_cut_into_their_modules():
    model = model_of(checkpoint("sdxl"), "m")
    layer = "text_model.encoder.layers.31.self_attn"
    assert model.shapes[Target("clip_g", f"{layer}.v_proj")] == (1280, 1280)
    assert model.shapes[Target("clip_g", f"{layer}.v_proj", None, "bias")] == (1280,)
    assert model.shapes[Target("clip_g", "text_projection")] == (1280, 1280)


@pytest.mark.parametrize(
    "shapes",
    [
        below("", "sd15.ldm.unet"),
        below("model.diffusion_model.", "sd15.ldm.unet"),
        below("diffusion_model.", "sd15.ldm.unet"),
        below("", "sd15.diffusers.unet"),
        below("unet.", "sd15.diffusers.unet"),
    ],
    ids=["bare", "checkpoint", "live ComfyUI", "diffusers file", "diffusers folder"],
)
def test_unet_is_the_same_model_in_every_layout(shapes):
    assert model_of(shapes, "m").shapes == model_of(below("", "sd15.ldm.unet"), "m").shapes


@pytest.mark.parametrize(
    "shapes",
    [
        below("cond_stage_model.transformer.text_model.", "sd15.ldm.clip_l"),
        below("cond_stage_model.transformer.", "sd15.ldm.clip_l"),
        below("clip_l.transformer.text_model.", "sd15.ldm.clip_l"),
        below("text_encoder.", "clip_l.transformers"),
    ],
    ids=["checkpoint", "old merges", "live ComfyUI", "diffusers folder"],
)
def test_text_encoder_is_the_same_in_every_layout(shapes):
    unet = below("model.diffusion_model.", "sd15.ldm.unet")
    model = model_of({**unet, **shapes}, "m")
    reference = model_of(checkpoint("sd15"), "m")
    assert {t: s for t, s in model.shapes.items() if t.component == "clip_l"} == {
        t: s for t, s in reference.shapes.items() if t.component == "clip_l"
    }


# Layers that do not fit the released model, and why.
ODD = {
    "invoke_anima_lora_kohya": "an invented excerpt: 2048 inputs of the text",
    "invoke_anima_lora_lokr": "an invented excerpt: factors of 16384 x 16384",
    "invoke_flux_lokr_bfl": "an invented excerpt: factors of 1024 x 3072",
    "sai_control_lora_sd15like": "the encoder of SD 1.x",
    "onetrainer_sana_diffusers": "OneTrainer gives grouped convolutions a layer for ungrouped ones",
    "onetrainer_sana_kohya": "the same",
    "onetrainer_stable-cascade-c_comfy": "the same",
    "onetrainer_stable-cascade-c_kohya": "the same",
    "onetrainer_stable-cascade-c_legacy": "the same",
}
BODIES = {family: name for name, family, component, *_ in reversed(DUMPS) if component == "denoiser"}


@cache
def body(family: str):
    """Return the real model of a family, its denoiser alone."""
    return model_of(names(BODIES[family]), family)


@pytest.mark.parametrize("name", NAMES)
def test_every_dump_fits_its_family_and_no_other(name):
    keys, metadata, family = lora(name)
    match = detect(keys, metadata)
    assert family in match.fits
    if family in BODIES:
        result = compare(match, keys, body(family))
        assert result["architecture"] == family or result["architecture"] in match.fits
        absent = [target for target in result["unmatched"] if target.startswith("denoiser.")]
        assert absent == [] or name == "sai_control_lora_sd15like"
        assert (result["shape_conflicts"] == []) == (name not in ODD), ODD.get(name)
    for other in ("sd15", "sdxl", "flux", "flux2-dev", "wan21-14b-t2v", "z-image", "qwen-image", "sd35-large"):
        result = compare(match, keys, body(other))
        assert (result["verdict"] == "wrong-architecture") == (other not in match.fits or not result["matched"]), other


def test_wrong_family_names_both_and_what_to_do():
    result = against("kohya_sdxl_lora", model_of(checkpoint("sd15"), "m"))
    assert result["next"] == (
        "a LoRA for Stable Diffusion XL on a Stable Diffusion 1.x model: load a Stable Diffusion XL checkpoint, "
        "or a LoRA made for this model"
    )


def test_conflicts_name_the_module_and_both_shapes():
    result = against("diffusers_sd15_unet_lora", model_of(checkpoint("sd21"), "m"))
    assert result["total"] - result["matched"] == len(result["shape_conflicts"]) == 32
    assert result["shape_conflicts"][0] == (
        "denoiser.input_blocks.1.1.transformer_blocks.0.attn2.to_k: 320x768 in the LoRA, 320x1024 in the model"
    )


def test_model_without_a_text_encoder_fits_in_part():
    result = against("kohya_sd15_lora", model_of(below("", "sd15.ldm.unet"), "m"))
    assert (result["verdict"], result["matched"], result["total"]) == ("partial", 192, 264)
    assert "holds no clip_l" in result["next"]


def test_ambiguous_adapter_is_placed_by_the_models_family():
    keys = {f"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_{part}.weight": None for part in ("down", "up")}
    match = detect(keys)
    assert {"sd15", "sd21"} <= set(match.candidates)
    for family in ("sd15", "sd21"):
        assert compare(match, keys, model_of(checkpoint(family), "m"))["verdict"] == "fits"


def test_tiny_models_are_told_apart_by_their_kinds_of_modules():
    for family in ("sd15", "sd21"):
        tiny = {key: tuple(min(size, 8) for size in shape) for key, shape in checkpoint(family).items()}
        assert model_of(tiny, "tiny").architecture == family


def test_same_family_in_another_size_matches_nothing_and_says_so():
    tiny = {key: tuple(min(size, 8) for size in shape) for key, shape in checkpoint("sd15").items()}
    result = against("kohya_sd15_lora", model_of(tiny, "tiny"))
    assert (result["matched"], result["verdict"]) == (0, "wrong-architecture")
    assert "other sizes" in result["next"]


def test_unknown_family_is_said_in_one_line():
    invented = {f"model.diffusion_model.rings.{n}.turn.weight": (64, 64) for n in range(9)}
    model = model_of(invented, "new.safetensors")
    assert (model.architecture, model.shapes) == (UNKNOWN, {})
    result = against("kohya_sd15_lora", model)
    assert (result["verdict"], result["architecture"], result["matched"]) == ("wrong-architecture", "unknown", 0)
    assert result["next"].startswith("a LoRA for Stable Diffusion 1.x on a model of a family that is not known here: ")
    assert "\n" not in result["next"]


def test_family_that_is_not_known_even_by_name():
    model = model_of({"layers.0.mixer.weight": (4, 4)}, "m")
    assert "a model of a family that is not known here" in against("kohya_sd15_lora", model)["next"]


def test_lora_and_weightless_files_are_no_models(tmp_path):
    keys, _, _ = lora("kohya_sd15_lora")
    with pytest.raises(BadConfig) as error:
        model_of(keys, "style.safetensors")
    assert error.value.message == (
        "style.safetensors: is a LoRA itself, not a model. Name a checkpoint or a Diffusers folder"
    )
    with pytest.raises(BadConfig, match="holds no model's weights"):
        model_of({"emb_params": (4, 768)}, "embedding.safetensors")
    with pytest.raises(FileProblem, match="no model in this folder"):
        read_model(tmp_path)
    with pytest.raises(FileProblem):
        read_model(tmp_path / "missing.safetensors")


def test_checkpoint_file_is_read_from_its_header(tmp_path):
    path = save(tmp_path / "m.safetensors", checkpoint("sd21"))
    model = read_model(path)
    assert (model.architecture, model.name) == ("sd21", str(path))
    assert model.components == {"denoiser", "clip_h"}


def test_diffusers_folder_with_shards_and_variants(tmp_path):
    unet = names("sd15.diffusers.unet")
    half = len(unet) // 2
    for n, part in enumerate((list(unet.items())[:half], list(unet.items())[half:])):
        save(tmp_path / "unet" / f"diffusion_pytorch_model.fp16-{n + 1:05}-of-00002.safetensors", dict(part))
    save(tmp_path / "text_encoder" / "model.safetensors", names("clip_l.transformers"))
    save(tmp_path / "text_encoder" / "model.fp16.safetensors", names("clip_l.transformers"))
    save(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", {"encoder.conv_in.weight": (128, 3, 3, 3)})
    model = read_model(tmp_path)
    assert model.architecture == "sd15"
    assert set(model.shapes) == set(model_of(checkpoint("sd15"), "m").shapes)
    assert read_model(tmp_path / "unet").components == {"denoiser"}


def test_equal_names_and_sizes_of_another_family_are_no_fit() -> None:
    """FLUX.1 and HunyuanVideo share their attention's names and sizes; FLUX.1 and Chroma share LoRAs."""
    name = "diffusers_flux_dreambooth"
    keys, metadata, _ = lora(name)
    assert {"flux", "hunyuan-video"} <= set(detect(keys, metadata).fits)

    def model(id: str):
        rows = keymap(id).modules("denoiser").items()
        return model_of({f"model.diffusion_model.{module}.weight": row.shape for module, row in rows}, id)

    other = against(name, model("hunyuan-video"))
    assert other["architecture"] == "hunyuan-video" and other["matched"] == other["total"]
    assert other["verdict"] == "wrong-architecture"
    assert other["next"].startswith("a LoRA for FLUX.1 or Chroma on a HunyuanVideo model: load")
    assert against(name, model("flux"))["verdict"] == "fits"
