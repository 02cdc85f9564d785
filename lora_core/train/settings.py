"""Fields of a configuration that say their own rule: type, range or choices, checked in one line each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Protocol

from ..errors import BadConfig

LARGEST = 2**64 - 1  # the widest seed that hosts give
RULE = "rule"  # a field's metadata key


class Rule(Protocol):
    """What a value must be."""

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig with one line for a value that is not."""


@dataclass(frozen=True)
class Number:
    """A finite number in a range."""

    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    above: bool = False  # low itself is out of range
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig unless the value is such a number."""
        if value is None and self.optional:
            return
        kind = "a whole number" if self.whole else "a number"
        if isinstance(value, int) and abs(value) > LARGEST:
            raise BadConfig(f"config: {name!r} has too many digits; it must be {kind} below {LARGEST:.3g}", key=name)
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if not right or not math.isfinite(value):
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {kind}", key=name)
        if value < self.low or (self.above and value == self.low):
            bound = "above" if self.above else "at least"
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {bound} {self.low:g}", key=name)
        if value > self.high:
            raise BadConfig(f"config: {name!r} is {value!r}; it must be at most {self.high:g}", key=name)


@dataclass(frozen=True)
class Kind:
    """A value of a type."""

    kind: type | tuple[type, ...]
    word: str
    optional: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig unless the value is of the type."""
        if not (isinstance(value, self.kind) or (value is None and self.optional)):
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {self.word}", key=name)


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    options: tuple[str, ...]

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig unless the value is one of them."""
        if value not in self.options:
            raise BadConfig(f"config: {name!r} is {value!r}; choose one of {', '.join(self.options)}", key=name)


@dataclass(frozen=True)
class Either:
    """A value that fits one of two rules; the second one's complaint is told."""

    first: Rule
    second: Rule

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig unless one of the rules holds."""
        try:
            self.first.check(name, value)
        except BadConfig:
            self.second.check(name, value)


@dataclass(frozen=True)
class Each:
    """A list of texts, or a table from texts to values of a rule."""

    rule: Rule
    table: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise BadConfig unless the value is such a list or table."""
        if self.table and isinstance(value, Mapping):
            for key, item in value.items():
                self.rule.check(f"{name}.{key}", item)
        elif not self.table and isinstance(value, tuple):
            for item in value:
                self.rule.check(name, item)
        else:
            kind = "a table, such as {}" if self.table else "a list, such as []"
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {kind}", key=name)


TEXT, MAYBE_TEXT = Kind(str, "a text"), Kind(str, "a text or null", optional=True)
FLAG = Kind(bool, "true or false")
ANYTHING = Kind(object, "a value")


def setting(default: Any, rule: Rule) -> Any:
    """Return a dataclass field with a rule."""
    if isinstance(default, Mapping):
        return field(default_factory=lambda: dict(default), metadata={RULE: rule})
    return field(default=default, metadata={RULE: rule})


def text(default: str) -> Any:
    """Return a field for a text."""
    return setting(default, TEXT)


def maybe_text() -> Any:
    """Return a field for a text, or None by default."""
    return setting(None, MAYBE_TEXT)


def flag(default: bool = False) -> Any:
    """Return a field for true or false."""
    return setting(default, FLAG)


def count(default: int, low: int = 0) -> Any:
    """Return a field for a whole number."""
    return setting(default, Number(low, whole=True))


def number(default: float | None, low: float = 0.0, high: float = math.inf, above: bool = False) -> Any:
    """Return a field for a number; None is allowed where it is the default."""
    return setting(default, Number(low, high, above=above, optional=default is None))


def choice(default: str, *others: str) -> Any:
    """Return a field for one of a few words, the default first."""
    return setting(default, OneOf((default, *others)))


def rules(settings: type) -> dict[str, Rule]:
    """Return each field's rule."""
    found: dict[str, Rule] = {item.name: _rule(item) for item in fields(settings)}
    return found


def _rule(item: Field[Any]) -> Rule:
    rule: Rule = item.metadata.get(RULE, TEXT)
    return rule


def plain(value: Any) -> Any:
    """Return a setting as JSON has it: tuples as lists."""
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value


def read(rule: Rule, value: Any) -> Any:
    """Return a JSON value as a field holds it: lists as tuples, and 16 as 16.0 where the rule wants a real number."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(rule, Either):
        return read(rule.second, value)
    real = isinstance(rule, Number) and not rule.whole
    if real and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST:
        return float(value)
    return value
