"""What a LoRA file is, whether it is sound, who loads it and whether it fits a model: as data and as text."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora_core import store
from ..lora_core.adapter import Target
from ..lora_core.errors import LorasmithError
from ..lora_core.header import opened, read_tensors
from ..lora_core.ops.recipe import RECIPE, told
from . import peft
from .against import Model, compare, read_model
from .algorithms import ALGORITHMS, kind_of, still
from .architectures import ARCHITECTURES, architecture
from .detect import POSITIONAL, Match, detect
from .files import tensors_at
from .formats import format_named
from .hosts import HOSTS, header_alphas, verdicts
from .keymap import keymap
from .positional import numbered
from .scales import DIFFUSERS_KEY, PEFT_KEY
from .suffixes import looks_like_layer
from .words import base_model, one_line, trigger_words

KINDS = (*(row.id for row in ALGORITHMS), "dora")
RANKED = ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "embedding_down", "a2")  # whose first axis is the rank
WEBUIS = ("comfyui", "a1111", "forge")  # hosts that kohya files suit
WEBUI_FAMILIES = ("sd15", "sd21", "sdxl")  # families that all of them have
COMFY = format_named("comfy")
SHOWN = 3  # of a list, in text


@dataclass(frozen=True)
class _File:
    """A LoRA file's (or a PEFT folder's) header, and where its tensors come from."""

    path: Path
    weights: tuple[Path, ...]  # the files themselves
    header: store.Header
    tensors: Mapping[str, Tensor] | None = None  # where they had to be read already


@dataclass(frozen=True)
class _Seen:
    """What a header tells of a file's layers."""

    match: Match
    layers: Mapping[str, Any]  # "kinds", "components" and "layers" of the result
    ranks: Mapping[str, int]  # how many layers have it
    alphas: Mapping[Target, float]  # of the layers without an alpha tensor


@dataclass
class _Findings:
    """What a look at the values brings to light."""

    nan: int = 0
    inf: int = 0
    zero: set[str] = field(default_factory=set)  # keys of tensors without a value other than 0
    alphas: dict[str, float] = field(default_factory=dict)  # values of one-number tensors, by key


def info(
    path: str | Path, against: str | Path | Model | None = None, fast: bool = False, keys: bool = False
) -> dict[str, Any]:
    """Return everything about a LoRA file, ready for JSON; the command line's page says what each entry means.

    Args:
        path: a file, or a folder as PEFT writes it.
        against: a checkpoint, a Diffusers folder or a Model to hold it against; only headers are read.
        fast: read the header alone: `health` is None, the hashes are empty, `alphas` lacks what tensors hold.
        keys: add "keys", every key with its dtype, its shape and what it stands for.

    Raises:
        LorasmithError: the file cannot be read, is no LoRA, or none of its keys is known; or the same of the model.
    """
    model = read_model(against) if isinstance(against, (str, Path)) else against
    file = _open(Path(path))
    header = file.header
    seen = _seen(header, file.path)
    match = seen.match
    findings = None if fast else _look_through(file)
    return {
        "file": str(path),
        "bytes": sum(weights.stat().st_size for weights in file.weights),
        **_hashes(file.weights, fast),
        "architecture": match.architecture,
        "candidates": list(match.candidates),
        "format": match.format,
        **({"formats": list(match.formats)} if match.format == "mixed" else {}),
        **deepcopy(seen.layers),
        "ranks": dict(seen.ranks),
        "alphas": _counts(str(alpha) for alpha in _alphas(seen, findings)),
        "dtypes": _counts(header.dtypes.values()),
        "parameters": sum(math.prod(shape) for shape in header.shapes.values()),
        "unknown_keys": list(match.unknown),
        "riders": list(match.riders),
        "incomplete": list(match.incomplete),
        "health": _health(match, findings),
        "trigger_words": trigger_words(header.metadata, path),
        "base_model": base_model(header.metadata, path),
        "metadata": dict(header.metadata),
        "hosts": _verdicts(match, header, findings),
        "against": compare(match, header.shapes, model) if model else None,
        **({"keys": _keys(match, header)} if keys else {}),
    }


