"""What the scripts that measure hosts share: key dumps as files a host can read, and the layers that are in them.

They write what they find into host_verdicts.json, which `test_hosts_measured.py` holds the tables about hosts against.
What Forge (June 2025) and A1111 1.10 do stands there from runs of their loaders on the same dumps.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TESTS = Path(__file__).resolve().parent
VERDICTS = TESTS / "host_verdicts.json"
RANK = 4  # where a dump gives names alone, and where it says -1


def alias_root() -> None:
    """Make the checkout importable as `lorasmith`, in whatever interpreter runs the host."""
    root = TESTS.parent
    spec = importlib.util.spec_from_file_location(
        "lorasmith", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)


def dumps() -> Iterable[tuple[str, dict[str, Any]]]:
    """Yield every key dump, by name."""
    for path in sorted((TESTS / "keys").glob("*.json.gz")):
        yield path.name.removesuffix(".json.gz"), json.loads(gzip.decompress(path.read_bytes()))


def parameters(model: str) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a model's parameters in one layout, empty where there is no such file."""
    path = TESTS / "models" / f"{model}.json.gz"
    if not path.is_file():
        return {}
    content = json.loads(gzip.decompress(path.read_bytes()))
    return {key: tuple(shape) for key, shape in content.get("keys", content).items() if isinstance(shape, list)}


def layers(content: Mapping[str, Any]) -> dict[Any, dict[str, str]]:
    """Return the keys of each layer of a dump, target -> role -> key, as its own family has them."""
    from lorasmith.convert.detect import detect
    from lorasmith.convert.keymap import grouped, keymap

    match = detect(content["keys"], content.get("metadata") or {})
    map = keymap(content["family"])
    return grouped({key: place for key in content["keys"] if (place := map.place(key, match.positions))})


def file(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a dump's file, filled with ones; shapes that it does not give are those of the family's model."""
    from lorasmith.convert.keymap import keymap

    map = keymap(content["family"])
    shapes = {key: shape for key, shape in content["keys"].items() if shape is not None}
    for target, roles in layers(content).items():
        weight = map.shape(target) or (8, 8)
        for role, key in roles.items():
            shapes.setdefault(key, _guess(role, weight))
    return {key: _ones([RANK if size == -1 else size for size in shapes.get(key, (1,))]) for key in content["keys"]}


def finding(read: Mapping[Any, bool], unread: Iterable[str] = (), refusal: str = "") -> dict[str, Any]:
    """Return what a host did with a file, ready for JSON.

    Args:
        read: for each layer, whether it takes effect.
        unread: the roles of the keys that the host leaves.
        refusal: why it stops at the file, if it does.
    """
    unread = Counter(unread)
    missed = Counter(f"{target.component}.{target.parameter}" for target, taken in read.items() if not taken)
    return {
        "layers": len(read),
        "read": 0 if refusal else sum(read.values()),
        **({"missed": dict(missed)} if missed and not refusal else {}),
        **({"unread": dict(unread)} if unread and not refusal else {}),
        **({"refusal": refusal.partition("{")[0].strip()} if refusal else {}),  # sets come in any order
    }


def record(id: str, content: Mapping[str, Any]) -> None:
    """Put what was measured of one host into the file, one dump a line."""
    whole = json.loads(VERDICTS.read_text()) if VERDICTS.is_file() else {}
    whole[id] = content
    VERDICTS.write_text(f"{_lines(whole, 3)}\n")


def _lines(value: Any, levels: int) -> str:
    """Return JSON that breaks lines in the outer levels alone."""
    if not levels or not isinstance(value, dict):
        return json.dumps(value)
    inner = (f"{json.dumps(key)}: {_lines(one, levels - 1)}" for key, one in value.items())
    return "{\n" + ",\n".join(inner) + "\n}"


def _ones(shape: list[int]) -> Tensor:
    """Return ones that take no memory; single numbers are real ones, because hosts read them."""
    return torch.ones((), dtype=torch.float16).expand(shape) if shape else torch.ones((), dtype=torch.float16)


def _guess(role: str, weight: tuple[int, ...]) -> tuple[int, ...]:
    ones = (1,) * (len(weight) - 2)
    known = {"down": (RANK, *weight[1:]), "up": (weight[0], RANK, *ones), "magnitude": (1, weight[-1])}
    factors = {
        **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b"), (2, 2)),
        "lokr_w2": (weight[0] // 2, weight[-1] // 2),
    }
    return {**known, **factors, "ia3": weight[:1], "alpha": (), "on_input": ()}.get(role, weight)
