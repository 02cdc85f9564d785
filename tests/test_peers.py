"""Our files in the real libraries: Diffusers and PEFT load them and change the weights by exactly our deltas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorasmith import convert
from lorasmith.convert.inspect import info
from lorasmith.convert.keymap import keymap
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import AmbiguousFormat
from lorasmith.lora_core.layers import LoRA

pytestmark = pytest.mark.filterwarnings("ignore")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

WIDTH = 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def unet(linear: bool = False):
    """A UNet with the module names of SD 1.x (or 2.x) and tiny widths."""
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(WIDTH,) * 4,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        use_linear_projection=linear,
    )


def text_encoder():
    torch.manual_seed(1)
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=64, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        )
    )


def pipeline(linear: bool = False):
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        text_encoder=text_encoder(),
        tokenizer=None,
        unet=unet(linear),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
    )


def wanted(name: str) -> bool:
    kinds = (
        *ATTENTION,
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "conv1",
        "conv_shortcut",
        "conv_out",
        *TEXT,
    )
    return name.endswith(tuple(f".{kind}" for kind in kinds)) or name == "conv_out"


def adapter_for(pipe, family: str, text: str, mixed: bool = True) -> Adapter:
    """Random layers on every wanted module of a pipeline, of mixed ranks and alphas or all alike.

    (Alike for kohya files: of those Diffusers 0.42 takes one alpha for all attention layers.)
    """
    generator = torch.Generator().manual_seed(2)
    layers = {}
    for component, model in (("denoiser", pipe.unet), (text, pipe.text_encoder)):
        known = keymap(family).targets(component, "diffusers")
        for number, (name, module) in enumerate(model.named_modules()):
            full = name if component == "denoiser" or name.startswith("text_model.") else f"text_model.{name}"
            rank, alpha = (2 + number % 2, 1.0 + number % 3) if mixed else (2, 1.0)
            if wanted(name) and full in known:
                layers[known[full]] = random_layer(module.weight, rank, alpha, generator)
    return Adapter(family, layers)


def random_layer(weight, rank: int, alpha: float, generator) -> LoRA:
    out, inner, *kernel = weight.shape
    down = torch.randn(rank, inner, *kernel, generator=generator) * 0.1
    up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.1
    return LoRA(down, up, alpha)


def weights(pipe) -> dict[str, torch.Tensor]:
    """Every weight of the UNet and the text encoder, the latter with text_model. whatever the version."""
    state = {f"denoiser {key}": value.clone() for key, value in pipe.unet.state_dict().items()}
    for key, value in pipe.text_encoder.state_dict().items():
        state[f"text {key.removeprefix('text_model.')}"] = value.clone()
    return state


def assert_changed_by(before, after, adapter: Adapter, scale: float = 1.0, tolerance: float = 1e-6) -> None:
    """Exactly the adapter's weights changed, each as its layer's `apply` says, which adds scale times its delta."""
    layers = {}
    for target, layer in adapter.layers.items():
        name = keymap(adapter.architecture).name(target, "diffusers")
        part = "denoiser" if target.component == "denoiser" else "text"
        layers[f"{part} {name.removeprefix('text_model.')}.weight"] = layer
    for key, value in before.items():
        if key in layers:
            expected = layers.pop(key).apply(value, scale)
            close = tolerance * max(1.0, float(expected.abs().max()))
            assert not torch.equal(expected, value), key
            assert torch.allclose(after[key], expected, rtol=0, atol=close), key
        else:
            assert torch.equal(after[key], value), key
    assert layers == {}


@pytest.mark.parametrize("family, text, linear", [("sd15", "clip_l", False), ("sd21", "clip_h", True)])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_diffusers_loads_our_files_with_the_text_encoder(family, text, linear, format, scale, tmp_path):
    pipe = pipeline(linear)
    adapter = adapter_for(pipe, family, text, mixed=format != "kohya")
    assert {target.component for target in adapter.layers} == {"denoiser", text}
    path = convert.write(adapter, tmp_path / "lora.safetensors", format)
    before = weights(pipe)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    pipe.fuse_lora(lora_scale=scale)
    pipe.unload_lora_weights()
    assert_changed_by(before, weights(pipe), adapter, scale)


def test_the_verdict_warns_of_kohya_files_that_diffusers_scales_wrongly(tmp_path):
    adapter = adapter_for(pipeline(), "sd15", "clip_l")
    alike = adapter_for(pipeline(), "sd15", "clip_l", mixed=False)
    says = {
        name: info(convert.write(made, tmp_path / f"{name}.safetensors"))["hosts"]["diffusers"]
        for name, made in (("mixed", adapter), ("alike", alike))
    }
    assert "one alpha for all attention layers" in says["mixed"]["why"] and "one alpha" not in says["alike"]["why"]


def test_peft_loads_our_folder_and_its_maths_are_ours(tmp_path):
    pipe = pipeline()
    whole = adapter_for(pipe, "sd15", "clip_l")
    adapter = replace(whole, layers={t: layer for t, layer in whole.layers.items() if t.component == "denoiser"})
    folder = convert.write(adapter, tmp_path / "adapter", "peft")
    before = weights(pipe)
    pipe.unet = peft.PeftModel.from_pretrained(pipe.unet, folder).merge_and_unload()
    assert_changed_by(before, weights(pipe), adapter)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_peft_saves_we_read_with_its_scales(use_rslora, tmp_path):
    model = unet()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["to_q", "to_k", "conv1", "proj_in"],
        rank_pattern={"attn2.to_k": 2},
        alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 3},
        use_rslora=use_rslora,
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.save_pretrained(tmp_path)
    adapter = convert.read(tmp_path)
    names = keymap("sd15").targets("denoiser", "diffusers")
    checked = 0
    for name, module in wrapped.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            ours = adapter.layers[names[name]].delta()
            assert torch.allclose(ours, module.get_delta_weight("default"), atol=1e-6), name
            checked += 1
    assert checked == len(adapter.layers) > 40


def test_files_that_diffusers_saves_are_read_with_their_scale(tmp_path):
    pipe = pipeline()
    for model, modules in ((pipe.unet, ["to_q", "to_v"]), (pipe.text_encoder, ["q_proj", "fc1"])):
        model.add_adapter(peft.LoraConfig(r=4, lora_alpha=16, target_modules=modules, init_lora_weights=False))
    states = [peft.get_peft_model_state_dict(model) for model in (pipe.unet, pipe.text_encoder)]
    configs = [model.peft_config["default"].to_dict() for model in (pipe.unet, pipe.text_encoder)]
    pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=states[0],
        text_encoder_lora_layers=states[1],
        unet_lora_adapter_metadata=configs[0],
        text_encoder_lora_adapter_metadata=configs[1],
    )
    file = next(tmp_path.glob("*.safetensors"))
    with pytest.raises(AmbiguousFormat):  # tiny widths fit SD 1.x and 2.x alike, and Diffusers' header names neither
        convert.read(file)
    stored = store.load(file)
    metadata = {**stored.metadata, "ss_base_model_version": "sd_v1"}
    adapter = convert.read(store.save(tmp_path / "named.safetensors", stored.tensors, metadata))
    assert {target.component for target in adapter.layers} == {"denoiser", "clip_l"}
    assert {layer.scale for layer in adapter.layers.values()} == {4.0}
    target = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")
    module = pipe.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.allclose(adapter.layers[target].delta(), module.get_delta_weight("default"), atol=1e-6)
