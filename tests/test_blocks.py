"""Blocks by name: each module in one block, strengths read and written, layers scaled and picked by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dumps import NAMES, dump

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.architectures import ARCHITECTURES
from lorasmith.convert.block_weights import chosen, conventions, line, presets, strengths
from lorasmith.convert.blocks import blocks, namer, names_of
from lorasmith.convert.detect import detect
from lorasmith.convert.keymap import keymap
from lorasmith.convert.model import modules
from lorasmith.convert.operations import OPERATIONS
from lorasmith.convert.regroup import alike
from lorasmith.convert.selection import KINDS, kinds_of, pick, scaled, weighted
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import BadConfig, UnsupportedLayer
from lorasmith.lora_core.layers import DoRA, Layer, LoRA, Norm
from lorasmith.lora_core.ops.merge import Weighted, merge
from lorasmith.lora_core.ops.report import difference, relative_error
from lorasmith.lora_core.ops.scale import scale
from lorasmith.lora_core.ops.select import select

FAMILIES = [family.id for family in ARCHITECTURES]
ATTENTION = "transformer_blocks.0.attn1.to_q"
SD15 = {
    "input_blocks.0.0": ("conv_in", "IN00"),
    "input_blocks.1.0.in_layers.2": ("down.0.resnets.0", "IN01"),
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q": ("down.0.attentions.0", "IN01"),
    "input_blocks.3.0.op": ("down.0.downsamplers.0", "IN03"),
    "input_blocks.8.1.proj_in": ("down.2.attentions.1", "IN08"),
    "middle_block.1.transformer_blocks.0.ff.net.2": ("mid.attentions.0", "M00"),
    "middle_block.2.out_layers.3": ("mid.resnets.1", "M00"),
    "output_blocks.2.1.conv": ("up.0.upsamplers.0", "OUT02"),
    "output_blocks.5.2.conv": ("up.1.upsamplers.0", "OUT05"),
    "output_blocks.11.1.proj_out": ("up.3.attentions.2", "OUT11"),
}


def lora(out: int = 4, inner: int = 3, seed: int = 0, rank: int = 2) -> LoRA:
    make = torch.Generator().manual_seed(seed)
    return LoRA(torch.randn(rank, inner, generator=make), torch.randn(out, rank, generator=make), alpha=1.0)


def adapter(family: str, *modules: str, component: str = "denoiser") -> Adapter:
    """Return an adapter with a LoRA of its own at each module; a component may stand before a colon."""
    layers: dict[Target, Layer] = {}
    for number, name in enumerate(modules):
        *part, module = name.split(":")
        layers[Target(*(part or [component]), module)] = lora(seed=number)
    return Adapter(family, layers)


def sd15(*names: str) -> Adapter:
    return adapter("sd15", *(names or SD15), "clip_l:text_model.encoder.layers.3.mlp.fc1")


def targets_of(name: str) -> list[Target]:
    """Return the targets of a dump."""
    file = dump(name)
    return list(detect(file.keys, file.metadata).layers)


# --- names


@pytest.mark.parametrize("id", FAMILIES)
def test_every_module_lies_in_exactly_one_block(id: str) -> None:
    found = [target for block in blocks(id) for target in block.targets]
    every = {Target(part.id, module.original) for part in names_parts(id) for module in modules(part)}
    assert len(found) == len(set(found)) and set(found) == every
    assert all(names_of(id).of(target) == block.name for block in blocks(id) for target in block.targets)


@pytest.mark.parametrize("id", FAMILIES)
def test_names_are_unique_and_tell_components_apart(id: str) -> None:
    names = [block.name for block in blocks(id)]
    assert len(set(map(str.lower, names))) == len(names)
    components = {part.id for part in names_parts(id)} - {"denoiser"}
    for block in blocks(id):
        (component,) = {target.component for target in block.targets}
        assert (block.name.split(".")[0] in components) == (component != "denoiser")


@pytest.mark.parametrize("id", FAMILIES)
def test_most_of_a_denoiser_lies_in_numbered_blocks_of_several_modules(id: str) -> None:
    own = [block for block in blocks(id) if block.targets[0].component == "denoiser"]
    inside = [target for block in own if block.name.rpartition(".")[2].isdigit() for target in block.targets]
    assert len(inside) > 0.8 * sum(len(block.targets) for block in own)


def names_parts(id: str):
    return keymap(id).family.components


@pytest.mark.parametrize(("module", "expected"), SD15.items())
def test_a_unet_goes_by_the_names_of_diffusers_and_has_labels(module: str, expected: tuple[str, str]) -> None:
    name, label = expected
    assert names_of("sd15").of(Target("denoiser", module)) == name
    assert {block.name: block.aliases for block in blocks("sd15")}[name] == (label,)


@pytest.mark.parametrize(
    ("family", "target", "name", "labels"),
    [
        ("flux", ("denoiser", "double_blocks.3.img_attn.qkv"), "double.3", ("D03",)),
        ("flux", ("denoiser", "single_blocks.17.linear1"), "single.17", ("S17",)),
        ("flux", ("denoiser", "img_in"), "img_in", ("IN",)),
        ("flux", ("denoiser", "final_layer.linear"), "final_layer", ("OUT",)),
        ("flux", ("t5xxl", "encoder.block.3.layer.0.SelfAttention.q"), "t5xxl.3", ("BASE", "T5")),
        ("sd3-medium", ("denoiser", "joint_blocks.5.x_block.attn.qkv"), "joint.5", ("J05",)),
        ("z-image", ("denoiser", "layers.12.attention.qkv"), "layers.12", ("L12",)),
        ("z-image", ("denoiser", "noise_refiner.1.attention.qkv"), "noise_refiner.1", ()),
        ("qwen-image", ("denoiser", "transformer_blocks.59.attn.to_q"), "blocks.59", ("B59",)),
        ("wan21-14b-t2v", ("denoiser", "blocks.39.self_attn.q"), "blocks.39", ("B39",)),
        ("hunyuan-video", ("denoiser", "txt_in.individual_token_refiner.blocks.0.self_attn.qkv"), "refiner.0", ()),
        ("framepack", ("denoiser", "transformer_blocks.0.attn.to_q"), "double.0", ("D00",)),
        ("ovis-image", ("denoiser", "transformer_blocks.2.ff.net.0.proj"), "double.2", ("D02",)),
        ("hidream", ("denoiser", "caption_projection.4.linear"), "caption_projection", ()),
        ("sdxl", ("clip_g", "text_model.encoder.layers.12.mlp.fc1"), "clip_g.12", ("BASE", "CLIP")),
        ("sdxl", ("clip_g", "text_projection"), "clip_g.text_projection", ("BASE", "CLIP")),
        ("stable-cascade-c", ("denoiser", "down_blocks.0.12.channelwise.0"), "down.0.12", ()),
    ],
)
def test_blocks_have_short_names(family: str, target: tuple[str, str], name: str, labels: tuple[str, ...]) -> None:
    assert keymap(family).module(Target(*target)) is not None
    assert names_of(family).of(Target(*target)) == name
    assert next(block for block in blocks(family) if block.name == name).aliases == labels


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_labels_count_the_original_unets_lists(family: str) -> None:
    for block in blocks(family):
        words = [target.module.split(".") for target in block.targets if target.component == "denoiser"]
        lists = {"input_blocks": "IN", "output_blocks": "OUT"}
        wanted = {f"{lists[one[0]]}{int(one[1]):02}" for one in words if one[0] in lists}
        wanted |= {"M00" for one in words if one[0] == "middle_block"}
        assert set(block.aliases) - {"BASE", "CLIP"} == wanted and len(wanted) < 2


def test_row_blocks_and_biases_lie_in_their_modules_block() -> None:
    target = Target("denoiser", "double_blocks.3.img_attn.qkv")
    of = names_of("flux").of
    assert {of(replace(target, block=2)), of(replace(target, parameter="bias"))} == {of(target)} == {"double.3"}


def test_blocks_stand_in_the_order_of_the_model() -> None:
    names = [block.name for block in blocks("sdxl") if "." in block.name]
    middle = names.index("mid.resnets.0")
    after = ["mid.attentions.0", "mid.resnets.1", "up.0.resnets.0"]
    assert names[0] == "down.0.resnets.0" and names[middle + 1 : middle + 4] == after
    layers = [block.name for block in blocks("flux") if block.name.startswith("single.")]
    assert layers == [f"single.{number}" for number in range(38)]


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("sd15", "IN04", ["down.1.resnets.0", "down.1.attentions.0"]),
        ("sd15", "in04", ["down.1.resnets.0", "down.1.attentions.0"]),
        ("sd15", "IN03-IN04", ["down.0.downsamplers.0", "down.1.resnets.0", "down.1.attentions.0"]),
        ("sd15", "M", ["mid.resnets.0", "mid.attentions.0", "mid.resnets.1"]),
        ("sd15", "mid.resnets", ["mid.resnets.0", "mid.resnets.1"]),
        ("sd15", "down.0-1.attentions.1", ["down.0.attentions.1", "down.1.attentions.1"]),
        ("sd15", "up.*.upsamplers", ["up.0.upsamplers.0", "up.1.upsamplers.0", "up.2.upsamplers.0"]),
        ("flux", "double.9-11", ["double.9", "double.10", "double.11"]),
        ("flux", "D18-S01", ["double.18", "single.0", "single.1"]),
        ("flux", "IN", ["img_in", "txt_in", "time_in", "guidance_in", "vector_in"]),
        ("flux", "clip_l.0-1", ["clip_l.0", "clip_l.1"]),
    ],
)
def test_a_name_a_label_a_range_or_a_beginning_finds_blocks(family: str, text: str, expected: list[str]) -> None:
    assert list(names_of(family).find(text)) == expected


def test_groups_find_components() -> None:
    names = names_of("sdxl")
    text, denoiser = names.find("text_encoder"), names.find("denoiser")
    assert names.find("BASE") == text == (*names.find("clip_l"), *names.find("clip_g"))
    assert set(text) | set(denoiser) == set(names.find("all")) and not set(text) & set(denoiser)
    assert set(names.find("IN")) | set(names.find("M00")) | set(names.find("OUT")) < set(denoiser)
    assert "double.10" not in names_of("flux").find("double.1")


@pytest.mark.parametrize(
    ("family", "text", "near"),
    [
        ("sd15", "INN04", "did you mean IN04"),
        ("flux", "duble.3", "double.3"),
        ("sdxl", "OUT09", "OUT0"),
        ("sd15", "IN04-IN99", "unknown block 'IN04-IN99'"),
        ("sd15", "", "unknown block ''"),
        ("sd15", "double.3", "unknown block"),
    ],
)
def test_an_unknown_block_is_refused_with_the_nearest(family: str, text: str, near: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        names_of(family).find(text)
    assert near in refusal.value.message and "\n" not in refusal.value.message


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("kohya_", "musubi_"))])
def test_the_layers_of_real_files_lie_in_known_blocks(name: str) -> None:
    family = dump(name).family
    known = {block.name for block in blocks(family)}
    assert {names_of(family).of(target) for target in targets_of(name)} <= known


# --- strengths


def test_lines_have_the_lengths_of_the_conventions() -> None:
    lengths = {id: [len(one.labels) for one in conventions(id)] for id in FAMILIES}
    assert lengths["sd15"] == lengths["sd21"] == [17, 26] and lengths["sdxl"] == [12, 20, 26]
    assert lengths["flux"] == [57, 58, 61] and lengths["sd3-medium"] == [24, 25] and lengths["qwen-image"] == [60, 61]
    assert lengths["wan21-14b-t2v"] == [40, 41] and lengths["z-image"] == [30, 31] and lengths["chroma"] == [57, 58]
    assert lengths["flux2-klein9b"] == [32, 33] and lengths["stable-cascade-c"] == []


@pytest.mark.parametrize("id", [id for id in FAMILIES if conventions(id)])
def test_a_line_becomes_names_and_the_same_line_again(id: str) -> None:
    labels = names_of(id).labels
    for convention in conventions(id):
        numbers = [0.25 * place - 2 if label in labels else 0.0 for place, label in enumerate(convention.labels)]
        weights = strengths(id, ",".join(map(str, numbers)))
        again = line(id, weights, len(convention.labels))
        assert [float(one) for one in again.split(",")] == numbers and strengths(id, again) == weights


def test_each_number_stands_for_its_label() -> None:
    text = ",".join(map(str, range(1, 18)))
    weights = strengths("sd15", text)
    order = ["BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "M00", *(f"OUT{n:02}" for n in range(3, 12))]
    for number, label in enumerate(order, 1):
        assert {weights[name] for name in names_of("sd15").find(label)} == {float(number)}
    absent = [label for label in names_of("sd15").labels if label.startswith(("IN", "OUT")) and label not in order]
    assert absent and {weights[name] for label in absent for name in names_of("sd15").find(label)} == {0.0}
    assert "time_embedding" not in weights and "conv_out" not in weights  # no label: no number touches them
    flux = strengths("flux", ",".join(map(str, range(61))))
    assert (flux["clip_l.0"], flux["t5xxl.0"], flux["img_in"]) == (0, 1, 2)
    assert (flux["double.0"], flux["single.0"], flux["final_layer"]) == (3, 22, 60)
    assert strengths("flux", ",".join(map(str, range(57))))["single.0"] == 19
    assert strengths("sd3-medium", ",".join(map(str, range(25))))["joint.0"] == 1


@pytest.mark.parametrize("name", ["kohya_sd15_lora", "kohya_sdxl_lora"])
def test_nothing_shifts_where_a_lora_lacks_a_block(name: str) -> None:
    """A line means the same for a file without some blocks as for the whole one."""
    targets = targets_of(name)
    family = dump(name).family
    convention = conventions(family)[0]
    weights = strengths(family, ",".join(str(number + 1) for number in range(len(convention.labels))))
    gone = {block for label in ("IN04", "M00") for block in names_of(family).find(label)}
    of = names_of(family).of

    def made(wanted: list[Target]) -> dict[Target, float]:
        layers: dict[Target, Layer] = {target: LoRA(torch.ones(1, 1), torch.ones(1, 1), 1.0) for target in wanted}
        result = scaled(Adapter(family, layers), blocks=weights)
        return {target: float(layer.delta()) for target, layer in result.layers.items()}

    whole, less = made(targets), made([target for target in targets if of(target) not in gone])
    assert 0 < len(less) < len(whole)
    assert less == {target: alpha for target, alpha in whole.items() if of(target) not in gone}
    for number, label in enumerate(convention.labels):
        alphas = {alpha for target, alpha in whole.items() if of(target) in names_of(family).find(label)}
        assert alphas in ({number + 1.0}, set())


def test_presets_are_read_as_names() -> None:
    assert set(presets("sd15")) >= {"NONE", "ALL", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL"}
    assert set(strengths("sd15", "NONE").values()) == {0.0} and set(strengths("flux", "ALL").values()) == {1.0}
    weights = strengths("sd15", "OUTD")
    on = {name for name, weight in weights.items() if weight}
    assert on == {name for label in ("BASE", "OUT03-OUT06") for name in names_of("sd15").find(label)}
    assert line("sd15", weights) == "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0"
    assert line("sd15", strengths("sd15", "outall")) == presets("sd15")["OUTALL"]
    xl = strengths("sdxl", "OUTALL")
    assert xl["mid.attentions.0"] == xl["conv_in"] == 0 and xl.get("up.0.attentions.0", 1) == 1


@pytest.mark.parametrize("name", ["INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "MIDALL"])
def test_a_preset_goes_through_a_line_of_numbers(name: str) -> None:
    weights = strengths("sd15", name)
    again = strengths("sd15", line("sd15", weights))
    assert all(again.get(block.name, 1.0) == weights.get(block.name, 1.0) for block in blocks("sd15"))


def test_later_entries_count_more_and_others_stay() -> None:
    weights = strengths("sd15", "# mine\nOUTALL\nM00 = 0.5, down.0=.25 # last")
    found = [weights[name] for name in ("mid.attentions.0", "down.0.attentions.1", "down.1.attentions.0")]
    assert found == [0.5, 0.25, 0]
    assert strengths("sd15", "all=0, M00=1")["mid.resnets.0"] == 1
    assert strengths("sd15", "IN04=0.5") == {"down.1.resnets.0": 0.5, "down.1.attentions.0": 0.5}
    assert strengths("sd15", " \n") == {}
    assert strengths("sd15", "MINE:" + presets("sd15")["INS"]) == strengths("sd15", "INS")


def test_a_line_is_written_only_where_it_says_it_all() -> None:
    some = strengths("sd15", "IN04=0.5")
    assert len(line("sd15", some).split(",")) == 26  # in 17 numbers IN00 would be 0
    attention = {"down.1.attentions.0", "mid.attentions.0"}
    assert line("sd15", some, present=attention) == "1,1,1,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1"
    with pytest.raises(BadConfig, match="IN04 have several strengths; write NAME=STRENGTH"):
        line("sd15", {"down.1.attentions.0": 0.5})
    with pytest.raises(BadConfig, match="has no place in it"):
        line("sd15", {"time_embedding": 0.5})
    with pytest.raises(BadConfig, match="17 or 26 numbers, not 12"):
        line("sd15", {}, 12)
    with pytest.raises(BadConfig, match="has no line of numbers"):
        line("stable-cascade-c", {})


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("sd15", "1,0,1", "has 17 or 26 numbers, not 3"),
        ("sdxl", ",".join("1" * 17), "has 12 or 20 or 26 numbers, not 17"),
        ("stable-cascade-c", "1,1", "Stable Cascade"),
        ("sd15", "0.5", "has 17 or 26 numbers, not 1; or write NAME=0.5"),
        ("sd15", ",".join(["R", *"1" * 16]), "BASE: 'R' is no strength"),
        ("sd15", "M00=x", "block M00: 'x' is no strength; write M00=0.5"),
        ("sd15", "M00=nan", "is no strength"),
        ("sd15", "M00=", "is no strength"),
        ("sd15", "M00", "is no preset (NONE, ALL, INS"),
        ("sd15", "M00=1e9", "beyond what a file can hold"),
        ("sdxl", "INS", "unknown block 'INS'"),
        ("sd15", "=1", "unknown block ''"),
    ],
)
def test_bad_strengths_are_refused_in_one_line(family: str, text: str, message: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        strengths(family, text)
    assert message in refusal.value.message and "\n" not in refusal.value.message


def test_blocks_are_chosen_without_strengths() -> None:
    assert chosen("sd15", "IN04\nmid.resnets.0, M00") == {*names_of("sd15").find("IN04"), *names_of("sd15").find("M00")}
    with pytest.raises(BadConfig, match="leave the strength out"):
        chosen("sd15", "IN04=1")


# --- scaling


def test_scaling_by_blocks_multiplies_the_deltas_and_zero_drops() -> None:
    source = sd15()
    weights = strengths("sd15", "IN01=0.5, M00=-2, OUT05=0, BASE=0.25")
    made = scaled(source, 3.0, 1.0, weights)
    of = namer(source)
    for target, layer in source.layers.items():
        factor = weights.get(of(target), 1.0) * (3.0 if target.component == "denoiser" else 1.0)
        if factor == 0:
            assert target not in made.layers
            continue
        torch.testing.assert_close(made.layers[target].delta(), layer.delta() * factor)
        assert made.layers[target].down is layer.down
    assert relative_error(made, weighted(source, 3.0, 1.0, weights)).worst < 1e-7
    operation = made.origin["operation"]
    again = next(one for one in OPERATIONS if operation["method"] in one.methods)
    arguments = {key: value for key, value in json.loads(json.dumps(operation)).items() if key != "method"}
    assert difference(again.run([source], **arguments), made).relative_error == 0


def test_the_sum_of_blocks_is_the_whole() -> None:
    source = sd15()
    names = {namer(source)(target) for target in source.layers}
    parts = [pick(source, blocks=[name]) for name in names]
    assert len(parts) > 5 and sum(len(part.layers) for part in parts) == len(source.layers)
    total = merge([Weighted(part) for part in parts])
    assert difference(total, source).relative_error == 0


def test_layers_without_a_strength_can_be_kept_or_dropped() -> None:
    target, other = (Target("denoiser", name) for name in list(SD15)[1:3])
    source = Adapter("sd15", {target: DoRA(lora(), torch.ones(4)), other: lora()})
    kept = scaled(source, blocks=strengths("sd15", "down.0.attentions=0.5"))
    assert kept.layers[target] is source.layers[target]
    assert list(scaled(source, blocks=strengths("sd15", "down.0.resnets=0")).layers) == [other]
    with pytest.raises(UnsupportedLayer, match="DoRA layer has no number that a strength could go into"):
        scaled(source, blocks=strengths("sd15", "IN01=0.5"))
    assert list(scaled(source, 0.5, blocks=strengths("sd15", "down.0.resnets=0")).layers) == [other]


@pytest.mark.parametrize(
    ("text", "strength", "message"),
    [("all=0", 1.0, "nothing would be left"), ("all=1e-5", 1e-5, "beyond what a file can hold")],
)
def test_what_leaves_nothing_or_too_little_is_refused(text: str, strength: float, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        scaled(sd15(), strength, blocks=strengths("sd15", text))


def test_without_blocks_scale_is_as_before() -> None:
    source = sd15()
    made = scale(source, 0.0)
    assert made.layers.keys() == source.layers.keys()
    assert set(made.origin["operation"]) == {"method", "strength", "text_encoder"}


# --- picking


@pytest.mark.parametrize(
    ("family", "module", "kinds"),
    [
        ("sd15", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", ("attention",)),
        ("sd15", "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj", ("mlp",)),
        ("sd15", "input_blocks.1.1.transformer_blocks.0.norm1", ("norm",)),
        ("sd15", "input_blocks.1.1.proj_in", ("other",)),
        ("sdxl", "input_blocks.4.1.proj_in", ("other",)),
        ("sd15", "input_blocks.1.0.in_layers.2", ("convolution",)),
        ("sd15", "input_blocks.4.0.skip_connection", ("convolution",)),
        ("sd15", "input_blocks.1.0.emb_layers.1", ("other",)),
        ("sd15", "time_embed.0", ("other",)),
        ("flux", "double_blocks.0.img_attn.qkv", ("attention",)),
        ("flux", "double_blocks.0.img_mlp.0", ("mlp",)),
        ("flux", "double_blocks.0.img_mod.lin", ("other",)),
        ("flux", "single_blocks.0.linear1", ("attention", "mlp")),
        ("flux", "single_blocks.0.linear2", ("other",)),
        ("z-image", "layers.0.feed_forward.w1", ("mlp",)),
        ("wan21-14b-t2v", "blocks.0.cross_attn.k", ("attention",)),
        ("wan21-14b-t2v", "blocks.0.ffn.0", ("mlp",)),
        ("wan21-14b-t2v", "head.modulation", ("other",)),
        ("wan21-14b-t2v", "patch_embedding", ("convolution",)),
    ],
)
def test_modules_have_a_kind(family: str, module: str, kinds: tuple[str, ...]) -> None:
    assert kinds_of(keymap(family), Target("denoiser", module)) == kinds


@pytest.mark.parametrize("id", FAMILIES)
def test_every_family_has_attention_and_mlp(id: str) -> None:
    map = keymap(id)
    found = {kind for name in map.modules("denoiser") for kind in kinds_of(map, Target("denoiser", name))}
    assert {"attention", "mlp"} <= found <= set(KINDS)


@pytest.mark.parametrize("part", [None, "denoiser", "text_encoder"])
@pytest.mark.parametrize("kinds", [(), ("attention",), ("mlp", "norm")])
def test_what_is_kept_and_what_is_dropped_are_the_whole(part: str | None, kinds: tuple[str, ...]) -> None:
    source = adapter(
        "sd15",
        *SD15,
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
        "clip_l:text_model.encoder.layers.3.mlp.fc1",
        "clip_l:text_model.encoder.layers.3.self_attn.q_proj",
    )
    norm = Target("denoiser", "input_blocks.1.1.norm")
    source = replace(source, layers={**source.layers, norm: Norm(torch.ones(3))})
    if not kinds and part is None:
        assert pick(source).layers.keys() == source.layers.keys()
        with pytest.raises(BadConfig, match="none of the 14 layers is left"):
            pick(source, drop=True)
        return
    kept, dropped = (pick(source, kinds, part, drop=drop) for drop in (False, True))
    assert not kept.layers.keys() & dropped.layers.keys()
    assert {**kept.layers, **dropped.layers} == dict(source.layers)
    assert all(kinds_of(keymap("sd15"), target)[0] in (kinds or KINDS) for target in kept.layers)


def test_a_weight_of_two_kinds_is_cut_into_its_rows() -> None:
    target = Target("denoiser", "single_blocks.3.linear1")
    source = Adapter("flux", {target: lora(21504, 8)})
    kept, dropped = (pick(source, ["attention"], drop=drop) for drop in (False, True))
    assert {at.block for at in kept.layers} == {0, 1, 2} and {at.block for at in dropped.layers} == {3}
    rows = torch.cat([layer.delta() for layer in (*kept.layers.values(), *dropped.layers.values())])
    assert torch.equal(rows, source.layers[target].delta())
    again = merge([Weighted(part) for part in alike([kept, dropped])])
    assert difference(*alike([again, source])).relative_error == 0


def test_a_choice_can_be_done_again() -> None:
    source = sd15()
    names = {"mid.attentions.0", "down.0.attentions.0"}
    made = pick(source, ["attention", "convolution"], "denoiser", names, drop=True)
    operation = json.loads(json.dumps(made.origin["operation"]))
    method = operation.pop("method")
    again = next(one for one in OPERATIONS if method in one.methods)
    assert again.run([source], **operation).layers == made.layers


@pytest.mark.parametrize(("kinds", "part"), [(["convolutions"], None), ([], "unet")])
def test_unknown_kinds_and_parts_are_refused(kinds: list[str], part: str | None) -> None:
    with pytest.raises(BadConfig, match="choose kinds from attention, mlp"):
        pick(sd15(), kinds, part)


def test_selection_takes_any_rule() -> None:
    source = sd15()
    assert list(select(source, lambda target: target.component == "clip_l").layers) == list(source.layers)[-1:]
    with pytest.raises(BadConfig, match="none of the 11 layers is left"):
        select(source, lambda target: False)


# --- the command line


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    query = ("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q", 320, 320)
    key = ("denoiser", "middle_block.1.transformer_blocks.0.attn2.to_k", 1280, 768)
    text = ("clip_l", "text_model.encoder.layers.0.self_attn.q_proj", 768, 768)
    layers: dict[Target, Layer] = {
        Target(part, name): lora(out, inner, seed) for seed, (part, name, out, inner) in enumerate((query, key, text))
    }
    convert.write(Adapter("sd15", layers), "a.safetensors")
    return "a.safetensors"


def test_scale_takes_blocks_and_measures(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["scale", file, "b.safetensors", "--strength", "2", "--block", "IN01=0.5", "--block", "clip_l=0", "--json"]
    assert main(call) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["layers"] == 2 and said["relative_error"] == 0
    assert set(said["per_block"]) == {"down.0.attentions.0", "mid.attentions.0"}
    before, after = convert.read(file), convert.read("b.safetensors")
    for target, layer in after.layers.items():
        factor = 1.0 if target.module.startswith("input") else 2.0
        torch.testing.assert_close(layer.delta(), before.layers[target].delta() * factor)


def test_scale_takes_a_preset_and_a_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scale", file, "b.safetensors", "--block", "INS"]) == 0
    assert main(["scale", file, "c.safetensors", "--block", presets("sd15")["INS"]]) == 0
    assert main(["redo", "b.safetensors", "d.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "scaled 2 layers, rank 2, relative error 0.0 (exact)"
    for name in ("b", "c", "d"):
        assert {target.component for target in convert.read(f"{name}.safetensors").layers} == {"denoiser", "clip_l"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["scale", "a.safetensors", "o.safetensors", "--block", "INN01=1"], "did you mean IN01"),
        (["scale", "a.safetensors", "o.safetensors", "--block", "1,1"], "17 or 26 numbers, not 2"),
        (["scale", "a.safetensors", "o.safetensors", "--block", "all=0"], "nothing would be left"),
        (["blocks", "--architecture", "sdx"], "no model family 'sdx': choose one, such as sdxl"),
        (["blocks"], "give a LoRA file, or --architecture"),
        (["blocks", "a.safetensors", "--architecture", "sd15"], "give a LoRA file, or --architecture"),
        (["blocks", "none.safetensors"], "none.safetensors"),
    ],
)
def test_bad_calls_are_one_line(file: str, call: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(call) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err and not Path("o.safetensors").exists()


def test_blocks_lists_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blocks", "--architecture", "flux", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["line_lengths"] == [57, 58, 61] and said["architecture"] == "flux"
    assert {"name": "double.3", "aliases": ["D03"], "layers": 14} in said["blocks"]
    assert main(["blocks", "--architecture", "sd15", "--block", "OUTD"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["block", "labels", "layers", "strength"]
    assert ["up.1.attentions.0", "OUT03", "16", "1"] in [row.split() for row in out]
    assert out[-1] == f"as numbers: {presets('sd15')['OUTD']}"


def test_blocks_lists_a_file(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["blocks", file, "--json", "--block", "IN01=0.5"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in said["blocks"]}
    assert list(rows) == ["down.0.attentions.0", "mid.attentions.0", "clip_l.0"]
    assert rows["mid.attentions.0"]["ranks"] == {"2": 1} and rows["mid.attentions.0"]["layers"] == 1
    read = convert.read(file)
    sizes = {namer(read)(target): float(layer.delta().double().norm()) ** 2 for target, layer in read.layers.items()}
    for name, row in rows.items():
        assert row["share"] == pytest.approx(sizes[name] / sum(sizes.values()), rel=1e-5)
        assert row["strength"] == (0.5 if name == "down.0.attentions.0" else 1.0)
    assert said["line"] == "1,0.5,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1"
