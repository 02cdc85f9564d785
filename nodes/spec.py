"""What a node is, as data: its sockets, its widgets, the function behind it. Nothing here knows ComfyUI's classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ADAPTER = "LORASMITH_ADAPTER"  # an Adapter of lora_core
LORA_MODEL = "LORA_MODEL"  # the host's own type: a state dict
CATEGORY = "Lorasmith"


@dataclass(frozen=True)
class Socket:
    """An input that is wired: MODEL, CLIP, an adapter."""

    id: str
    type: str
    tooltip: str
    optional: bool = False


@dataclass(frozen=True)
class Number:
    """A number widget; whole where `step` is an int."""

    id: str
    default: float
    low: float
    high: float
    step: float
    tooltip: str
    advanced: bool = False


@dataclass(frozen=True)
class Switch:
    """A yes-or-no widget."""

    id: str
    default: bool
    tooltip: str
    advanced: bool = False


@dataclass(frozen=True)
class Text:
    """A text widget."""

    id: str
    default: str
    tooltip: str
    multiline: bool = False
    advanced: bool = False


@dataclass(frozen=True)
class Choice:
    """A drop-down list; `options` may be a function, asked anew whenever the host describes the node."""

    id: str
    options: Sequence[str] | Callable[[], Sequence[str]]
    tooltip: str
    default: str | None = None
    advanced: bool = False

    def listed(self) -> list[str]:
        """Return the options as they are now."""
        return list(self.options() if callable(self.options) else self.options)


Input = Socket | Number | Switch | Text | Choice


@dataclass(frozen=True)
class Output:
    """One output, by the host's type name."""

    id: str
    type: str
    tooltip: str


@dataclass(frozen=True)
class Result:
    """A node's outputs, with a text that the host also shows and keeps in the history."""

    values: tuple[Any, ...]
    text: str = ""


@dataclass(frozen=True)
class Node:
    """A node: what a person sees of it, and `run`, which gets the inputs by name and returns a Result."""

    id: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    run: Callable[..., Result]
    aliases: tuple[str, ...] = ()  # further words under which the search finds it
    fingerprint: Callable[..., Any] | None = None  # a value that changes when the node has to run again
    terminal: bool = False  # runs even if nothing is wired to its outputs
