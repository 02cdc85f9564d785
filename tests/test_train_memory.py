"""Compiled blocks: the same numbers as uncompiled ones, and a run that goes on where compiling fails."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from torch import Tensor, nn  # noqa: E402
from train_families import write_pipeline  # noqa: E402
from train_models import config, one_thread  # noqa: E402

from lorasmith.convert.training import diffusers_names  # noqa: E402
from lorasmith.lora_core.train.compiled import compiled  # noqa: E402
from lorasmith.lora_core.train.create import create  # noqa: E402
from lorasmith.lora_core.train.diffusers_backend import open_backend  # noqa: E402
from lorasmith.lora_core.train.inject import attached, switched_off  # noqa: E402
from lorasmith.lora_core.train.storage import weights  # noqa: E402

__all__ = ["one_thread"]  # a fixture
pytestmark = pytest.mark.usefixtures("one_thread")


def passes(tmp: Path, model: Path, compiler: str | None, **keys: Any) -> list[Tensor]:
    """Return a prediction, one with the adapters off, and the gradients of a second step."""
    backend = open_backend(config(tmp, model=str(model), resolution=32, **keys), diffusers_names)
    draw = torch.Generator().manual_seed(2)
    factors = create(backend.modules(), backend.config, weights=weights)
    for trained in factors.values():
        trained.up.data = torch.randn(trained.up.shape, generator=draw) * 0.1  # type: ignore[attr-defined]
    noisy, t, cond = torch.randn(1, 4, 4, 4, generator=draw), torch.tensor([500.0]), backend.encode_text("a red cat")
    with nullcontext() if compiler is None else compiled(backend.blocks(), compiler, pytest.fail):
        with attached(backend.modules(), factors, weights):
            first = backend(noisy, t, cond).detach()
            with torch.no_grad(), switched_off(backend.modules()):
                plain = backend(noisy, t, cond)
            backend(noisy, t, cond).square().mean().backward()
    assert not any("forward" in block.__dict__ for block in backend.blocks())
    return [first, plain, *(p.grad for one in factors.values() for p in one.parameters.values() if p.grad is not None)]


@pytest.mark.parametrize("keys", [{}, {"quantize": "int8", "swap_blocks": 1}], ids=["plain", "stored"])
def test_compiled_blocks_compute_the_same(tmp_path: Path, keys: dict[str, Any]) -> None:
    model = write_pipeline("flux", tmp_path / "flux")
    ours, theirs = passes(tmp_path, model, "aot_eager", **keys), passes(tmp_path, model, None, **keys)
    assert not torch.equal(ours[0], ours[1])  # the adapters do something, and can be switched off
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


def test_a_block_that_cannot_be_compiled_runs_as_it_is() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand more")

    blocks, lines, x = [nn.Linear(3, 3), nn.Linear(3, 3)], list[str](), torch.ones(1, 3)
    wanted = blocks[1](blocks[0](x))
    with compiled(blocks, broken, lines.append):  # type: ignore[arg-type]
        assert torch.equal(blocks[1](blocks[0](x)), wanted)
        assert torch.equal(blocks[1](blocks[0](x)), wanted)
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith("Linear cannot be compiled here (") and lines[0].endswith("set 'compile' to false")