def text(info: Mapping[str, Any]) -> str:
    """Return `info`'s result for people: what the file is, whether it fits, what is wrong, what to do next."""
    lines = [
        f"{_name(info)}: a LoRA for {_family(info)}, {_dialect(info)}",
        f"  {_inside(info)}",
        *(f"  {line}" for line in _about(info)),
        *([f"  {_fit(info['against'])}"] if info["against"] else []),
        *(f"  Wrong: {problem}" for problem in _problems(info)),
        *(f"  {line}" for line in _hosts(info["hosts"])),
    ]
    lines.append(f"  Next: {_next(info)}")
    return "\n".join(lines)


def _seen(header: store.Header, path: Path) -> _Seen:
    """Return what a header tells; files with the same keys, shapes and tell-tale entries are looked at once."""
    try:
        return _seen_once(tuple(header.shapes.items()), _telling(header))
    except LorasmithError:
        detect(header.shapes, header.metadata, path)  # for the file's name in the refusal
        raise


def _verdicts(match: Match, header: store.Header, findings: _Findings | None) -> dict[str, dict[str, Any]]:
    if findings is not None:
        return verdicts(match, header.shapes, header.metadata, findings.alphas)
    return {host: dict(said) for host, said in _verdicts_once(tuple(header.shapes.items()), _telling(header)).items()}


@lru_cache(maxsize=64)
def _seen_once(shapes: tuple[tuple[str, tuple[int, ...]], ...], telling: tuple[tuple[str, str], ...]) -> _Seen:
    by_key = dict(shapes)
    match = detect(by_key, dict(telling))
    alphas = {target: alpha for target, (alpha, _) in header_alphas(match, by_key, dict(telling)).items()}
    return _Seen(match, _layers(match), _counts(map(str, _ranks(match, by_key))), alphas)


@lru_cache(maxsize=64)
def _verdicts_once(
    shapes: tuple[tuple[str, tuple[int, ...]], ...], telling: tuple[tuple[str, str], ...]
) -> dict[str, dict[str, Any]]:
    return verdicts(_seen_once(shapes, telling).match, dict(shapes), dict(telling))


def _telling(header: store.Header) -> tuple[tuple[str, str], ...]:
    """Return the header's entries that say something of the family, the scales or the order of the layers."""
    hints = {key for family in ARCHITECTURES for key in family.hints}
    wanted = {*hints, DIFFUSERS_KEY, *POSITIONAL, "format"}
    return tuple(
        (key, text) for key, text in sorted(header.metadata.items()) if key in wanted or key.endswith(PEFT_KEY)
    ) or tuple((key, "") for key in sorted(header.metadata)[:1])  # whether there is a header at all counts too


def _open(path: Path) -> _File:
    if not path.is_dir():
        header = store.header(path)
        if not numbered(header.shapes):
            return _File(path, (path,), replace(header, metadata={**peft.config_beside(path), **header.metadata}))
    stored = tensors_at(path)
    header = store.Header(
        shapes={key: tuple(tensor.shape) for key, tensor in stored.tensors.items()},
        dtypes={key: store.dtype_name(tensor.dtype) for key, tensor in stored.tensors.items()},
        metadata=stored.metadata,
        spans={},
    )
    if not path.is_dir():
        return _File(path, (path,), header, stored.tensors)
    folders = (path / name for name in ("", *peft.FOLDERS))
    weights = [
        next((folder / name for name in (peft.WEIGHTS, peft.LEGACY_WEIGHTS) if (folder / name).is_file()), None)
        for folder in folders
    ]
    return _File(path, tuple(file for file in weights if file), header, stored.tensors)


