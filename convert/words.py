"""Trigger words and base model, from whatever a trainer wrote into the header or a tool laid beside the file.

Every source is a row: where it lies, how it is taken apart. A value of the wrong type counts as absent.
Sources of the names: sd-scripts (`ss_*`), the ModelSpec metadata (`modelspec.*`), A1111's `<stem>.json`, the CivitAI
helper's `<stem>.civitai.info`, LoRA Manager's `<stem>.metadata.json`, PEFT's and Diffusers' configurations, the hub's
model cards (`README.md` with a head of `key: value` lines).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .scales import DIFFUSERS_KEY, PEFT_KEY

HEADER = ""  # the source is the file's own header
CARD = "README.md"  # a model card in the file's folder
SIDECARS = (".json", ".civitai.info", ".metadata.json")  # what replaces the file's suffix
MOST_TAGS = 5  # of a tag count, at most so many become trigger words
LARGEST_SIDECAR = 8 << 20  # bytes; a larger one is something else
REPEATS = re.compile(r"\d+_(.+)")  # sd-scripts' picture folders: "10_sks dog"
PAIR = re.compile(r"(\w+):\s*(.*?)\s*")  # a line of a model card's head
LISTED = re.compile(r"\s*-\s+(.*?)\s*")
UNSEEN = ("Cc", "Cs")  # control characters, and halves of characters
REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # letters that turn the ones after them round
NOTHING = frozenset({"", "none", "null", "unknown", "undefined", "other"})


@dataclass(frozen=True)
class Source:
    """Where a value lies and how words come out of it."""

    sidecar: str  # one of SIDECARS, HEADER or CARD
    path: tuple[str, ...]  # keys from the top; "*" for each item of a list or table, "$" for each key of a table
    read: Callable[[Any], Iterator[str]]


def _whole(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value


def _listed(value: Any) -> Iterator[str]:
    yield from value.split(",") if isinstance(value, str) else ()


def _folder(value: Any) -> Iterator[str]:
    found = REPEATS.fullmatch(value) if isinstance(value, str) else None
    if found:
        yield found.group(1)


def _frequent(value: Any) -> Iterator[str]:
    """Yield the tags that are at least half as frequent as the most frequent one, over all picture folders."""
    counts: Counter[str] = Counter()
    for tags in value.values() if isinstance(value, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if isinstance(count, (int, float)) and not isinstance(count, bool) and count > 0:
                counts[tag.strip()] += count  # type: ignore[assignment]
    most = max(counts.values(), default=0)
    yield from (tag for tag, count in counts.most_common(MOST_TAGS) if 2 * count >= most)


def _last_part(value: Any) -> Iterator[str]:
    """Yield a model's name; of a full path its last part, since the folders are someone's private disk."""
    if isinstance(value, str):
        full = value.startswith(("/", "~", "\\")) or PureWindowsPath(value).drive
        yield (PureWindowsPath(value).name if "\\" in value else PurePosixPath(value).name) if full else value


TRIGGERS: tuple[Source, ...] = (
    Source(HEADER, ("modelspec.trigger_phrase",), _whole),
    Source(CARD, ("instance_prompt", "*"), _whole),
    Source(".json", ("activation text",), _listed),
    Source(".civitai.info", ("trainedWords", "*"), _whole),
    Source(".metadata.json", ("civitai", "trainedWords", "*"), _whole),
    Source(".metadata.json", ("trainedWords", "*"), _whole),
    Source(HEADER, ("trigger_word",), _listed),
    Source(HEADER, ("trigger_words",), _listed),
    Source(HEADER, ("instance_prompt",), _whole),
    Source(HEADER, ("ss_datasets", "*", "subsets", "*", "class_tokens"), _listed),
    Source(HEADER, ("ss_dataset_dirs", "$"), _folder),
    Source(HEADER, ("ss_tag_frequency",), _frequent),
)
BASE_MODELS: tuple[Source, ...] = (
    Source(HEADER, ("ss_sd_model_name",), _last_part),
    Source(HEADER, ("base_model",), _last_part),
    Source(CARD, ("base_model", "*"), _whole),
    Source(HEADER, ("modelspec.base_model",), _last_part),
    Source(HEADER, (PEFT_KEY, "base_model_name_or_path"), _last_part),
    Source(HEADER, (DIFFUSERS_KEY, "unet.base_model_name_or_path"), _last_part),
    Source(HEADER, (DIFFUSERS_KEY, "transformer.base_model_name_or_path"), _last_part),
    Source(".civitai.info", ("baseModel",), _whole),
    Source(".metadata.json", ("base_model",), _whole),
    Source(HEADER, ("ss_base_model_version",), _whole),
    Source(HEADER, ("modelspec.architecture",), _whole),
    Source(".json", ("sd version",), _whole),
)


def trigger_words(metadata: Mapping[str, str], path: str | Path | None = None) -> list[str]:
    """Return the words that call a LoRA, the most explicit sources first, each once.

    Args:
        metadata: the file's header.
        path: the file, for what lies beside it.
    """
    words: dict[str, str] = {}
    for word in _values(TRIGGERS, metadata, path):
        words.setdefault(word.casefold(), word)
    return list(words.values())


def base_model(metadata: Mapping[str, str], path: str | Path | None = None) -> str | None:
    """Return the name of the model that a LoRA was trained on, or None when nothing says so."""
    return next(_values(BASE_MODELS, metadata, path), None)


def _values(sources: Sequence[Source], metadata: Mapping[str, str], path: str | Path | None) -> Iterator[str]:
    tables: dict[str, Any] = {HEADER: metadata}
    if path is not None:
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        tables[CARD] = _card(folder / CARD)
    if path is not None and not Path(path).is_dir():
        tables.update({suffix: _sidecar(Path(path).with_suffix(suffix)) for suffix in SIDECARS})
    for source in sources:
        for value in _below(tables.get(source.sidecar), source.path):
            for word in source.read(value):
                clean = one_line(word).strip(",").strip()
                if clean.casefold() not in NOTHING:
                    yield clean


def one_line(text: str) -> str:
    r"""Return text as one line to be read: whitespace collapsed, and without what would steer a terminal.

    >>> one_line(" ink\n  Next: run it\x1b[2J")
    'ink Next: run it[2J'
    """
    kept = (letter for letter in " ".join(text.split()) if unicodedata.category(letter) not in UNSEEN)
    return "".join(letter for letter in kept if letter not in REORDERING)


def _below(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield what lies at a path; text on the way that is JSON is opened."""
    value = _opened(value)
    if not path:
        yield value
        return
    step, rest = path[0], path[1:]
    if step == "$":
        yield from value if isinstance(value, dict) else ()
        return
    if step == "*":
        items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    else:
        items = [value[step]] if isinstance(value, Mapping) and step in value else []
    for item in items:
        yield from _below(item, rest)


def _opened(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _sidecar(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_SIDECAR:
            return None
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _card(path: Path) -> dict[str, list[str]]:
    """Return the head of a model card: each key with its value, or with the items of the list below it."""
    try:
        if path.stat().st_size > LARGEST_SIDECAR:
            return {}
        first, *lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines if first.strip() == "---" else ():
        if line.strip() == "---":
            return found
        item = LISTED.fullmatch(line)
        pair = PAIR.fullmatch(line)
        if item and key:
            found[key].append(_unquoted(item.group(1)))
        elif pair:
            key = pair.group(1)
            found[key] = [_unquoted(pair.group(2))] if pair.group(2) else []
    return {}


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
