"""install.py: harmless when a host runs it, else one environment with exact versions, and one line when it fails."""

from __future__ import annotations

import ast
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="the stand-in for Python is a shell script")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A fresh install.py as a module, with constraints of its own and PyTorch's index out of reach."""
    spec = importlib.util.spec_from_file_location("install_under_test", ROOT / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch==2.13.0\n")
    monkeypatch.setattr(module, "CONSTRAINTS", constraints)
    monkeypatch.setattr(module, "cpu_index", list)
    return module


def bare(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, str(ROOT / "install.py")]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


# --- as a host runs it ------------------------------------------------------------------------------------------------


def test_bare_it_says_one_line_and_leaves_everything_alone(tmp_path: Path) -> None:
    had = (ROOT / ".venv").exists()
    done = bare(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("lorasmith: ready") and done.stdout.count("\n") == 1
    assert (ROOT / ".venv").exists() == had and not list(tmp_path.iterdir())


def test_bare_it_names_what_is_missing_and_still_succeeds(tmp_path: Path) -> None:
    done = bare("-S", "-I", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "torch, safetensors, numpy not found" in done.stdout and done.stdout.count("\n") == 1


def test_bare_it_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import runpy, sys\nsys.argv = ['install.py']\n"
        f"try:\n    runpy.run_path({str(ROOT / 'install.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    print(end.code, {'torch', 'numpy', 'safetensors'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 set()", done.stderr


def test_an_old_python_can_read_the_file_and_say_that_it_is_too_old() -> None:
    tree = ast.parse((ROOT / "install.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    check = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(check.test) == "sys.version_info < (3, 10)"
    before = tree.body[: tree.body.index(check)]
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.ImportFrom)) for node in before)


# --- what it installs -------------------------------------------------------------------------------------------------


def pins(version: str) -> dict[str, list[str]]:
    """Versions in constraints.txt for a Python version on Linux, by package."""
    requirements = pytest.importorskip("packaging.requirements")
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        one = requirements.Requirement(line)
        where = {"python_version": version, "sys_platform": "linux", "platform_system": "Linux"}
        if one.marker is None or one.marker.evaluate(where):
            found.setdefault(one.name.lower(), []).append(str(one.specifier))
    return found


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_every_package_has_one_exact_version(version: str, install: ModuleType) -> None:
    found = pins(version)
    assert all(len(versions) == 1 and versions[0].startswith("==") for versions in found.values()), found
    assert set(install.TEST) <= found.keys()


def test_the_lists_are_those_of_pyproject(install: ModuleType) -> None:
    try:
        import tomllib
    except ImportError:
        tomllib = pytest.importorskip("tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(install.CORE) == set(project["dependencies"])
    assert set(install.DEMO) == {*install.CORE, *extras["train"], *extras["demo"]} - {"lorasmith[train]"}
    assert set(install.TEST) == {*install.DEMO, *extras["test"]} - {"lorasmith[demo]"}


def test_a_host_is_asked_to_install_nothing() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines and all(line.startswith("#") for line in lines)


# --- the environment --------------------------------------------------------------------------------------------------


def stand_in(folder: Path, status: int = 0, says: str = "") -> Path:
    """An environment whose Python only writes down what it was asked to do; pip there ends with `status`."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    script = f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n[ "$1" = -m ] || exit 0\necho "{says}"\nexit {status}\n'
    python.write_text(script)
    python.chmod(0o755)
    return python


def installs(folder: Path) -> list[str]:
    return [line for line in (folder / "calls").read_text().splitlines() if line.startswith("-m pip install")]


@POSIX
def test_a_second_run_installs_nothing(install: ModuleType, tmp_path: Path) -> None:
    python = stand_in(tmp_path / ".venv")
    assert [install.prepare(install.DEMO, tmp_path / ".venv") for _ in range(3)] == [python] * 3
    (call,) = installs(tmp_path / ".venv")
    assert f"--constraint {install.CONSTRAINTS}" in call and call.endswith(" ".join(install.DEMO))


@POSIX
def test_other_versions_or_packages_are_installed_again(install: ModuleType, tmp_path: Path) -> None:
    stand_in(tmp_path / ".venv")
    install.prepare(install.DEMO, tmp_path / ".venv")
    install.prepare(install.TEST, tmp_path / ".venv")
    install.CONSTRAINTS.write_text("torch==2.14.0\n")
    install.prepare(install.TEST, tmp_path / ".venv")
    assert len(installs(tmp_path / ".venv")) == 3


@POSIX
@pytest.mark.parametrize(
    ("says", "parts"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", ["disk is full"]),
        ("OSError: [Errno 30] Read-only file system: '/x'", ["cannot be written", "folder of your own"]),
        ("[Errno -3] Temporary failure in name resolution", ["index cannot be reached", "connect"]),
        ("ERROR: No matching distribution found for torch==2.13.0", ["torch==2.13.0", "no build", "3.10 to 3.13"]),
        ("error: externally-managed-environment", ["does not let packages be installed", "--here"]),
        ("ERROR: something new", ["it said: ERROR: something new"]),
    ],
)
def test_a_failure_is_one_line_and_is_tried_again_next_time(
    says: str,
    parts: list[str],
    install: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    stand_in(tmp_path / ".venv", status=1, says=says)
    for attempt in (1, 2):
        assert install.main(["--demo"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("lorasmith: error: ") and err.count("\n") == 1
        assert all(part in err for part in parts), err
        assert len(installs(tmp_path / ".venv")) == attempt


def test_without_the_venv_module_it_says_which_package_brings_it(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\nsys.modules['ensurepip'] = None\n"
        f"module = runpy.run_path({str(ROOT / 'install.py')!r})\n"
        f"module['make'].__globals__['ROOT'] = module['Path']({str(tmp_path)!r})\n"
        "sys.exit(module['main'](['--demo']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "python3-venv" in done.stderr and "--here" in done.stderr


def test_a_folder_that_cannot_be_made_is_told_in_one_line(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(install.Refusal, match="could not be made") as caught:
        install.make(tmp_path / "file" / ".venv")
    assert "\n" not in str(caught.value)


# --- the status -------------------------------------------------------------------------------------------------------


def test_the_childs_status_is_ours(install: ModuleType) -> None:
    assert install.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7


@POSIX
def test_a_signal_becomes_a_status(install: ModuleType) -> None:
    code = f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})"
    assert install.run([sys.executable, "-c", code]) == 128 + signal.SIGTERM


@pytest.mark.parametrize(("style", "laws", "expected"), [(0, 0, 0), (1, 0, 1), (0, 3, 3), (1, 3, 3)])
def test_the_tests_run_even_when_the_style_is_off(
    style: int, laws: int, expected: int, install: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run(command: list[str | Path], folder: Path | None = None) -> int:
        ran.append(command[2])
        return style if command[2] == "ruff" else laws

    monkeypatch.setattr(install, "run", run)
    assert install.run_tests(Path("python"), []) == expected and ran == ["ruff", "pytest"]
