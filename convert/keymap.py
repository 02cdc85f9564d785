"""Keys of one family, generated from its tables: find the place of a key, spell the key of a place.

A key is three words: a component's prefix, a module's name and a tensor's suffix. Each word has its own table here; a
key is known when its three words are. Nothing is guessed from the shape of a name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from ..lora_core.adapter import Target
from .architectures import architecture
from .formats import NAMINGS
from .model import Architecture, Component, Module, expand, modules, renamed
from .suffixes import BIASES, COMMON, MODULATION, Suffix, readings, spelled

SAME = "same"  # the naming of a module that both layouts call alike
POSITIONAL_CLASSES = frozenset(  # when the header names none
    {"CrossAttention", "Attention", "GEGLU", "CLIPAttention", "MultiheadAttention"}
)
DIFFUSERS_FIRST = ("diffusers", "peft")  # families of prefixes where a name that both layouts have is Diffusers'
JOINERS = {"kohya": "_", "oft": "_", "onetrainer": "_", "positional": ":"}  # by family of prefixes; all others: a dot


@dataclass(frozen=True)
class Spelling:
    """How one layer's keys are written."""

    prefixes: str  # family of prefixes, a key of Component.prefixes
    prefix: str  # the prefix itself, without its joiner
    joiner: str
    naming: str
    suffixes: str = COMMON  # id of Suffixes; COMMON for the suffixes that go with every dialect
    name: str = ""  # PEFT adapter name, where keys carry one


@dataclass(frozen=True)
class Place:
    """What a key stands for: one tensor (`role`) of the layer at `target`."""

    target: Target
    role: str
    spelling: Spelling
    blocks: int = 0  # where the name holds several row blocks, from target.block on: how many


@dataclass(frozen=True)
class Name:
    """What a module's name stands for."""

    target: Target
    naming: str
    blocks: int = 0  # as in Place


@dataclass(frozen=True)
class _Prefix:
    text: str
    component: str
    spelling: Spelling


