"""Our files on the real model classes of Diffusers and transformers, without weights: each layer finds its module.

The classes are built with the widths of the released models and few blocks, on the meta device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lorasmith import convert
from lorasmith.convert.codec import encode
from lorasmith.convert.keymap import keymap
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.layers import LoRA

pytestmark = pytest.mark.filterwarnings("ignore")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

UNET = {"block_out_channels": (320, 640, 1280, 1280), "sample_size": 8}
SDXL_UNET = {
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
    "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}  # the last block is another
FLUX = {"num_layers": 1, "num_single_layers": 1}
TRANSFORMERS = {  # family -> class, what it is built with
    "sd15": ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 768}),
    "sd21": ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 1024, "use_linear_projection": True,
                                      "attention_head_dim": (5, 10, 20, 20)}),
    "sdxl": ("UNet2DConditionModel", SDXL_UNET),
    "flux": ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}),
    "chroma": ("ChromaTransformer2DModel", FLUX),
    "flux2-dev": ("Flux2Transformer2DModel", FLUX),
    "sd3-medium": ("SD3Transformer2DModel", SD3),
    "sd35-medium": ("SD3Transformer2DModel", {**SD3, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}),
    "qwen-image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 1, "n_refiner_layers": 1}),
    "lumina2": ("Lumina2Transformer2DModel", {"num_layers": 1, "num_refiner_layers": 1, "cap_feat_dim": 2304}),
    "wan21-14b-t2v": ("WanTransformer3DModel", {"num_layers": 1}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", FLUX),
    "ltx-video": ("LTXVideoTransformer3DModel", {"num_layers": 1}),
    "cogview4": ("CogView4Transformer2DModel", {"num_layers": 1}),
    "bria-fibo": ("BriaFiboTransformer2DModel", FLUX),
    "ovis-image": ("OvisImageTransformer2DModel", FLUX),
    "longcat-image": ("LongCatImageTransformer2DModel", FLUX),
}  # fmt: skip
LINEAR = (nn.Linear, nn.Conv2d, nn.Conv3d)
LAYERED = {"num_hidden_layers": 1}
ENCODERS: dict[str, tuple[str, str, Callable[[], nn.Module]]] = {  # name -> family, component, maker of the real class
    "clip_l": ("sd15", "clip_l", lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, **LAYERED))),
    "clip_g": ("sdxl", "clip_g", lambda: transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_attention_heads=20, projection_dim=1280, **LAYERED))),
    "t5xxl": ("sd3-medium", "t5xxl", lambda: transformers.T5EncoderModel(transformers.T5Config(
        d_model=4096, d_ff=10240, num_heads=64, num_layers=1, feed_forward_proj="gated-gelu"))),
    "umt5xxl": ("wan21-14b-t2v", "umt5xxl", lambda: transformers.UMT5EncoderModel(transformers.UMT5Config(
        d_model=4096, d_ff=10240, num_heads=64, num_layers=1, feed_forward_proj="gated-gelu", vocab_size=256384))),
    "gemma2_2b": ("lumina2", "gemma2_2b", lambda: transformers.Gemma2Model(transformers.Gemma2Config(
        hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        **LAYERED))),
    "qwen3_4b": ("z-image", "qwen3_4b", lambda: transformers.Qwen3Model(transformers.Qwen3Config(
        hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        **LAYERED))),
    "llama": ("hidream", "llama", lambda: transformers.LlamaModel(transformers.LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, **LAYERED))),
    "mistral3_24b": ("flux2-dev", "mistral3_24b", lambda: transformers.MistralModel(transformers.MistralConfig(
        hidden_size=5120, intermediate_size=32768, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        **LAYERED))),
    "hydit_clip": ("hunyuandit", "hydit_clip", lambda: transformers.BertModel(transformers.BertConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, **LAYERED), add_pooling_layer=False)),
}  # fmt: skip


def transformer(family: str) -> nn.Module:
    name, options = TRANSFORMERS[family]
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of Diffusers has no {name}")
    with torch.device("meta"):
        return getattr(diffusers, name)(**options)


def linears(model: nn.Module) -> dict[str, torch.Size]:
    return {name: part.weight.shape for name, part in model.named_modules() if isinstance(part, LINEAR)}


def adapter(family: str, component: str, names: dict[str, torch.Size]) -> Adapter:
    """A LoRA of rank 2 on every module of these names, in the table's shapes, original layout."""
    map, layers = keymap(family), {}
    known = map.targets(component, "diffusers")
    for name in names:
        module = map.module(known[name])
        assert module is not None
        out, inner, *kernel = module.shape
        down, up = torch.ones(2, inner, *kernel), torch.ones(out, 2, *[1] * len(kernel))
        layers[Target(component, module.original)] = LoRA(down, up, 1.0)
    return Adapter(family, layers)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_diffusers_own_class_takes_every_layer_and_the_table_names_all_its_linears(family: str) -> None:
    model = transformer(family)
    names = linears(model)
    assert names.keys() - keymap(family).targets("denoiser", "diffusers").keys() == set()
    tensors = encode(adapter(family, "denoiser", names), "diffusers")
    assert len(tensors) == 2 * len(names)
    prefix = "unet" if "UNet" in TRANSFORMERS[family][0] else "transformer"
    model.load_lora_adapter(tensors, prefix=prefix, low_cpu_mem_usage=True)
    held = {name: part.shape for name, part in model.named_parameters() if ".lora_" in name}
    assert len(held) == len(tensors)
    for key, tensor in tensors.items():
        name = re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default_0.weight", key.removeprefix(f"{prefix}."))
        assert held[name] == tensor.shape, name
        side = 0 if ".lora_B." in name else 1
        assert tensor.shape[side] == names[name.partition(".lora_")[0]][side], name


