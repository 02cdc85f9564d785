"""Two processes on one run: what one process with twice the batch does, and resuming bit for bit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_models import pictures, same_file

from lorasmith.lora_core.train.world import World

pytest.importorskip("accelerate")
SCRIPT = Path(__file__).parent / "train_world.py"


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def go(folder: Path, out: str, size: int, stop_at: int = 99, resume: bool = False) -> list[str]:
    """Run so many processes, which together see 2 pictures in a micro-batch, and return the last lines they print."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    common = {**os.environ, **shared, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    given = [sys.executable, str(SCRIPT), str(folder), out, str(stop_at), str(int(resume)), str(2 // size)]
    started = [
        subprocess.Popen(
            given,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    results = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * size, results[0][1] + results[-1][1]
    return [out.strip().splitlines()[-1] for out, _ in results]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("world")
    pictures(made / "data", {name: f"picture {name}" for name in "abcde"}, (24, 16))
    assert go(made, "two", size=2) == ["0 2 done 7", "1 2 done 7"]
    yield made


def test_two_processes_learn_what_one_with_twice_the_batch_learns(folder: Path) -> None:
    assert go(folder, "one", size=1) == ["0 1 done 7"]
    ours, theirs = (load_file(folder / name / "tiny.safetensors") for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    assert all(float((ours[key] - theirs[key]).abs().max()) < 1e-6 for key in ours)


def test_two_processes_resume_bit_for_bit(folder: Path) -> None:
    assert go(folder, "parts", size=2, stop_at=3) == ["0 2 stopped 3", "1 2 stopped 3"]
    go(folder, "parts", size=2, resume=True)
    assert same_file(folder / "two/tiny.safetensors", folder / "parts/tiny.safetensors")
    assert same_file(*(folder / name / "state/000007/state.safetensors" for name in ("two", "parts")))


def test_only_the_first_process_writes(folder: Path) -> None:
    lines = (folder / "two/log.jsonl").read_text().splitlines()
    assert sum('"event": "step"' in line for line in lines) == 7


def test_each_process_has_the_same_slice_of_every_kind() -> None:
    rows = ["a", "b", "c", "d", "A", "B", "C", "D"]
    shares = [World(rank, 2).share(rows, kinds=2) for rank in range(2)]
    assert shares == [["a", "b", "A", "B"], ["c", "d", "C", "D"]]


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(2)
    World().average([tensor])
    assert tensor.tolist() == [1, 1] and World().any(True) and not World().any(False)