class Keymap:
    """All keys of one family. Build it through `keymap(id)`, which keeps one per family."""

    def __init__(self, family: Architecture):
        self.family = family
        self.namings = {naming.id: naming for naming in (*NAMINGS, *family.namings)}
        self._modules = {part.id: {module.original: module for module in modules(part)} for part in family.components}
        self._prefixes = sorted(_prefixes(family), key=lambda prefix: -len(prefix.text))
        self._named: dict[tuple[str, str, str], dict[str, Name]] = {}  # (component, joiner, layout that goes first)
        self._spelled: dict[tuple[str, str], dict[Target, str]] = {}  # (component, naming) -> target -> name

    @property
    def spellings(self) -> tuple[Spelling, ...]:
        """Every prefix that the family's keys begin with, as a spelling without a naming."""
        return tuple(prefix.spelling for prefix in self._prefixes)

    def module(self, target: Target) -> Module | None:
        """Return the module of a target, or None where the family has none."""
        return self._modules.get(target.component, {}).get(target.module)

    def modules(self, component: str) -> Mapping[str, Module]:
        """Return a component's modules by original name."""
        return self._modules[component]

    def shape(self, target: Target) -> tuple[int, ...] | None:
        """Return the shape of the weight at a target in the released model, or None for a bias or an unknown module."""
        module = self.module(target)
        if module is None or target.parameter != "weight":
            return None
        if target.block is None:
            return module.shape
        return (module.blocks[target.block], *module.shape[1:]) if target.block < len(module.blocks) else None

    def targets(self, component: str, naming: str) -> dict[str, Target]:
        """Return what the names of a component's modules in one naming stand for; of several row blocks, the first."""
        return {name: target for name, target, _ in self._names_in(component, naming)}

    def name(self, target: Target, naming: str) -> str | None:
        """Return a module's name in one naming, or None where it has none."""
        key = (target.component, naming)
        if key not in self._spelled:
            known = self._names_in(*key) if target.component in self._modules else ()
            self._spelled[key] = {place: name for name, place, blocks in known if not blocks}
        return self._spelled[key].get(replace(target, parameter="weight") if target.parameter != "weight" else target)

    def words(self, target: Target) -> tuple[str, list[str]]:
        """Return what a header calls a target: its component's word in Diffusers, and its names in both layouts."""
        part = self.family.component(target.component)
        names = (self.name(target, layout) for layout in ("diffusers", "original"))
        return (prefix_for(part, "diffusers") if part else None) or "", [name for name in names if name is not None]

    def place(self, key: str, positions: Mapping[str, frozenset[str]] | None = None) -> Place | None:
        """Return what a key stands for, or None when this family does not know it.

        Args:
            key: a tensor's name in a file.
            positions: for positional files, the classes that were counted, by component prefix.
        """
        for stem, suffix in readings(key):
            stems = self._stems(stem, suffix.role == MODULATION)
            found = self._found(stems, suffix) if stems else None
            if found:
                return found
        return self._positional_place(key, positions or {}) if ":" in key else None

    def owner(self, key: str) -> tuple[Target, str] | None:
        """Return the module whose full name begins a key, and what follows it; None when no module does."""
        end = len(key)
        while (end := key.rfind(".", 0, end)) > 0:
            for _, name in self._stems(key[:end]):
                return name.target, key[end + 1 :]
        return None

    def spell(
        self,
        target: Target,
        role: str,
        spelling: Spelling,
        positions: Mapping[str, frozenset[str]] | None = None,
        block: int | None = None,
    ) -> str | None:
        """Return the key of one tensor of a layer, or None where the dialect has no word for its module or its role."""
        if spelling.naming == "positional":
            order = self.counted(target.component, (positions or {}).get(spelling.prefix))
            stem = str(order.index(target)) if target in order else None
        else:
            stem = self.name(target, spelling.naming)
        suffix = spelled(spelling.suffixes, role, spelling.name, block)
        if stem is None or suffix is None:
            return None
        if role == MODULATION:
            stem = stem.rpartition(".")[0]
        if spelling.joiner == "_":
            stem = stem.replace(".", "_")
        dot = ":" if spelling.joiner == ":" else "."
        return f"{_beginning(spelling)}{stem}{dot}{suffix}"

    def _found(self, stems: Iterable[tuple[_Prefix, Name]], suffix: Suffix) -> Place | None:
        group = suffix.group
        if group.families and self.family.id not in group.families:
            return None
        for prefix, name in stems:
            if group.prefixes and prefix.spelling.prefixes not in group.prefixes:
                continue
            naming = self.namings.get(name.naming)
            wanted = naming.suffixes if naming else ()
            if (group.named or wanted) and group.id not in wanted and (group.id != COMMON or group.named):
                continue
            start = prefix.spelling
            spelling = Spelling(start.prefixes, start.prefix, start.joiner, name.naming, group.id, suffix.name)
            target = name.target
            if suffix.role in BIASES:
                target = replace(target, parameter="bias")
            if suffix.block is not None:
                module = self.module(target)
                if module is None or suffix.block >= len(module.blocks):
                    return None
                target = replace(target, block=suffix.block)
            return Place(target, suffix.role, spelling, name.blocks)
        return None

    @lru_cache(maxsize=16384)  # noqa: B019 - the tensors of a layer have one stem
    def _stems(self, stem: str, modulation: bool = False) -> tuple[tuple[_Prefix, Name], ...]:
        """Return every way to read what stands before a suffix as a prefix and a module's name."""
        return tuple(self._ways(stem, modulation))

    def _ways(self, stem: str, modulation: bool) -> Iterator[tuple[_Prefix, Name]]:
        for prefix in self._prefixes:
            if not stem.startswith(prefix.text) or prefix.spelling.joiner == ":":
                continue
            joiner = prefix.spelling.joiner
            first = "diffusers" if prefix.spelling.prefixes in DIFFUSERS_FIRST else "original"
            known = self._named.get((prefix.component, joiner, first))
            if known is None:
                known = self._named[prefix.component, joiner, first] = self._joined(prefix.component, joiner, first)
            rest = stem[len(prefix.text) :]
            if modulation:
                rest = f"{rest}{joiner}modulation" if rest else "modulation"
            name = known.get(rest)
            if name:
                yield prefix, name

    def _positional_place(self, key: str, positions: Mapping[str, frozenset[str]]) -> Place | None:
        component, index, role = (key.split(":") + ["", ""])[:3]
        prefix = next((p for p in self._prefixes if p.spelling.joiner == ":" and p.spelling.prefix == component), None)
        if prefix is None or role not in ("up", "down") or not index.isdecimal():
            return None
        order = self.counted(prefix.component, positions.get(component))
        if int(index) >= len(order):
            return None
        return Place(order[int(index)], role, Spelling("positional", component, ":", "positional", "positional"))

    @lru_cache(maxsize=8)  # noqa: B019 - a keymap lives as long as the process
    def counted(self, component: str, classes: frozenset[str] | None = None) -> tuple[Target, ...]:
        """Return a component's layers in the order in which positional files number them; of these classes alone."""
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

    def _joined(self, component: str, joiner: str, first: str) -> dict[str, Name]:
        """Return all names of a component's modules, in every naming, as they stand behind a prefix."""
        names: dict[str, Name] = {}
        both = set(self.targets(component, "original").items()) & set(self.targets(component, "diffusers").items())
        layouts = ("original", "diffusers") if first == "original" else ("diffusers", "original")
        for naming in (*layouts, *self.namings):
            for name, target, blocks in self._names_in(component, naming):
                known = SAME if naming in layouts and (name, target) in both else naming
                names.setdefault(name.replace(".", joiner), Name(target, known, blocks))
        return names

    def _names_in(self, component: str, naming: str) -> Iterator[tuple[str, Target, int]]:
        """Yield (name, target, how many row blocks from the target's on) of one naming."""
        rule = self.namings.get(naming)
        layout = rule.of if rule else naming
        for module in self._modules[component].values():
            for name, target in _in_layout(component, module, layout):
                if rule is None:
                    yield name, target, 0
                elif (changed := renamed(name, rule)) is not None:
                    new, blocks = changed
                    yield new, (replace(target, block=0) if blocks else target), blocks