def test_diffusers_takes_layers_on_the_connectors_of_ltx2() -> None:
    connectors = pytest.importorskip("diffusers.pipelines.ltx2.connectors")
    with torch.device("meta"):
        model = connectors.LTX2TextConnectors()
    known = {part: keymap("ltx2").targets(part, "diffusers") for part in ("connectors", "text_projection")}
    names = linears(model)
    assert names.keys() <= {name for targets in known.values() for name in targets}
    layers = {}
    for part, targets in known.items():
        layers.update(adapter("ltx2", part, {name: names[name] for name in targets if name in names}).layers)
    made = encode(Adapter("ltx2", layers), "diffusers")
    tensors = diffusers.LTX2Pipeline.lora_state_dict(dict(made))
    assert tensors.keys() == made.keys() and len(made) == 2 * len(names)
    model.load_lora_adapter(tensors, prefix="connectors", low_cpu_mem_usage=True)
    assert sum(".lora_" in name for name, _ in model.named_parameters()) == len(made)


@pytest.mark.parametrize("family", ["sd15", "flux", "qwen-image", "wan21-14b-t2v"])
def test_peft_takes_every_key_of_our_folder(family: str, tmp_path) -> None:
    model = transformer(family)
    made = adapter(family, "denoiser", linears(model))
    folder = convert.write(made, tmp_path / "adapter", "peft")
    config = peft.LoraConfig(**json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        wrapped = peft.get_peft_model(model, config)
    tensors = store.load(folder / "adapter_model.safetensors").tensors
    result = peft.set_peft_model_state_dict(wrapped, tensors, low_cpu_mem_usage=True)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if ".lora_" in key] == []
    assert len(tensors) == 2 * len(linears(transformer(family)))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_linears_of_a_text_encoder_have_the_names_and_shapes_of_transformers(name: str) -> None:
    family, component, maker = ENCODERS[name]
    with torch.device("meta"):
        model = maker()
    map, known = keymap(family), keymap(family).targets(component, "diffusers")
    flat = keymap(family).targets(component, "flat-clip")  # transformers >= 5.6 has no text_model in CLIPTextModel
    for module, shape in linears(model).items():
        target = known.get(module) or flat.get(module)
        assert target is not None, module
        assert map.shape(target) == tuple(shape), module
    assert len(linears(model)) >= 6
