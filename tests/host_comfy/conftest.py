"""One ComfyUI server for all tests in this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import comfy_server
import loras
import numpy as np
import pytest
from comfy_client import Comfy
from PIL import Image


@pytest.fixture(scope="session")
def host() -> Path:
    """Folder of the ComfyUI checkout."""
    return Path(os.environ.get("COMFYUI_PATH") or "~/ComfyUI").expanduser().resolve()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A base folder with the checkpoint, LoRA files, captioned pictures and this pack."""
    folder = comfy_server.furnish(tmp_path_factory.mktemp("comfyui") / "base", root)
    loras.write(folder / "models/loras")
    pictures(folder / "input/squares")
    return folder


@pytest.fixture(scope="session")
def comfy(host: Path, base: Path) -> Iterator[Comfy]:
    """The running server."""
    try:
        comfy_server.python()
    except comfy_server.Unavailable as reason:
        pytest.skip(str(reason))
    with comfy_server.serving(host, base) as server:
        yield server


def pictures(folder: Path) -> None:
    """Make two pictures with captions."""
    folder.mkdir(parents=True)
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        Image.fromarray(np.full((80, 72, 3), colour, np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a {name} square (plain)", encoding="utf-8")
