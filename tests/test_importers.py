"""One tree, four importers: ComfyUI, A1111, a plain Python (pytest, `python FOLDER`), pip; from any folder name."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

NOT_SHIPPED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "build", "dist", "*.egg-info")

# How ComfyUI loads a pack: the folder's __init__.py, under a name made of its path with the dots replaced.
AS_COMFYUI = """
import asyncio, importlib, importlib.util, inspect, json, os, sys
folder = sys.argv[1]
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(folder, "__init__.py"))
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
after_import = sorted(sys.modules)
convert = importlib.import_module(name + ".convert")
print(json.dumps({
    "after_import": after_import,
    "entrypoint": inspect.iscoroutinefunction(module.comfy_entrypoint),
    "v1": hasattr(module, "NODE_CLASS_MAPPINGS"),
    "web": module.WEB_DIRECTORY,
    "read": callable(convert.read),
}))
"""

# How A1111 runs a script: by path, as module "x.py" that never enters sys.modules, the extension's folder on the search
# path only meanwhile.
AS_A1111 = """
import importlib, importlib.util, json, logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
folder = sys.argv[1]
before = list(sys.path)
sys.path.insert(0, folder)
path = os.path.join(folder, "scripts", "lorasmith_a1111.py")
for _ in range(2):  # "Reload UI" runs the script again
    spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
sys.path[:] = before
from lorasmith import convert
print(json.dumps({"home": sys.modules["lorasmith"].__file__, "read": callable(convert.read)}))
"""

TIMED = """
import importlib.util, sys, time
begin = time.perf_counter()
spec = importlib.util.spec_from_file_location("pack", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
print(time.perf_counter() - begin)
"""


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a folder that holds nothing of ours, without anything on its path but `environment`."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def odd(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A copy of the tree and a link to it, both in folders whose name no import statement can spell."""
    copy = tmp_path_factory.mktemp("copy") / "lora.smith-1.2"
    shutil.copytree(root, copy, ignore=NOT_SHIPPED)
    link = tmp_path_factory.mktemp("link") / "lora.smith-1.2"
    try:
        link.symlink_to(root, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        link = copy
    return {"copy": copy, "link": link}


@pytest.mark.parametrize("kind", ["copy", "link"])
def test_comfyui_loads_the_folder_under_any_name(kind: str, odd: dict[str, Path], tmp_path: Path) -> None:
    result = python("-c", AS_COMFYUI, odd[kind], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["entrypoint"] and said["read"] and not said["v1"]
    assert said["web"] == ("./web" if (odd[kind] / "web").is_dir() else None)
    loaded = {name.split(".")[0] for name in said["after_import"]}
    assert not loaded & {"torch", "numpy", "safetensors", "comfy", "comfy_api", "folder_paths", "modules", "gradio"}


def test_an_error_behind_comfyuis_door_is_logged_with_its_traceback_and_raised(tmp_path: Path, root: Path) -> None:
    shutil.copy(root / "__init__.py", tmp_path)
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "__init__.py").write_text("import no_such_host\n")
    code = (
        "import asyncio, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('pack', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['pack'] = module\n"
        "spec.loader.exec_module(module)\n"
        "try:\n    asyncio.run(module.comfy_entrypoint())\n"
        "except ModuleNotFoundError as error:\n    print('raised', error.name)\n"
    )
    result = python("-c", code, tmp_path / "__init__.py", cwd=tmp_path)
    assert result.stdout.strip() == "raised no_such_host"
    assert "Traceback" in result.stderr and "import no_such_host" in result.stderr


@pytest.mark.parametrize("kind", ["copy", "link"])
def test_a1111_executes_the_script_by_path(kind: str, odd: dict[str, Path], tmp_path: Path) -> None:
    result = python("-c", AS_A1111, odd[kind], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["read"] and Path(said["home"]).resolve() == (odd[kind] / "__init__.py").resolve()
    assert result.stderr.count("Lorasmith is loaded from") == 2 and "Traceback" not in result.stderr


def test_a1111_goes_on_when_the_core_cannot_be_loaded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / "lorasmith_a1111.py", tmp_path / "scripts")
    (tmp_path / "__init__.py").write_text("")
    code = AS_A1111.replace("from lorasmith import convert", "").replace(
        'sys.modules["lorasmith"].__file__, "read": callable(convert.read)', '[m for m in sys.modules if "smith" in m]'
    )
    result = python("-c", code, tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"home": []}
    assert "Lorasmith could not be loaded" in result.stderr and "Traceback" in result.stderr


def test_scripts_holds_one_file_that_the_webui_executes(root: Path) -> None:
    assert [path.name for path in (root / "scripts").glob("*.py")] == ["lorasmith_a1111.py"]


@pytest.mark.parametrize("kind", ["copy", "link"])
def test_python_runs_the_folder_from_anywhere(kind: str, odd: dict[str, Path], tmp_path: Path) -> None:
    result = python(odd[kind], "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "merge" in result.stdout and not result.stderr


def test_importing_the_root_is_quick(root: Path, tmp_path: Path) -> None:
    times = [float(python("-c", TIMED, root / "__init__.py", cwd=tmp_path).stdout) for _ in range(7)]
    assert statistics.median(times) < 0.020, times


def packages_of(root: Path) -> set[str]:
    """Folders of ours that hold Python which an installed package needs, as paths inside the wheel."""
    found = {path.parent for part in ("lora_core", "convert", "cli", "nodes") for path in (root / part).rglob("*.py")}
    return {f"lorasmith/{folder.relative_to(root).as_posix()}" for folder in found}


def test_pip_makes_a_wheel_with_one_top_level_name(odd: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    made = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, odd["copy"], cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name.split("/")[0]} == {"lorasmith"}
    assert {name.rsplit("/", 1)[0] for name in names if name.endswith(".py")} >= packages_of(odd["copy"])
    assert not [name for name in names if "/tests/" in name or "/.venv/" in name]
    for part in ("lora_core", "convert", "cli", "nodes", "web", "locales", "examples"):
        files = [path for path in (odd["copy"] / part).rglob("*") if path.is_file()]
        assert {f"lorasmith/{path.relative_to(odd['copy']).as_posix()}" for path in files} <= set(names)

    target = tmp_path / "target"
    put = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    assert put.returncode == 0, put.stdout + put.stderr
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} <= {"lorasmith", "bin"}
    result = python("-m", "lorasmith", "--help", cwd=tmp_path, PYTHONPATH=str(target))
    assert result.returncode == 0 and "usage: lorasmith" in result.stdout, result.stderr
    code = "import lorasmith.convert as c; print(c.__file__)"
    assert str(target) in python("-c", code, cwd=tmp_path, PYTHONPATH=str(target)).stdout
