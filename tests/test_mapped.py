"""Files read where they lie, hashes that come late, sums rounded early: quicker ways to the very same bytes."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

import pytest
import torch

from lorasmith.convert import files
from lorasmith.convert.recording import Later
from lorasmith.lora_core import hashes, store
from lorasmith.lora_core.adapter import Adapter, Target
from lorasmith.lora_core.errors import FileProblem
from lorasmith.lora_core.layers import LoRA
from lorasmith.lora_core.layers.base import identical
from lorasmith.lora_core.ops.lowrank import exact_rows, rows
from lorasmith.lora_core.ops.merge import Order, Weighted

NO_MAPS = os.name == "nt"
Q = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_q")
K = Target("denoiser", "input_blocks.1.1.transformer_blocks.0.attn1.to_k")


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def adapter(seed: int = 0, *targets: Target) -> Adapter:
    layers = {target: LoRA(noise(4, 320, seed=seed), noise(320, 4, seed=seed + 1), 2.0) for target in targets or (Q, K)}
    return Adapter("sd15", layers)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        "half": noise(3, 5), "wide": noise(7, dtype=torch.float64), "number": torch.tensor(2.5),
        "none": torch.empty(0, 4),
        "short": noise(5).to(torch.bfloat16), "bytes": torch.arange(3, dtype=torch.uint8),
    }  # fmt: skip
    return store.save(tmp_path / "some.safetensors", tensors, {"a": "b"})


def test_a_mapped_file_has_the_values_that_a_read_one_has(file: Path) -> None:
    read, mapped = store.load(file), store.load(file, mapped=True)
    assert list(read.tensors) == list(mapped.tensors) and read.metadata == mapped.metadata
    assert all(identical(read.tensors[key], mapped.tensors[key]) for key in read.tensors)


def test_tensors_that_lie_askew_are_read(tmp_path: Path) -> None:
    path, values = tmp_path / "askew.safetensors", noise(6, dtype=torch.float32)
    text = b'{"x":{"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'
    text += b" " * (3 - len(text) % 4)
    path.write_bytes(struct.pack("<Q", len(text)) + text + values.numpy().tobytes())
    assert (8 + len(text)) % 4 and torch.equal(store.load(path, mapped=True).tensors["x"], values)


def test_what_is_changed_in_place_does_not_reach_the_file(file: Path) -> None:
    before = file.read_bytes()
    store.load(file, mapped=True).tensors["half"].zero_()
    assert file.read_bytes() == before


def test_a_mapped_file_can_be_replaced_and_keeps_its_values(file: Path) -> None:
    mapped = store.load(file, mapped=True).tensors
    expected = {key: tensor.clone() for key, tensor in store.load(file).tensors.items()}
    store.save(file, {key: torch.ones_like(tensor) for key, tensor in expected.items()}, overwrite=True)
    assert all(identical(mapped[key], expected[key]) for key in expected)


@pytest.mark.skipif(NO_MAPS, reason="nothing is mapped under Windows")
def test_a_mapped_file_takes_no_memory_of_its_own(file: Path) -> None:
    tensors = store.load(file, mapped=True).tensors
    assert tensors["half"].untyped_storage().data_ptr() == tensors["short"].untyped_storage().data_ptr()


def test_metadata_that_come_late_make_the_same_bytes(file: Path, tmp_path: Path) -> None:
    tensors = store.load(file).tensors
    whole = store.save(tmp_path / "whole.safetensors", tensors, {"x": "é1", "hash": "abcd"})
    late = store.save(
        tmp_path / "late.safetensors", tensors, {"x": "é1", "hash": "0000"}, late=lambda: {"hash": "abcd"}
    )
    assert whole.read_bytes() == late.read_bytes()


def test_metadata_of_another_length_leave_nothing_behind(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lengths"):
        store.save(
            tmp_path / "out" / "late.safetensors", store.load(file).tensors, {"a": "b"}, late=lambda: {"a": "b" * 99}
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_written_file_names_the_hash_of_its_own_tensors(tmp_path: Path) -> None:
    stored = store.load(files.write(adapter(), tmp_path / "a.safetensors"))
    expected = hashes.with_hashes(stored.tensors, stored.metadata)
    assert expected == dict(stored.metadata) and len(expected["sshs_model_hash"]) == 64


def test_mapped_and_read_sources_are_written_alike(tmp_path: Path) -> None:
    source = files.write(adapter(), tmp_path / "a.safetensors")
    one, other = (
        files.write(files.load(source, mapped).adapter, tmp_path / str(mapped) / "b.safetensors", "diffusers")
        for mapped in (False, True)
    )
    assert one.read_bytes() == other.read_bytes()


def test_what_a_later_value_refuses_is_raised_where_it_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        Later(lambda: hashes.sha256(tmp_path / "none")).result()
    assert Later(lambda: threading.current_thread().name).result() == "lorasmith-hashing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("strength", [1.0, 0.5, 0.7, -1.25, 3e-39, 1e5])
def test_rows_in_float32_are_those_in_float64_rounded(dtype: torch.dtype, strength: float) -> None:
    layer = LoRA(noise(4, 8), noise(64, 4, dtype=torch.float32).mul(1e-3).to(dtype), 3.0)
    assert torch.equal(exact_rows(layer, strength), rows(layer, strength).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("strengths", [(0.5, 1.0), (0.7, -0.3)])
def test_a_sum_rounded_early_is_the_sum_rounded_late(dtype: torch.dtype, strengths: tuple[float, float]) -> None:
    parts = [Weighted(adapter(seed), strength) for seed, strength in zip((0, 9), strengths, strict=True)]
    early, late = Order(parts).result(dtype).layers, Order(parts).result().layers
    assert all(layer.up.dtype in (dtype, torch.float16) for layer in early.values())  # halves of float16 are exact
    assert all(identical(early[target].up.to(dtype), late[target].up.to(dtype)) for target in late)
    assert all(identical(early[target].down, late[target].down) for target in late)


def test_a_sum_too_large_for_a_narrow_dtype_is_left_as_it_is() -> None:
    sum = Order([Weighted(adapter(seed), 9e4) for seed in (0, 9)]).result(torch.float16)
    assert all(layer.up.dtype == torch.float32 and torch.isfinite(layer.up).all() for layer in sum.layers.values())


def test_equal_halves_are_identical_and_others_are_not() -> None:
    half = noise(4, 4)
    assert identical(half, half.clone()) and identical(torch.zeros(2).half(), -torch.zeros(2).half())
    assert not identical(half, half.T) and not identical(half, half.float()) and not identical(half, half.flatten())
    assert not identical(half, half.index_put((torch.tensor(3), torch.tensor(3)), torch.tensor(7.0).half()))
