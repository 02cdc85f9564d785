"""The types of what is known about hosts: a layer as a host sees it, and rows of facts about layers and files."""

from __future__ import annotations

from dataclasses import dataclass

from .keymap import Spelling


@dataclass(frozen=True)
class Look:
    """One layer as a host sees it."""

    family: str
    component: str
    modules: tuple[str, ...]  # its names in both layouts
    spelling: Spelling
    marks: frozenset[str]  # its algorithm and what is special about it, see `host_looks`


@dataclass(frozen=True)
class Fact:
    """What a host does with layers that look like this; an empty field fits everything."""

    reads: bool
    why: str = ""
    prefixes: tuple[str, ...] = ()  # families of prefixes
    prefix: tuple[str, ...] = ()  # the very prefix
    namings: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # endings of the module's names
    marks: tuple[str, ...] = ()  # any of them
    fatal: bool = False  # one such layer, and the host refuses the whole file

    def fits(self, look: Look) -> bool:
        """Return whether a layer looks like this row."""
        spelling = look.spelling
        return (
            (not self.families or look.family in self.families)
            and (not self.prefixes or spelling.prefixes in self.prefixes)
            and (not self.prefix or spelling.prefix in self.prefix)
            and (not self.namings or spelling.naming in self.namings)
            and (not self.suffixes or spelling.suffixes in self.suffixes)
            and (not self.components or look.component in self.components)
            and (not self.marks or not look.marks.isdisjoint(self.marks))
            and (not self.modules or any(name.endswith(self.modules) for name in look.modules))
        )


@dataclass(frozen=True)
class Caution:
    """What a host does with files that bear a mark, their own or a layer's."""

    mark: str
    why: str
    loads: bool = True
    unread: bool = False  # each such layer has a key that the host does not know
    families: tuple[str, ...] = ()  # empty: in every family


@dataclass(frozen=True)
class Host:
    """A program that loads LoRA files."""

    id: str
    title: str
    facts: tuple[Fact, ...]  # the first that fits counts
    families: tuple[str, ...] = ()  # those that it has a model of; empty: see the facts
    stranger: str = "it has no model of this family"  # what it means for the others
    cautions: tuple[Caution, ...] = ()
    patience: int | None = None  # with more unread keys than this it refuses the whole file

    def fact(self, look: Look) -> Fact:
        """Return the row that says what this host does with a layer."""
        if self.families and look.family not in self.families:
            return Fact(False, self.stranger, fatal=True)
        return next(fact for fact in self.facts if fact.fits(look))
