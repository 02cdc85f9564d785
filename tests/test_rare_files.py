"""Files at fault, and rare ones, through the command line: one line of refusal, or the right numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from dumps import sample
from safetensors.torch import load_file, save_file

from lorasmith import convert
from lorasmith.cli.main import main
from lorasmith.convert.codec import decode, encode_like
from lorasmith.convert.detect import detect
from lorasmith.convert.inspect import info
from lorasmith.lora_core.errors import UnsupportedLayer
from lorasmith.lora_core.layers import GLoRA
from lorasmith.lora_core.ops.report import difference
from lorasmith.lora_core.ops.scale import scale

SD1 = {"ss_base_model_version": "sd_v1"}
FLUX = {"ss_base_model_version": "flux1"}
Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # 320 x 320
QKV = "lora_unet_double_blocks_0_img_attn_qkv"  # 9216 x 3072
TO_Q = "transformer.transformer_blocks.0.attn.to_q"


def pair(stem: str, out: int, inner: int, ways=("lora_down.weight", "lora_up.weight")) -> dict[str, torch.Tensor]:
    return {f"{stem}.{ways[0]}": torch.randn(2, inner), f"{stem}.{ways[1]}": torch.randn(out, 2)}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


def refused(capsys, tmp_path: Path, *arguments: object) -> str:
    """Return the one line of a refusal that left nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    status, out, err = run(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1), (out, err)
    assert sorted(tmp_path.rglob("*")) == before
    return err


def file(tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] = SD1, name: str = "in") -> Path:
    path = tmp_path / f"{name}.safetensors"
    save_file(tensors, path, metadata)
    return path


def test_a_layer_for_a_whole_weight_and_one_for_a_part_of_it_are_refused(tmp_path, capsys):
    both = {**pair(QKV, 9216, 3072), **pair(TO_Q, 3072, 3072, ("lora_A.weight", "lora_B.weight"))}
    said = refused(
        capsys, tmp_path, "convert", file(tmp_path, both, FLUX), tmp_path / "out.safetensors", "--to", "diffusers"
    )
    assert "the same rows have two layers" in said
    spanned = {
        **pair("double_blocks.0.processor.qkv_lora1", 9216, 3072, ("down.weight", "up.weight")),
        **pair(TO_Q, 3072, 3072, ("lora_A.weight", "lora_B.weight")),
    }
    assert "two layers" in refused(
        capsys, tmp_path, "convert", file(tmp_path, spanned, FLUX), tmp_path / "o", "--to", "kohya"
    )


def test_a_dense_layers_alpha_does_not_become_another_layers(tmp_path, capsys):
    dense = {f"{Q}.diff": torch.randn(320, 320), f"{Q}.alpha": torch.tensor(2.0)}
    plain = {**pair(Q, 320, 320), f"{Q}.alpha": torch.tensor(4.0)}
    one, other = file(tmp_path, dense, name="a"), file(tmp_path, plain, name="b")
    status, _, err = run(capsys, "merge", tmp_path / "out.safetensors", f"{one}@0", other)
    assert (status, err) == (0, "")
    assert float(load_file(tmp_path / "out.safetensors")[f"{Q}.alpha"]) == 4.0


@pytest.mark.parametrize("spoilt", ["lora_up.weight", "alpha"])
@pytest.mark.parametrize("verb", [("convert", "--to", "comfy"), ("scale", "--strength", "0.5")])
def test_no_number_that_is_none_is_passed_on(spoilt, verb, tmp_path, capsys):
    tensors = {**pair(Q, 320, 320), f"{Q}.alpha": torch.tensor(2.0)}
    tensors[f"{Q}.{spoilt}"].view(-1)[0] = torch.nan
    said = refused(capsys, tmp_path, verb[0], file(tmp_path, tensors), tmp_path / "out.safetensors", *verb[1:])
    assert "NaN" in said


def test_layers_without_a_rank_count_for_none(tmp_path, capsys):
    tensors = {
        **pair(Q, 320, 320),
        f"{Q[:-1]}k.lokr_w1": torch.randn(8, 8),
        f"{Q[:-1]}k.lokr_w2": torch.randn(40, 40),
        **pair(f"{Q[:-1]}v", 320, 320),
        f"{Q[:-1]}v.dora_scale": torch.rand(320, 1),
    }
    status, out, err = run(
        capsys, "convert", file(tmp_path, tensors), tmp_path / "o.safetensors", "--to", "comfy", "--json"
    )
    assert (status, err, json.loads(out)["rank"], json.loads(out)["layers"]) == (0, "", 2, 3)


