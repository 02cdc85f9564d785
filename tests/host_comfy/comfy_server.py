"""A real ComfyUI for tests: an interpreter that can run it, a base folder of our own, one server on 127.0.0.1."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mini_sd15
from comfy_client import Comfy

HERE = Path(__file__).resolve().parent
STUBS = HERE / "stubs"
CHECKPOINT = "mini-sd15.safetensors"
NEEDED = (
    "aiohttp",
    "alembic",
    "av",
    "comfy_aimdo",
    "comfy_kitchen",
    "simpleeval",
    "sqlalchemy",
    "torchsde",
    "transformers",
)
BOOT = 120  # seconds; a boot takes about ten


class Unavailable(Exception):
    """This machine cannot run the host; says why."""


def cache() -> Path:
    """Return the folder for what is made once: the checkpoint and the interpreter's packages."""
    return Path(os.environ.get("LORASMITH_CACHE") or "~/.cache/lorasmith").expanduser()


def python() -> str:
    """Return an interpreter that can run ComfyUI: the one that is named, this one, or one made for it."""
    if os.environ.get("COMFYUI_PYTHON"):
        return os.environ["COMFYUI_PYTHON"]
    if all(importlib.util.find_spec(name) for name in NEEDED):
        return sys.executable
    if not importlib.util.find_spec("transformers"):
        raise Unavailable("transformers is not installed: install the [test] extra, or set COMFYUI_PYTHON")
    return _made_python()


def _made_python() -> str:
    """Make an environment that sees this interpreter's packages and adds what ComfyUI needs."""
    wanted = HERE / "requirements.txt"
    mark = hashlib.sha256(wanted.read_bytes() + sys.prefix.encode() + sys.version.encode()).hexdigest()[:12]
    folder = cache() / f"comfyui-{mark}"
    binary = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "complete").is_file():
        return str(binary)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, timeout=120)
        where = subprocess.run([str(binary), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                               check=True, capture_output=True, text=True, timeout=60).stdout.strip()  # fmt: skip
        ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (Path(where) / "tests_own.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
        command = [str(binary), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        tail = (getattr(error, "stderr", None) or str(error)).strip()[-300:]
        raise Unavailable(f"what ComfyUI needs could not be installed: {tail}") from error
    (folder / "complete").touch()
    return str(binary)


def checkpoint() -> Path:
    """Return the small SD 1.5 checkpoint, made once for each version of its maker."""
    source = Path(mini_sd15.__file__).read_bytes()
    path = cache() / f"mini-sd15-{hashlib.sha256(source).hexdigest()[:12]}.safetensors"
    if not path.exists():
        draft = path.with_suffix(f".{os.getpid()}")
        mini_sd15.write(draft).replace(path)
    return path


def environment() -> dict[str, str]:
    """Return the environment of a process that imports ComfyUI."""
    one_thread = {"OMP_NUM_THREADS": "1"}  # two spinning threads on a busy machine are many times slower than one
    return {**os.environ, **one_thread, "PYTHONPATH": str(STUBS), "PYTHONDONTWRITEBYTECODE": "1"}


def furnish(base: Path, pack: Path) -> Path:
    """Make a base folder for the host: our checkpoint, an empty page, and the pack under a name of no meaning."""
    for name in ("models/checkpoints", "models/loras", "custom_nodes", "input", "output", "user", "page"):
        (base / name).mkdir(parents=True)
    (base / "models/checkpoints" / CHECKPOINT).symlink_to(checkpoint())
    (base / "custom_nodes" / "lora.smith-1.2").symlink_to(pack, target_is_directory=True)
    (base / "page/index.html").write_text("no browser in these tests", encoding="utf-8")
    return base


@contextmanager
def serving(host: Path, base: Path) -> Iterator[Comfy]:
    """Run the host's server inside the block; raises Unavailable with the end of its log when it does not start."""
    port = _free_port()
    options = [
        "--cpu",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--disable-api-nodes",
    ]
    quiet = ["--front-end-root", str(base / "page"), "--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    log = base / "server.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [python(), "main.py", *options, *quiet],
            cwd=host,
            env=environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        comfy = Comfy(port)
        _await_start(comfy, server, log)
        yield comfy
    finally:
        server.terminate()
        server.wait(20)


def _await_start(comfy: Comfy, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + BOOT
    while time.monotonic() < end and server.poll() is None:
        try:
            comfy.call("/system_stats")
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise Unavailable(f"ComfyUI did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