@cache
def keymap(id: str) -> Keymap:
    """Return the keymap of a family, built once."""
    return Keymap(architecture(id))


def names(id: str, component: str, naming: str = "diffusers") -> dict[str, Target]:
    """Return the modules of a family's component by their names in one naming ("original" or "diffusers")."""
    return keymap(id).targets(component, naming)


def layout_of(family: Architecture, naming: str) -> str:
    """Return the layout ("original" or "diffusers") that a naming belongs to; names alike in both are original."""
    rule = next((rule for rule in (*NAMINGS, *family.namings) if rule.id == naming), None)
    return rule.of if rule else "diffusers" if naming in ("diffusers", "positional") else "original"


def prefix_for(component: Component, kind: str) -> str | None:
    """Return the prefix that a family of dialects writes for a component, or None where it has none."""
    return next(iter(component.prefixes.get(kind, ())), None)


def _in_layout(component: str, module: Module, layout: str) -> Iterator[tuple[str, Target]]:
    if layout == "original":
        yield module.original, Target(component, module.original)
    elif not module.blocks:
        yield module.diffusers[0], Target(component, module.original)
    else:
        for block, name in enumerate(module.diffusers):
            yield name, Target(component, module.original, block)


def _prefixes(family: Architecture) -> Iterator[_Prefix]:
    for part in family.components:
        for kind, texts in part.prefixes.items():
            for text in texts:
                spelling = Spelling(kind, text, JOINERS.get(kind, "."), "")
                yield _Prefix(_beginning(spelling), part.id, spelling)


def _beginning(spelling: Spelling) -> str:
    return f"{spelling.prefix}{spelling.joiner}" if spelling.prefix else ""


def grouped(places: Mapping[str, Place]) -> dict[Target, dict[str, str]]:
    """Return the keys of each layer: target -> role -> key.

    Kohya's OFT stores one constraint beside the blocks of a split weight: it belongs to each of them.
    """
    layers: dict[Target, dict[str, str]] = defaultdict(dict)
    for key, place in places.items():
        layers[place.target][place.role] = key
    for target in [target for target, roles in layers.items() if target.block is None and set(roles) == {"alpha"}]:
        parts = [part for part in layers if part.block is not None and replace(part, block=None) == target]
        for part in parts:
            layers[part].setdefault("alpha", layers[target]["alpha"])
        if parts:
            del layers[target]
    return dict(layers)