def _each(file: _File) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors one at a time; of a safetensors file no two are in memory together."""
    if file.tensors is not None or not file.header.spans:
        yield from (file.tensors if file.tensors is not None else store.load(file.path).tensors).items()
        return
    with opened(file.path) as source:
        for key, span in file.header.spans.items():
            yield from read_tensors(source, replace(file.header, spans={key: span}), file.path).items()


def _look_through(file: _File) -> _Findings:
    findings = _Findings()
    for key, tensor in _each(file):
        values = tensor.float()
        if not bool(torch.isfinite(values).all()):
            findings.nan += int(torch.isnan(values).sum())
            findings.inf += int(torch.isinf(values).sum())
        if not bool(values.any()):
            findings.zero.add(key)
        if values.numel() == 1:
            findings.alphas[key] = float(values)
    return findings


def _hashes(files: Sequence[Path], fast: bool) -> dict[str, str]:
    """Return the file's hashes, empty where there is no one file or nothing but the header may be read."""
    if fast or len(files) != 1:
        return {"sha256": "", "autov2": "", "autov3": ""}
    whole = store.sha256(files[0])
    return {"sha256": whole, "autov2": whole[:10], "autov3": store.autov3(files[0])}


def _layers(match: Match) -> dict[str, Any]:
    kinds: dict[tuple[str, str], str] = {}  # a module with a matrix and a bias is one layer, of the matrix's kind
    for target, roles in match.layers.items():
        module = (target.component, target.module)
        kinds[module] = kind_of(roles) if target.parameter == "weight" else kinds.get(module, kind_of(roles))
    return {
        "kinds": {**dict.fromkeys(KINDS, 0), **Counter(kinds.values())},
        "components": _counts(component for component, _ in kinds),
        "layers": len(kinds),
    }