def test_ia3_of_lycoris_is_written_and_scaled(tmp_path, capsys):
    ia3 = {f"{Q}.weight": torch.randn(320, 1), f"{Q}.on_input": torch.tensor(False)}
    source = file(tmp_path, ia3)
    for verb in (("convert", "--to", "kohya"), ("scale", "--strength", "0.5")):
        status, _, err = run(capsys, verb[0], source, tmp_path / "o.safetensors", *verb[1:], "--force")
        assert (status, err) == (0, "")
        assert load_file(tmp_path / "o.safetensors").keys() == ia3.keys()


@pytest.mark.parametrize("rank", ["0", "-1"])
def test_a_rank_to_bake_to_is_a_whole_number(rank, tmp_path, capsys):
    arguments = (
        file(tmp_path, pair(Q, 320, 320)),
        tmp_path / "o",
        "--to",
        "kohya",
        "--bake-to",
        "lora",
        "--rank",
        rank,
    )
    assert "whole number from 1" in refused(capsys, tmp_path, "convert", *arguments)


def test_what_can_be_baked_is_and_what_cannot_is_refused(tmp_path, capsys):
    out = tmp_path / "o.safetensors"
    bake = ("--to", "diffusers", "--bake-to", "lora", "--rank", 4)
    thin = torch.randn(320, 2) @ torch.randn(2, 320)
    status, said, err = run(capsys, "convert", file(tmp_path, {f"{Q}.diff": thin}), out, *bake, "--json")
    assert (status, err) == (0, "") and json.loads(said)["relative_error"] < 1e-5
    out.unlink()
    dora = {**pair(Q, 320, 320), f"{Q}.dora_scale": torch.rand(320, 1)}
    assert "depends on the base weight" in refused(capsys, tmp_path, "convert", file(tmp_path, dora), out, *bake)


def test_a_bias_of_peft_keeps_its_scale_everywhere(tmp_path, capsys):
    header = {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 8})}
    tensors = {**pair(TO_Q, 3072, 3072, ("lora_A.weight", "lora_B.weight")), f"{TO_Q}.lora_B.bias": torch.randn(3072)}
    source = file(tmp_path, tensors, header | FLUX)
    adapter = convert.read(source)
    for number, verb in enumerate(
        (("convert", "--to", "peft"), ("convert", "--to", "kohya"), ("scale", "--strength", "1"))
    ):
        out = tmp_path / f"o{number}.safetensors"
        status, _, err = run(capsys, verb[0], source, out, *verb[1:])
        assert (status, err) == (0, "")
        assert difference(*convert.regroup.alike([convert.read(out), adapter])).relative_error < 1e-6


@pytest.mark.parametrize("name", ["lycoris_sd15_loha", "lycoris_sd15_lokr", "lycoris_sd15_diag_oft"])
def test_eight_bit_floats_come_back(name, tmp_path, capsys):
    tensors = {
        key: tensor.to(torch.float8_e4m3fn) if tensor.dim() > 1 else tensor for key, tensor in sample(name).items()
    }
    status, out, err = run(
        capsys, "convert", file(tmp_path, tensors), tmp_path / "o.safetensors", "--to", "comfy", "--json"
    )
    assert (status, err) == (0, "") and json.loads(out)["relative_error"] == 0


