"""Files whose layers are numbered: what each number means is told by the sizes of all, or refused."""

import json
import re

import pytest
import torch
from dumps import constant, dump
from torch.nn.utils import parametrize

from lorasmith import convert
from lorasmith.convert import inspect
from lorasmith.convert.detect import detect
from lorasmith.convert.files import tensors_at
from lorasmith.convert.keymap import keymap
from lorasmith.convert.positional import CLASSES, LAST, named
from lorasmith.lora_core import store
from lorasmith.lora_core.adapter import Target
from lorasmith.lora_core.errors import NotALoRA, UnknownFormat

UNET, ATTENTION, EXTENDED, TEXT, CASCADE = CLASSES
RANK = 2


def layers(id, component, classes):
    """Return the targets that a trainer counts, in order, with their shapes."""
    map = keymap(id)
    return [(target, map.shape(target)) for target in map.counted(component, classes)]


def pairs(shapes):
    """Return up, down, up, down ...; each up holds its own number, so that a mix-up shows."""
    found = []
    for number, shape in enumerate(shapes):
        kernel = shape[2:]
        found.append(torch.full((shape[0], RANK, *[1] * len(kernel)), float(number + 1)))
        found.append(torch.ones(RANK, *shape[1:]))
    return found


def safeloras(model, counted):
    """Return the same under safeloras keys."""
    tensors = pairs([shape for _, shape in counted])
    return {f"{model}:{n // 2}:{'down' if n % 2 else 'up'}": tensor for n, tensor in enumerate(tensors)}


def saved(tensors, path):
    torch.save(tensors, path)
    return path


def number_at(adapter, target):
    return float(adapter.layers[target].up.flatten()[0])


def same(one, other):
    """Compare two adapters' layers value by value."""
    pairs = [(layer, other.layers[target]) for target, layer in one.layers.items()]
    return len(one.layers) == len(other.layers) and all(
        torch.equal(a.up, b.up) and torch.equal(a.down, b.down) and a.scale == b.scale for a, b in pairs
    )


@pytest.mark.parametrize(
    ("id", "component", "classes", "count"),
    [
        ("sd15", "denoiser", UNET, 144),
        ("sd15", "denoiser", ATTENTION, 128),
        ("sd15", "denoiser", EXTENDED, 144 + 22 * 3 + 14),
        ("sd21", "denoiser", UNET, 144),
        ("sd15", "clip_l", TEXT, 48),
        ("sd21", "clip_h", TEXT, 92),
    ],
)
def test_a_bare_list_is_read_in_module_order(id, component, classes, count, tmp_path):
    counted = layers(id, component, classes)
    assert len(counted) == count
    path = saved(pairs([shape for _, shape in counted]), tmp_path / "lora.pt")
    loaded = convert.load(path)
    assert loaded.match.format == "safeloras"
    assert id in loaded.match.candidates
    assert not loaded.match.unknown
    assert [number_at(loaded.adapter, target) for target, _ in counted] == [n + 1.0 for n in range(count)]
    assert all(layer.alpha == RANK for layer in loaded.adapter.layers.values())


def test_a_list_becomes_a_kohya_file_with_the_same_deltas(tmp_path):
    counted = layers("sd15", "denoiser", UNET)
    adapter = convert.read(saved(pairs([shape for _, shape in counted]), tmp_path / "lora.pt"))
    again = convert.read(convert.write(adapter, tmp_path / "out.safetensors", "kohya"))
    assert again.architecture == "sd15"
    assert same(again, adapter)


def test_a_list_keeps_its_numbering_when_it_is_written_back(tmp_path):
    counted = layers("sd15", "denoiser", UNET)
    tensors = pairs([shape for _, shape in counted])
    loaded = convert.load(saved(tensors, tmp_path / "lora.pt"))
    out = store.load(convert.write(loaded.adapter, tmp_path / "out.safetensors", loaded.match))
    assert json.loads(out.metadata["unet"]) == sorted(UNET)
    assert out.metadata["unet:143:rank"] == str(RANK)
    for number in range(144):
        assert torch.equal(out.tensors[f"unet:{number}:up"], tensors[2 * number])
        assert torch.equal(out.tensors[f"unet:{number}:down"], tensors[2 * number + 1])


