"""What every test shares: the checkout as the package `lorasmith`, the hosts that the machine has, a calm CPU.

Tests of a host are marked `@pytest.mark.host("comfyui")` (or "a1111", "forge") and take its folder from the fixture
`comfyui_path` (`a1111_path`, `forge_path`). Without a checkout of that host they are skipped and the summary says so.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# host -> (environment variable, folder looked at without it, a file that every checkout has)
HOSTS = {
    "comfyui": ("COMFYUI_PATH", "~/ComfyUI", "nodes.py"),
    "a1111": ("A1111_PATH", "~/stable-diffusion-webui", "webui.py"),
    "forge": ("FORGE_PATH", None, "webui.py"),
}


def alias_root(root: Path = ROOT, name: str = "lorasmith") -> None:
    """Make the folder `root`, whatever it is called, importable as the package `name`."""
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


alias_root()


def host_path(host: str) -> Path | None:
    """Folder of the host's checkout; None without one; a variable that points nowhere is a mistake, not a skip."""
    variable, fallback, proof = HOSTS[host]
    named = os.environ.get(variable)
    if named and not (Path(named).expanduser() / proof).is_file():
        raise pytest.UsageError(f"{variable}={named} has no {proof}: point it at a checkout or unset it")
    folder = named or fallback
    if folder is None or not (Path(folder).expanduser() / proof).is_file():
        return None
    return Path(folder).expanduser().resolve()


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, look for the hosts once, and keep torch to two threads."""
    config.addinivalue_line("markers", "host(name): needs a checkout of that host (comfyui, a1111, forge)")
    config.stash[_PATHS] = {host: host_path(host) for host in HOSTS}
    config.stash[_TESTS] = {}
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(min(2, os.cpu_count() or 1))


_PATHS: pytest.StashKey[dict[str, Path | None]] = pytest.StashKey()
_TESTS: pytest.StashKey[dict[str, str]] = pytest.StashKey()  # node id -> host


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a host that is not here, and remember which test needs which for the summary."""
    for item in items:
        for mark in item.iter_markers("host"):
            host = mark.args[0]
            config.stash[_TESTS][item.nodeid] = host
            if config.stash[_PATHS][host] is None:
                item.add_marker(pytest.mark.skip(reason=f"no {host} checkout ({HOSTS[host][0]})"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say for each host how many of its tests ran, and why not where they did not."""
    tests = config.stash[_TESTS]
    reports = [r for state in ("passed", "failed", "error") for r in terminalreporter.stats.get(state, [])]
    ran = Counter(tests[node] for node in {r.nodeid for r in reports} if node in tests)
    for host, (variable, fallback, _) in HOSTS.items():
        total, path = list(tests.values()).count(host), config.stash[_PATHS][host]
        reason = f"no checkout: {variable} is not set" + (f" and {fallback} is not there" if fallback else "")
        where = f"checkout {path}" if path else reason
        terminalreporter.write_line(f"host {host}: {ran[host]} tests ran, {total - ran[host]} skipped ({where})")


def _need(request: pytest.FixtureRequest, host: str) -> Path:
    path = request.config.stash[_PATHS][host]
    if path is None:
        pytest.skip(f"no {host} checkout ({HOSTS[host][0]})")
    return path


@pytest.fixture
def comfyui_path(request: pytest.FixtureRequest) -> Path:
    """Folder of the ComfyUI checkout."""
    return _need(request, "comfyui")


@pytest.fixture
def a1111_path(request: pytest.FixtureRequest) -> Path:
    """Folder of the A1111 checkout."""
    return _need(request, "a1111")


@pytest.fixture
def forge_path(request: pytest.FixtureRequest) -> Path:
    """Folder of the Forge checkout."""
    return _need(request, "forge")


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the checkout under test."""
    return ROOT
