"""Keys of one family, generated from its tables: find the place of a key, spell the key of a place.

A key is three words: a component's prefix, a module's name and a tensor's suffix. Each word has its own table here; a
key is known when its three words are. Nothing is guessed from the shape of a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from ..lora_core.adapter import Target
from .architectures import architecture
from .formats import COMMON_SUFFIXES, FLAT_CLIP_BEGINNING, FOREIGN_SUFFIXES, PROCESSOR_ENDINGS, SUFFIXES
from .model import Architecture, Component, Module, expand, modules

FOREIGN_ENDINGS = tuple(f".{suffix}" for suffix in FOREIGN_SUFFIXES)
SAME = "same"  # the naming of a module that both layouts call alike
POSITIONAL_CLASSES = frozenset({"CrossAttention", "Attention", "GEGLU", "CLIPAttention"})  # when the header names none


@dataclass(frozen=True)
class Spelling:
    """How one layer's keys are written."""

    prefixes: str  # family of prefixes, a key of Component.prefixes
    prefix: str  # the prefix itself, without its joiner
    joiner: str
    naming: str
    suffixes: str = ""  # id of Suffixes; empty for the suffixes that every dialect shares
    name: str = ""  # PEFT adapter name, where keys carry one


@dataclass(frozen=True)
class Place:
    """What a key stands for: one tensor (`role`) of the layer at `target`."""

    target: Target
    role: str
    spelling: Spelling


@dataclass(frozen=True)
class _Prefix:
    text: str
    component: str
    spelling: Spelling


class Keymap:
    """All keys of one family. Build it through `keymap(id)`, which keeps one per family."""

    def __init__(self, family: Architecture):
        self.family = family
        self._modules = {part.id: tuple(modules(part)) for part in family.components}
        self._shapes = {
            Target(part, module.original): module.shape for part, all in self._modules.items() for module in all
        }
        self._by_name = {(part, module.original): module for part, all in self._modules.items() for module in all}
        self._prefixes = sorted(_prefixes(family), key=lambda prefix: -len(prefix.text))
        self._names: dict[tuple[str, str], dict[str, tuple[Target, str]]] = {}  # (component, joiner) -> name -> place
        for part in family.components:
            for joiner in (".", "_"):
                self._names[part.id, joiner] = self._spelled(part.id, joiner)

    def shape(self, target: Target) -> tuple[int, ...] | None:
        """Return the shape of the weight at a target in the released model, or None for a bias or an unknown module."""
        return self._shapes.get(target) if target.parameter == "weight" else None

    def targets(self, component: str, naming: str) -> dict[str, Target]:
        """Return the modules of a component by their names in one naming."""
        return {
            name: Target(component, module.original)
            for module in self._modules[component]
            if (name := _named(module, naming)) is not None
        }

    def name(self, target: Target, naming: str) -> str | None:
        """Return a module's name in one naming, or None where it has none."""
        module = self._by_name.get((target.component, target.module))
        return _named(module, naming) if module else None

    def place(self, key: str, positions: Mapping[str, frozenset[str]] | None = None) -> Place | None:
        """Return what a key stands for, or None when this family does not know it.

        Args:
            key: a tensor's name in a file.
            positions: for positional files, the classes that were counted, by component prefix.
        """
        for prefix in self._prefixes:
            if key.startswith(prefix.text):
                place = self._place_below(prefix, key[len(prefix.text) :], positions or {})
                if place:
                    return place
        return None

    def owner(self, key: str) -> tuple[Target, str] | None:
        """Return the module whose full name begins a key, and what follows it; None when no module does."""
        for prefix in self._prefixes:
            if key.startswith(prefix.text) and prefix.spelling.joiner != ":":
                names = self._names[prefix.component, prefix.spelling.joiner]
                for stem, suffix in _splits(key[len(prefix.text) :]):
                    if stem in names:
                        return names[stem][0], suffix
        return None

    def spell(
        self, target: Target, role: str, spelling: Spelling, positions: Mapping[str, frozenset[str]] | None = None
    ) -> str | None:
        """Return the key of one tensor of a layer, or None where the naming has no word for the module."""
        if spelling.naming == "positional":
            order = self._positions(target.component, (positions or {}).get(spelling.prefix))
            stem = str(order.index(target)) if target in order else None
        else:
            stem = self.name(target, spelling.naming)
        if stem is None:
            return None
        if spelling.joiner == "_":
            stem = stem.replace(".", "_")
        suffix = COMMON_SUFFIXES.get(role) or _roles(spelling.suffixes)[role].replace("{name}", spelling.name)
        dot = ":" if spelling.joiner == ":" else "."
        return f"{_beginning(spelling)}{stem}{dot}{suffix}"

    def _place_below(self, prefix: _Prefix, rest: str, positions: Mapping[str, frozenset[str]]) -> Place | None:
        if prefix.spelling.joiner == ":":
            return self._positional_place(prefix, rest, positions)
        names = self._names[prefix.component, prefix.spelling.joiner]
        for stem, suffix in _splits(rest):
            if stem not in names:
                continue
            target, naming = names[stem]
            read = _read_suffix(suffix, naming)
            if read:
                role, suffixes, name = read
                beginning = prefix.spelling
                spelling = Spelling(beginning.prefixes, beginning.prefix, beginning.joiner, naming, suffixes, name)
                return Place(_parameter(target, role), role, spelling)
        return None

    def _positional_place(self, prefix: _Prefix, rest: str, positions: Mapping[str, frozenset[str]]) -> Place | None:
        index, _, role = rest.partition(":")
        order = self._positions(prefix.component, positions.get(prefix.spelling.prefix))
        if role not in ("up", "down") or not index.isdecimal() or int(index) >= len(order):
            return None
        return Place(
            order[int(index)], role, Spelling("positional", prefix.spelling.prefix, ":", "positional", "positional")
        )

    @lru_cache(maxsize=8)  # noqa: B019 - a keymap lives as long as the process
    def _positions(self, component: str, classes: frozenset[str] | None) -> tuple[Target, ...]:
        part = self.family.component(component)
        known = self.targets(component, "diffusers")
        counted = classes or POSITIONAL_CLASSES
        return tuple(
            known[name]
            for run in (part.positional if part else ())
            for block in expand(run.block)
            for cls, module in run.layers
            if cls in counted and (name := f"{block}.{module}") in known
        )

    def _spelled(self, component: str, joiner: str) -> dict[str, tuple[Target, str]]:
        names: dict[str, tuple[Target, str]] = {}
        for naming in ("original", "diffusers", "attn-processor", "flat-clip"):
            for name, target in self.targets(component, naming).items():
                both = naming == "original" and self.name(target, "diffusers") == name
                names.setdefault(name.replace(".", joiner), (target, SAME if both else naming))
        return names