def test_newer_diffusers_order_of_a_block_is_told_by_its_sizes(tmp_path):
    """Diffusers moved the feed-forward behind the second attention: the same layers, other numbers."""
    counted = layers("sd15", "denoiser", UNET)
    moved = [pair for start in range(0, 144, 9) for pair in _feed_forward_last(counted[start : start + 9])]
    assert moved != counted
    adapter = convert.read(saved(pairs([shape for _, shape in moved]), tmp_path / "lora.pt"))
    assert [number_at(adapter, target) for target, _ in moved] == [n + 1.0 for n in range(144)]


def _feed_forward_last(block):
    return [pair for pair in block if LAST not in pair[0].module] + [pair for pair in block if LAST in pair[0].module]


def test_the_orders_are_those_of_the_models_of_diffusers():
    """Walk Diffusers' UNet and transformers' CLIP as the trainer does; their names must be those that were counted."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    known = keymap("sd15").targets("denoiser", "diffusers")
    for classes in (UNET, EXTENDED):
        counted = [target for target, _ in layers("sd15", "denoiser", classes)]
        walked = [known[name] for name in _walk(unet, classes, (torch.nn.Linear, torch.nn.Conv2d))]
        blocks = re.compile(r"(.*)\.transformer_blocks")
        ordered = sorted(
            range(len(counted)),
            key=lambda n: (
                min(m for m, t in enumerate(counted) if _block(t, blocks) == _block(counted[n], blocks)),
                LAST in counted[n].module,
                n,
            ),
        )
        assert walked == [counted[n] for n in ordered]


def _block(target, blocks):
    found = blocks.match(target.module)
    return found.group(1) if found else target.module


def _walk(model, classes, kinds):
    return [
        f"{name}.{below}" if below else name
        for name, module in model.named_modules()
        if type(module).__name__ in classes
        for below, child in module.named_modules()
        if type(child) in kinds
    ]


def test_clips_order_is_that_of_transformers():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=12))
    walked = [name.removeprefix("text_model.") for name in _walk(clip, TEXT, (torch.nn.Linear,))]
    counted = [target.module.removeprefix("text_model.") for target, _ in layers("sd15", "clip_l", TEXT)]
    assert walked == counted


def test_real_safeloras_come_back_unchanged():
    file = store.Stored(constant("cloneofsimo_lora_disney"), dump("cloneofsimo_lora_disney").metadata)
    again = named(file)
    assert set(again.tensors) == set(file.tensors)
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in file.tensors.items())
    assert {key: set(json.loads(again.metadata[key])) for key in ("unet", "text_encoder")} == {
        "unet": set(UNET),
        "text_encoder": set(TEXT),
    }


def test_safeloras_keep_their_embeddings_and_lose_no_layer(tmp_path):
    tensors = safeloras("text_encoder", layers("sd15", "clip_l", TEXT))
    path = store.save(tmp_path / "lora.safetensors", {**tensors, "<s1>": torch.ones(768)}, {"<s1>": "<embed>"})
    loaded = convert.load(path)
    assert len(loaded.adapter.layers) == 48
    assert loaded.match.riders == ("<s1>",)
    assert set(loaded.adapter.extras) == {"<s1>"}


# Stable Cascade ------------------------------------------------------------------------------------------------------


class _Own(torch.nn.Module):
    """Any change of a weight that is a module of its own."""

    def forward(self, weight):
        return weight


def test_torch_meets_the_output_projection_before_the_fused_weight():
    """StableCascade's trainer hangs layers on weights in this way and numbers them as `modules()` gives them."""
    attention = torch.nn.MultiheadAttention(8, 2)
    for name, module in list(attention.named_modules()):
        weight = "weight" if name == "out_proj" else "in_proj_weight"
        parametrize.register_parametrization(module, weight, _Own())
    found = [name for name, module in attention.named_modules() if isinstance(module, _Own)]
    assert found == ["out_proj.parametrizations.weight.0", "parametrizations.in_proj_weight.0"]


