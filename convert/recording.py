"""A recipe while it is being made: the inputs are hashed beside the computation, for hashing gives the lock away."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread

from ..lora_core.adapter import Adapter
from ..lora_core.ops.recipe import Recipe, Source, Tree, leaves, recorded
from .detect import Match


class Recording:
    """The recipe of a result that is about to be written; hashing its inputs begins at once."""

    def __init__(self, tree: Tree, format: str | None, like: int | None, dtype: str):
        self._tree = tree
        self._written = Recipe(tree, format, like, dtype)
        self._digests: dict[Source, str | None] = {}
        self._thread = Thread(target=self._hash, name="lorasmith-hashing", daemon=True)
        self._thread.start()

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
        self._thread.join()
        return replace(self._written, tree=recorded(self._tree, self._digests), tensors=model_hash)

    def _hash(self) -> None:
        for leaf in leaves(self._tree):
            source = leaf.get("source")
            if source is not None and source not in self._digests:
                self._digests[source] = source.digest()
