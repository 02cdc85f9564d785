"""Try Lorasmith without a host: `python install.py --demo` trains and uses a LoRA, `--test` runs every check.

Both make `.venv` beside this file from constraints.txt (exact versions); a second run reuses it. A host that runs this
file at its start gives no argument: then nothing is installed, one line says whether all is there, the status is 0.
Standard library only.
"""

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # before anything that an older Python could stumble over
    facts = (sys.version_info[0], sys.version_info[1], sys.executable)
    sys.stderr.write("lorasmith: error: Python %d.%d is too old, %s; use 3.10 or newer\n" % facts)
    sys.exit(2 if len(sys.argv) > 1 else 0)

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
CORE = ("torch", "safetensors", "numpy")
DEMO = (*CORE, "pillow", "diffusers", "transformers", "accelerate", "peft")
TEST = (*DEMO, "scipy", "einops", "lycoris-lora", "setuptools", "pytest", "ruff", "mypy")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"

# What pip says -> what that means and what helps; the first that fits is told.
CAUSES = (
    (r"No space left|Errno 28", "the disk is full", "free some space and run the same command again"),
    (
        r"Read-only file system|Permission denied|Errno 13|WinError 5",
        "the environment cannot be written",
        "run it from a copy in a folder of your own",
    ),
    (
        r"name resolution|getaddrinfo|NewConnectionError|Network is unreachable|Max retries|timed out|ConnectionError"
        r"|ProxyError|SSLError",
        "the package index cannot be reached",
        "connect, then run the same command again",
    ),
    (
        r"externally-managed",
        "this Python does not let packages be installed",
        "leave out --here, or make an environment with 'python -m venv'",
    ),
    (
        r"No matching distribution found for (?P<name>\S+)",
        "a package has no build for this Python and machine",
        "use Python 3.10 to 3.13 on 64-bit Linux, macOS or Windows",
    ),
)


class Refusal(Exception):
    """A one-line reason to stop: what, where, what next."""


def main(arguments: list[str]) -> int:
    """Do what the options say and return the exit status: the child's own, 2 when the environment cannot be made."""
    options, rest = parser().parse_known_args(arguments)
    if not (options.demo or options.test):
        print(check())
        return 0
    try:
        python = prepare(TEST if options.test else DEMO, None if options.here else ROOT / ".venv")
    except Refusal as refusal:
        print(f"lorasmith: error: {refusal}", file=sys.stderr)
        return 2
    return run_tests(python, rest) if options.test else run([python, ROOT / "__main__.py", "demo", *rest])


def parser() -> argparse.ArgumentParser:
    """The options; whatever else is given goes on to the demo or to pytest."""
    made = argparse.ArgumentParser(prog="install.py", description="Try or test Lorasmith in an environment of its own.")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--demo", action="store_true", help="train and use a LoRA on a tiny model that comes along")
    what.add_argument("--test", action="store_true", help="run all tests and checks")
    made.add_argument("--here", action="store_true", help="install into the Python that runs this, instead of .venv")
    return made


def check() -> str:
    """One line on whether this Python has what Lorasmith needs; looks, but imports and installs nothing."""
    version = ".".join(map(str, sys.version_info[:3]))
    missing = [name for name in CORE if importlib.util.find_spec(name) is None]
    if missing:
        return f"lorasmith: {', '.join(missing)} not found in Python {version} ({sys.executable}): install it there"
    return f"lorasmith: ready (Python {version} has {', '.join(CORE)}); nothing to install"


def prepare(packages: tuple[str, ...], folder: Path | None) -> Path:
    """Python that has `packages`: of the virtual environment `folder`, or this one where that is None."""
    if folder is None:
        install(Path(sys.executable), packages)
        return Path(sys.executable)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if stamp(folder, packages).exists() and answers(python, "pass"):
        return python
    if not answers(python, "import pip"):
        make(folder)
    install(python, packages)
    stamp(folder, packages).touch()
    return python


def make(folder: Path) -> None:
    """Make the virtual environment `folder` anew."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise Refusal(
            f"this Python cannot make environments (no venv and ensurepip), {sys.executable}; install its venv package "
            "(python3-venv on Debian and Ubuntu), or use --here inside an environment of your own"
        )
    print(f"making {folder}", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], capture_output=True, text=True)
    if made.returncode:
        raise Refusal(explain(made.stdout + made.stderr, folder))


def answers(python: Path, code: str) -> bool:
    """Whether `python` runs `code` without an error."""
    try:
        return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
    except OSError:
        return False


def install(python: Path, packages: tuple[str, ...]) -> None:
    """Put `packages` and what they need, in the versions of constraints.txt, where `python` finds them."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--constraint", CONSTRAINTS, *cpu_index(), *packages]
    print(f"installing {', '.join(packages)} (some hundred megabytes, once)", flush=True)
    status, output = follow(command)
    if status:
        raise Refusal(explain(output, python))


def stamp(folder: Path, packages: tuple[str, ...]) -> Path:
    """File in the environment `folder` that says: exactly these packages, at these versions, were put here."""
    facts = CONSTRAINTS.read_bytes() + " ".join(packages).encode()
    return folder / f"lorasmith-{hashlib.sha256(facts).hexdigest()[:16]}.stamp"


def cpu_index() -> list[str]:
    """Option that adds PyTorch's CPU builds, where the default is a large CUDA build that this machine cannot use."""
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return []
    try:
        socket.create_connection(("download.pytorch.org", 443), timeout=3).close()
    except OSError:
        return []
    return ["--extra-index-url", CPU_WHEELS]


def follow(command: list[str | Path]) -> tuple[int, str]:
    """Run pip, show what it fetches, and return its status with everything that it said."""
    lines = []
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert child.stdout is not None
    for line in child.stdout:
        lines.append(line)
        if line.lstrip().startswith(("Downloading", "Installing collected")):
            print(f"  {line.strip()[:100]}", flush=True)
    return child.wait(), "".join(lines)


def explain(output: str, place: Path) -> str:
    """The reason in pip's or venv's output, as one line."""
    for pattern, what, then in CAUSES:
        found = re.search(pattern, output)
        if found:
            return f"{what}, {found.groupdict().get('name', place)}; {then}"
    last = [line.strip() for line in output.splitlines() if line.strip()] or ["no word of the reason"]
    return f"the environment could not be made, {place}; it said: {last[-1]}"


def run_tests(python: Path, rest: list[str]) -> int:
    """Run ruff, then pytest (which runs mypy and the examples in the docstrings too); the first bad status counts."""
    if not (ROOT / "tests").is_dir():
        print(f"lorasmith: error: no tests came along, {ROOT}; take a clone of the repository", file=sys.stderr)
        return 2
    style = run([python, "-m", "ruff", "check", "."], ROOT)
    laws = run([python, "-m", "pytest", "-q", *(rest or ["tests"])], ROOT)
    return laws or style


def run(command: list[str | Path], folder: Path | None = None) -> int:
    """Run `command` in `folder` with this terminal and return its status, 128 + n after signal n."""
    child = subprocess.Popen(command, cwd=folder)
    while True:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the terminal sent it to the child too, which ends in its own way
            continue
        return status if status >= 0 else 128 - status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as problem:
        print(f"lorasmith: error: {problem.strerror}, {problem.filename}; see to it and run it again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