def cascade(count=64, width=2048):
    tensors = {}
    for block in range(count):
        for half, height in enumerate((width, 3 * width)):
            number = 2 * block + half
            up = torch.arange(height).float().div(width, rounding_mode="floor").unsqueeze(1) / 8 + number
            tensors[f"weights.{number}.lora_up"] = up.expand(height, 4).contiguous()
            tensors[f"weights.{number}.lora_down"] = torch.ones(4, width)
    return tensors


def test_stable_cascades_numbers_become_its_attention(tmp_path):
    embeddings = {"embeddings.embeddings": torch.ones(1, 1280), "embeddings.indices": torch.tensor([49408])}
    path = store.save(tmp_path / "fernando.safetensors", {**cascade(), **embeddings})
    loaded = convert.load(path)
    assert (loaded.match.architecture, loaded.match.format) == ("stable-cascade-c", "safeloras")
    assert set(loaded.adapter.extras) == set(embeddings)
    assert len(loaded.adapter.layers) == 4 * 64

    def at(module):
        return loaded.adapter.layers[Target("denoiser", module)]

    assert {layer.alpha / layer.rank for layer in loaded.adapter.layers.values()} == {1 / 4}  # the trainer's alpha is 1
    assert float(at("down_blocks.0.2.attention.attn.out_proj").up[0, 0]) == 0
    for third, name in enumerate(("to_q", "to_k", "to_v")):
        assert torch.all(at(f"down_blocks.0.2.attention.attn.{name}").up == 1 + third / 8)
        assert torch.all(at(f"up_blocks.1.23.attention.attn.{name}").up == 127 + third / 8)
    assert float(at("down_blocks.1.2.attention.attn.out_proj").up[0, 0]) == 16
    assert float(at("up_blocks.0.2.attention.attn.out_proj").up[0, 0]) == 64

    again = convert.read(convert.write(loaded.adapter, tmp_path / "out.safetensors", "kohya"))
    assert same(again, loaded.adapter)


def test_info_reads_numbered_files_too(tmp_path):
    path = store.save(tmp_path / "fernando.safetensors", cascade())
    info = inspect.info(path, keys=True)
    assert (info["architecture"], info["layers"], info["ranks"]) == ("stable-cascade-c", 256, {"4": 256})
    assert info["alphas"] == {"1.0": 256}
    assert info["health"]["zero_layers"] == 1  # the first, which holds its own number
    assert not info["hosts"]["comfyui"]["loads"]
    assert info["bytes"] == path.stat().st_size
    assert "numbered" in inspect.text(info).splitlines()[0]


# Refusals ------------------------------------------------------------------------------------------------------------

WAY_OUT = "Save it with names in the program that trained it"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: pairs([(320, 320)] * 128), "its 128 layers have numbers instead of names, and have the sizes of no"),
        (lambda: pairs([s for _, s in layers("sd15", "denoiser", UNET)][:-1]), "have the sizes of no model's layers"),
        (lambda: pairs([(320, 320)] * 4)[:-1], "are not all pairs of an up and a down"),
        (lambda: cascade(63), "have the sizes of no model's layers in a known order"),
        (lambda: cascade(32, 1536), "have the sizes of no model's layers in a known order"),  # the model of 1 B
        (
            lambda: {"weights.1.lora_up": torch.ones(4, 2), "weights.1.lora_down": torch.ones(2, 4)},
            "do not count from 0",
        ),
    ],
)
def test_what_cannot_be_assigned_with_certainty_is_refused_in_one_line(make, why, tmp_path):
    path = saved(make(), tmp_path / "lora.pt")
    for read in (convert.read, inspect.info):
        with pytest.raises(UnknownFormat) as caught:
            read(path)
        assert why in caught.value.message
        assert caught.value.message.startswith("lora.pt: ")
        assert caught.value.message.endswith(WAY_OUT)
        assert "\n" not in caught.value.message


