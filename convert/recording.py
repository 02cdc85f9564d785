"""What is hashed while something else goes on, for hashing gives the lock away: inputs for the recipe, and results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Generic, TypeVar

from ..lora_core.adapter import Adapter
from ..lora_core.errors import LorasmithError
from ..lora_core.ops.recipe import Recipe, Source, Tree, leaves, recorded
from .detect import Match

T = TypeVar("T")


class Later(Generic[T]):
    """A value that is being worked out in a thread of its own, from now on."""

    def __init__(self, work: Callable[[], T]):
        self._work = work
        self._found: list[T] = []
        self._thread = Thread(target=self._run, name="lorasmith-hashing", daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Return the value, once it is there; what the work refused is raised here, by doing it again."""
        self._thread.join()
        return self._found[0] if self._found else self._work()

    def _run(self) -> None:
        with suppress(LorasmithError):
            self._found.append(self._work())


class Recording:
    """The recipe of a result that is about to be written; hashing its inputs begins at once, or began already.

    A leaf of the tree may bring along its digest as `digest`, a Later.
    """

    def __init__(self, tree: Tree, format: str | None, like: int | None, dtype: str):
        self._tree = tree
        self._written = Recipe(tree, format, like, dtype)
        self._digests = Later(self._hashed)

    @classmethod
    def of(cls, adapter: Adapter, format: str | Match, dtype: str) -> Recording | None:
        """Begin the recipe of an adapter that is to be written; None where nobody knows where it is from.

        A Match is noted as the number of the input that is spelled so.
        """
        if adapter.origin is None:
            return None
        if isinstance(format, str):
            return cls(adapter.origin, format, None, dtype)
        spelled = (number for number, leaf in enumerate(leaves(adapter.origin)) if leaf.get("match") is format)
        like = next(spelled, None)
        return cls(adapter.origin, format.format if like is None else None, like, dtype)

    def recipe(self, model_hash: str | None = None) -> Recipe:
        """Return the recipe, once all inputs are hashed; `model_hash` is the SHA-256 of the tensors, where known."""
        return replace(self._written, tree=recorded(self._tree, self._digests.result()), tensors=model_hash)

    def _hashed(self) -> dict[Source, str | None]:
        found: dict[Source, str | None] = {}
        for leaf in leaves(self._tree):
            source = leaf.get("source")
            if source is not None and source not in found:
                found[source] = leaf["digest"].result() if "digest" in leaf else source.digest()
        return found