MISSHAPEN = {
    "lokr_w1": {f"{Q}.lokr_w1": torch.ones(8), f"{Q}.lokr_w2": torch.ones(40, 40)},
    "tucker": {
        **{f"{Q}.hada_w{n}_{side}": torch.ones(2, 320) for n in (1, 2) for side in "ab"},
        **{f"{Q}.hada_t{n}": torch.ones(3, 3, 3, 3) for n in (1, 2)},
    },
    "oft_blocks": {f"{Q}.oft_blocks": torch.ones(4, 80, 40)},
    "rescale": {f"{Q}.oft_blocks": torch.zeros(4, 80, 80), f"{Q}.rescale": torch.ones(7, 1)},
    "oft_R": {f"{Q}.oft_R.weight": torch.ones(4, 5)},
    "glora": {
        f"{Q}.{one}.weight": torch.ones(320, 3) if one[1] == "1" else torch.ones(2, 320)
        for one in ("a1", "a2", "b1", "b2")
    },
    "scalar": {**pair(Q, 320, 320), f"{Q}.scalar": torch.ones(2)},
    "on_input": {f"{Q}.weight": torch.ones(320, 1), f"{Q}.on_input": torch.ones(2, dtype=torch.bool)},
    "halves": {
        f"{Q}.lora_down.weight": torch.ones(2, 320),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": torch.ones(320, 2),
    },
    "bias": {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.bias": torch.ones(320)},
}


@pytest.mark.parametrize("fault", MISSHAPEN)
def test_tensors_that_make_no_layer_are_named(fault, tmp_path, capsys):
    path = file(tmp_path, MISSHAPEN[fault])
    assert info(path)["incomplete"]
    assert "make no whole layer" in refused(
        capsys, tmp_path, "convert", path, tmp_path / "o.safetensors", "--to", "comfy"
    )


def test_magnitudes_of_another_number_are_said(tmp_path, capsys):
    path = file(tmp_path, {**pair(Q, 320, 320), f"{Q}.dora_scale": torch.ones(7, 1)})
    said = refused(capsys, tmp_path, "convert", path, tmp_path / "o.safetensors", "--to", "comfy")
    assert "a DoRA layer with 7 magnitudes met a weight of shape (320, 320)" in said


def test_a_zero_that_means_something_is_no_idle_layer(tmp_path):
    acting = {
        **{f"{Q}.oft_blocks": torch.randn(4, 80, 80), f"{Q}.alpha": torch.tensor(0.0)},
        **{f"{Q[:-1]}k.weight": torch.randn(320, 1), f"{Q[:-1]}k.on_input": torch.tensor(False)},
        **{f"{Q[:-1]}v.lokr_w1": torch.randn(8, 8), f"{Q[:-1]}v.lokr_w2": torch.randn(40, 40)},
        f"{Q[:-1]}v.alpha": torch.tensor(0.0),
    }
    idle = {**pair(Q, 320, 320), f"{Q}.lora_up.weight": torch.zeros(320, 2)}
    assert info(file(tmp_path, acting))["health"]["zero_layers"] == 0
    assert info(file(tmp_path, idle))["health"]["zero_layers"] == 1


def test_glora_of_early_files_has_its_factors_under_exchanged_names():
    now = {"a1": torch.randn(320, 4), "a2": torch.randn(4, 320), "b1": torch.randn(320, 4), "b2": torch.randn(4, 320)}
    early = {"a1": now["a2"], "a2": now["a1"], "b1": now["b2"], "b2": now["b1"]}
    layers = []
    for factors in (now, early):
        tensors = {f"{Q}.{name}.weight": factor for name, factor in factors.items()}
        match = detect({key: tuple(value.shape) for key, value in tensors.items()}, SD1)
        layers.append(next(iter(decode(tensors, match, SD1).layers.values())))
    weight = torch.randn(320, 320)
    assert all(isinstance(layer, GLoRA) and layer.rank == 4 for layer in layers)
    assert torch.equal(layers[0].apply(weight), layers[1].apply(weight))


def test_numbers_of_rows_are_never_rounded(tmp_path, capsys):
    stem = "img_in"
    control = {
        f"{stem}.lora_A.weight": torch.randn(2, 129), f"{stem}.lora_B.weight": torch.randn(3073, 2),
        f"{stem}.reshape_weight": torch.tensor([3073, 129]),
    }  # fmt: skip
    source = file(tmp_path, control, FLUX)
    status, _, err = run(capsys, "convert", source, tmp_path / "o.safetensors", "--to", "comfy", "--dtype", "bf16")
    assert (status, err) == (0, "")
    assert load_file(tmp_path / "o.safetensors")["diffusion_model.img_in.reshape_weight"].tolist() == [3073, 129]
    assert convert.load(source).adapter.architecture == "flux"
    control[f"{stem}.reshape_weight"] = torch.tensor([3072.5, 129.0])
    assert "reshape_weight" in refused(
        capsys, tmp_path, "convert", file(tmp_path, control, FLUX, "bad"), tmp_path / "o2", "--to", "comfy"
    )


def test_peft_folders_of_other_algorithms_come_back(tmp_path):
    for name in ("peft_sd15_loha", "peft_sd15_lokr", "peft_sd15_ia3"):
        config = json.dumps({"peft_type": "X", "r": 2, "alpha": 4})
        tensors = dict(sample(name))
        source = file(tmp_path, tensors, {"adapter_config.json": config, **SD1}, name)
        loaded = convert.load(source)
        written = convert.write(loaded.adapter, tmp_path / f"{name}_back.safetensors", loaded.match)
        assert load_file(written).keys() == tensors.keys()
        assert difference(convert.read(written), loaded.adapter).relative_error == 0
        if name != "peft_sd15_ia3":
            with pytest.raises(UnsupportedLayer, match="PEFT keeps the strength .* Choose --to kohya or comfy"):
                convert.write(scale(loaded.adapter, 0.5), tmp_path / "half.safetensors", loaded.match)
        assert encode_like(loaded.adapter, loaded.match).keys() == tensors.keys()


def test_a_row_block_that_a_weight_has_not_is_unknown():
    keys = {f"oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.{n}": (4, 768, 768) for n in (0, 1, 2, 7)}
    assert detect(keys, FLUX).unknown == ("oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.7",)