def _ranks(match: Match, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
    """Yield each low-rank layer's rank."""
    for roles in match.layers.values():
        factor = next((roles[role] for role in RANKED if role in roles), None)
        if factor is not None and shapes[factor]:
            yield shapes[factor][0]


def _alphas(seen: _Seen, findings: _Findings | None) -> Iterator[float]:
    """Yield each low-rank layer's alpha: its tensor's, else the header's, else its rank."""
    yield from seen.alphas.values()
    for target, roles in seen.match.layers.items() if findings else ():
        if target in seen.alphas or {"diff", "w_norm", "oft_blocks"} & set(roles):
            continue
        if findings and roles.get("alpha") in findings.alphas:
            yield findings.alphas[roles["alpha"]]


def _health(match: Match, findings: _Findings | None) -> dict[str, int] | None:
    if findings is None:
        return None
    zero: dict[tuple[str, str], bool] = defaultdict(lambda: True)
    for target, roles in match.layers.items():
        module = (target.component, target.module)
        zero[module] &= still(roles, [role for role, key in roles.items() if key in findings.zero])
    return {"nan": findings.nan, "inf": findings.inf, "zero_layers": sum(zero.values())}


def _keys(match: Match, header: store.Header) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for key, shape in header.shapes.items():
        rows[key] = {"dtype": header.dtypes[key], "shape": list(shape)}
        if place := match.places.get(key):
            rows[key] |= {"component": place.target.component, "module": place.target.module, "role": place.role}
    return rows


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _family(info: Mapping[str, Any]) -> str:
    return " or ".join(f"{architecture(id).name} ({id})" for id in info["candidates"])


def _dialect(info: Mapping[str, Any]) -> str:
    formats = info.get("formats", [info["format"]])
    return f"written as {' and '.join(f'{id}: {format_named(id).title}' for id in formats)}"


def _inside(info: Mapping[str, Any]) -> str:
    parts = [f"{info['layers']} layers ({', '.join(f'{n} {part}' for part, n in info['components'].items())})"]
    for word in ("rank", "alpha"):
        counts = info[f"{word}s"]
        if counts:
            shown = [f"{float(value):g}" for value in counts]
            parts.append(f"{word} {', '.join(shown[:SHOWN])}{' ...' if len(shown) > SHOWN else ''}")
    dense = [f"{n} {kind}" for kind, n in info["kinds"].items() if n and kind != "lora"]
    return ", ".join([*parts, *dense, "/".join(info["dtypes"]), f"{info['bytes'] / 1e6:.1f} MB"])


def _about(info: Mapping[str, Any]) -> Iterator[str]:
    if info["trigger_words"]:
        yield f"Trigger words: {', '.join(info['trigger_words'])}"
    if info["base_model"]:
        yield f"Trained on: {info['base_model']}"
    if RECIPE in info["metadata"]:
        yield f"Made: {one_line(told(info['metadata'][RECIPE]))}"
    unplaced = set(_unplaced(info))
    others = [*info["riders"], *(key for key in info["unknown_keys"] if key not in unplaced)]
    if others:
        yield f"Also inside: {len(others)} keys that belong to no layer and are carried along, first {others[0]!r}"


def _name(info: Mapping[str, Any]) -> str:
    return one_line(Path(info["file"]).absolute().name)


def _problems(info: Mapping[str, Any]) -> Iterator[str]:
    health = info["health"] or {}
    if health.get("nan") or health.get("inf"):
        yield f"{health['nan']} values are NaN and {health['inf']} infinite: the picture would turn black"
    if health.get("zero_layers"):
        yield f"{health['zero_layers']} of {info['layers']} layers change nothing"
    if info["incomplete"]:
        yield f"{len(info['incomplete'])} keys make no whole layer, first {info['incomplete'][0]!r}"
    if info["format"] == "peft" and not any(key.endswith(PEFT_KEY) for key in info["metadata"]):
        yield f"its strength is taken as 1: PEFT keeps it in {PEFT_KEY}, which is not beside it"
    unplaced = _unplaced(info)
    if unplaced:
        yield f"{len(unplaced)} keys of layers are not known, first {unplaced[0]!r}: it would act differently without"


def _unplaced(info: Mapping[str, Any]) -> list[str]:
    map = keymap(info["candidates"][0])
    return [key for key in info["unknown_keys"] if looks_like_layer(key) or map.owner(key)]


def _hosts(verdicts: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    plain = [host.title for host in HOSTS if _loads_well(verdicts[host.id])]
    if plain:
        yield f"Loads in full: {', '.join(plain)}"
    for host in HOSTS:
        verdict = verdicts[host.id]
        if not _loads_well(verdict):
            yield f"{host.title} {'loads it' if verdict['loads'] else 'does not load it'}: {verdict['why']}"


def _loads_well(verdict: Mapping[str, Any]) -> bool:
    """Tell whether a host loads the file and has nothing to add."""
    return bool(verdict["loads"]) and ", but " not in verdict["why"]


def _fit(against: Mapping[str, Any]) -> str:
    words = {"fits": "Fits", "partial": "Fits only in part", "wrong-architecture": "Does not fit"}[against["verdict"]]
    return f"{words} {Path(against['model']).name} ({against['matched']} of {against['total']} layers)"


def _next(info: Mapping[str, Any]) -> str:
    """Say the one thing to do, the gravest trouble first."""
    name, health, against = _name(info), info["health"] or {}, info["against"]
    if health.get("nan") or health.get("inf"):
        return "do not use it; get another copy, or an earlier state of the training"
    if _unplaced(info):
        return f"it cannot be used here yet: see the keys with 'info --keys {name}'"
    if info["incomplete"]:
        return "it cannot be used: a layer is cut short, there twice or misshapen; download or save it again"
    if info["architecture"] is None and not against:
        return f"say which model it is for: 'info {name} --against MODEL' tells whether it fits"
    if health.get("zero_layers") == info["layers"]:
        return "it has no effect; train it further, or get another copy"
    if against and against["verdict"] != "fits":
        return str(against["next"])
    badly = not all(_loads_well(info["hosts"][id]) for id in WEBUIS)
    if info["candidates"][0] in WEBUI_FAMILIES and badly and info["format"] != "kohya":
        return f"'convert {name} OUT.safetensors --to kohya' makes a file that ComfyUI, A1111 and Forge load in full"
    written = set(format_named(info["format"]).kinds) if info["format"] != "mixed" else {"lora"}
    if not _loads_well(info["hosts"]["comfyui"]) and info["format"] != "comfy" and written <= set(COMFY.kinds):
        return f"'convert {name} OUT.safetensors --to comfy' writes it in ComfyUI's own names"
    if badly and info["candidates"][0] in WEBUI_FAMILIES:
        return "load it where that is in full; the lines above say what the other programs leave out"
    return str(against["next"]) if against else "load it"