@cache
def keymap(id: str) -> Keymap:
    """Return the keymap of a family, built once."""
    return Keymap(architecture(id))


def names(id: str, component: str, naming: str = "diffusers") -> dict[str, Target]:
    """Return the modules of a family's component by their names in one naming ("original" or "diffusers")."""
    return keymap(id).targets(component, naming)


def _prefixes(family: Architecture) -> Iterator[_Prefix]:
    for part in family.components:
        for kind, texts in part.prefixes.items():
            joiner = {"kohya": "_", "positional": ":"}.get(kind, ".")
            for text in texts:
                spelling = Spelling(kind, text, joiner, "")
                yield _Prefix(_beginning(spelling), part.id, spelling)


def _beginning(spelling: Spelling) -> str:
    return f"{spelling.prefix}{spelling.joiner}" if spelling.prefix else ""


def _named(module: Module, naming: str) -> str | None:
    if naming == "original":
        return module.original
    if naming == "attn-processor":
        return next(
            (module.diffusers[: -len(a)] + b for a, b in PROCESSOR_ENDINGS if module.diffusers.endswith(a)), None
        )
    if naming == "flat-clip":
        before, after = FLAT_CLIP_BEGINNING
        return after + module.diffusers[len(before) :] if module.diffusers.startswith(before) else None
    return module.diffusers


def _splits(rest: str) -> Iterator[tuple[str, str]]:
    """Yield every way to cut a name into stem and suffix at a dot, shortest suffix first."""
    end = len(rest)
    while (end := rest.rfind(".", 0, end)) > 0:
        yield rest[:end], rest[end + 1 :]


def _read_suffix(suffix: str, naming: str) -> tuple[str, str, str] | None:
    """Return (role, id of Suffixes, adapter name) of a suffix, or None."""
    common = _common().get(suffix)
    if common:
        return common, "", ""
    found = _suffixes().get(suffix)
    if found:
        role, id = found
        return (role, id, "") if (id == "processor") == (naming == "attn-processor") else None
    head, _, tail = suffix.partition(".")
    name, _, tail = tail.rpartition(".")
    named = _suffixes().get(f"{head}.{{name}}.{tail}")
    return (*named, name) if named and name and "." not in name else None


@lru_cache(maxsize=1)
def _suffixes() -> dict[str, tuple[str, str]]:
    return {
        text: (role, group.id) for group in SUFFIXES if group.id != "positional" for role, text in group.roles.items()
    }


@lru_cache(maxsize=1)
def _common() -> dict[str, str]:
    return {text: role for role, text in COMMON_SUFFIXES.items()}


@cache
def _roles(suffixes: str) -> Mapping[str, str]:
    return next(group.roles for group in SUFFIXES if group.id == suffixes)


def _parameter(target: Target, role: str) -> Target:
    return Target(target.component, target.module, target.block, "bias") if role in ("diff_b", "b_norm") else target


def looks_like_layer(key: str) -> bool:
    """Return whether a key ends in the suffix of a layer of any algorithm, whatever the module before it."""
    if key.endswith(FOREIGN_ENDINGS):
        return True
    return any(_read_suffix(suffix, "original") for _, suffix in _splits(key))


def prefix_for(component: Component, kind: str) -> str | None:
    """Return the prefix that a family of dialects writes for a component, or None where it has none."""
    return next(iter(component.prefixes.get(kind, ())), None)