def test_classes_in_the_header_that_the_sizes_contradict_are_refused(tmp_path):
    safe = safeloras("unet", layers("sd15", "denoiser", UNET))
    path = store.save(tmp_path / "lora.safetensors", safe, {"unet": json.dumps(["CrossAttention"])})
    with pytest.raises(UnknownFormat, match="in a known order"):
        convert.read(path)


def test_safeloras_with_layers_taken_out_keep_their_numbers(tmp_path):
    counted = layers("sd15", "denoiser", UNET)
    safe = {key: tensor for key, tensor in safeloras("unet", counted).items() if int(key.split(":")[1]) >= 100}
    header = {"unet": json.dumps(sorted(UNET))}
    adapter = convert.read(store.save(tmp_path / "lora.safetensors", safe, header))
    assert {target: number_at(adapter, target) for target in adapter.layers} == {
        target: number + 1.0 for number, (target, _) in enumerate(counted) if number >= 100
    }
    moved = {key.replace(":100:", ":3:"): tensor for key, tensor in safe.items()}
    with pytest.raises(UnknownFormat, match="in a known order"):
        convert.read(store.save(tmp_path / "moved.safetensors", moved, header))


def test_half_a_layer_is_named_by_its_key(tmp_path):
    safe = safeloras("text_encoder", layers("sd15", "clip_l", TEXT))
    del safe["text_encoder:5:down"]
    with pytest.raises(UnknownFormat, match="'text_encoder:5:up' .its down is missing"):
        convert.read(store.save(tmp_path / "lora.safetensors", safe))


# Textual inversions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensors",
    [
        {"<s1>": torch.ones(768), "<s2>": torch.ones(768)},
        {f"<s{n}>": torch.ones(768) for n in range(8)},
        {"string_to_param": {"*": torch.ones(4, 768)}, "string_to_token": {"*": 265}, "name": "ink", "step": 100},
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)},
        {"emb_params": torch.ones(3, 768)},
    ],
)
def test_a_lone_textual_inversion_is_called_one(tensors, tmp_path):
    path = saved(tensors, tmp_path / "lora.ti.pt")
    with pytest.raises(NotALoRA, match="looks like a textual inversion .* Load it as an embedding instead"):
        convert.read(path)


@pytest.mark.parametrize(
    "key",
    [
        "bundle_emb.my ink 1.5.clip_l",
        "bundle_emb.ink.clip_g_out",
        "bundle_emb.ink.string_to_param.*",
        "string_to_param.*",
        "<s1>",
        "clip_l",
        "clip_g",
        "emb_params",
    ],
)
def test_a_bundled_textual_inversion_rides_along(key, tmp_path):
    layer = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": torch.ones(768, 2)}
    layer["lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight"] = torch.ones(2, 768)
    path = store.save(tmp_path / "ink.safetensors", {**layer, key: torch.ones(2, 768)})
    match = detect(store.header(path).shapes)
    assert (match.riders, match.unknown) == ((key,), ())
    out = convert.write(convert.read(path), tmp_path / "out.safetensors", "comfy")
    assert torch.equal(store.load(out).tensors[key], torch.ones(2, 768))


def test_numbered_layers_are_detected_from_names_alone():
    match = detect({f"unet:{n}:{role}": None for n in range(144) for role in ("up", "down")})
    assert match.format == "safeloras"
    assert set(match.candidates) == {"sd15", "sd21"}


def test_files_without_numbers_are_left_alone(tmp_path):
    path = store.save(tmp_path / "a.safetensors", {"1": torch.ones(2)})
    assert set(tensors_at(path).tensors) == {"1"}
