"""Watching a run for losses that leave all bounds, and the way back to before they did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from torch import Tensor

from .state import State

RECENT = 10  # losses whose median is looked at
CALM = 20  # losses before them, at least, that say what is usual
FACTOR = 5.0  # of the highest loss so far
EVERY = 25  # steps between two snapshots


@dataclass
class Watch:
    """Tells when training has come apart: most of the last losses are far above the highest one before them.

    Single losses vary by a factor of a hundred with their timestep, and with some weightings by more. So they are
    measured against the highest one, and a few of them say nothing.
    """

    recent: list[float] = field(default_factory=list)
    highest: float = 0.0  # of the losses before the recent ones
    seen: int = 0  # how many those are

    def follow(self, loss: float) -> bool:
        """Take a step's loss; return True when the run has come apart.

        >>> watch = Watch()
        >>> any(watch.follow(loss) for loss in [0.1, 1.0] * 20), any(watch.follow(9.0) for _ in range(10))
        (False, True)
        """
        self.recent.append(loss)
        if len(self.recent) > RECENT:
            self.highest, self.seen = max(self.highest, self.recent.pop(0)), self.seen + 1
        return self.seen >= CALM and median(self.recent) > FACTOR * self.highest

    @property
    def calm(self) -> bool:
        """Whether no recent loss is above what was usual, so that the weights are worth going back to."""
        return not self.seen or max(self.recent, default=0.0) <= FACTOR * self.highest

    def facts(self) -> dict[str, Any]:
        """Return what survives a resume, JSON-ready."""
        return {"recent": list(self.recent), "highest": self.highest, "seen": self.seen}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Watch:
        """Return the watch that `facts` came from; an empty mapping begins anew."""
        return cls(list(facts.get("recent", [])), facts.get("highest", 0.0), facts.get("seen", 0))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state in memory: what training changed, a few megabytes."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.facts["step"])

    @classmethod
    def of(cls, state: State) -> Snapshot:
        """Return a copy of the state, on the CPU."""
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.tensors().items()}
        return cls(tensors, state.facts())

    def back(self, state: State) -> None:
        """Bring the state back to what it was, bit for bit."""
        state.restore(self.tensors, self.facts)
        state.optimizer.zero_grad(set_to_none=True)
        state.whole = True


@dataclass
class Guard:
    """Keeps a way back: the last state that is known to be good, because losses after it were as before."""

    good: Snapshot
    watch: Watch = field(default_factory=Watch)
    coming: Snapshot | None = None  # not known to be good yet

    def follow(self, state: State, loss: float) -> bool:
        """Take a finished step's loss, which the state before it gave; return True when the run has come apart."""
        apart = self.watch.follow(loss)
        if self.watch.calm and self.coming is not None:
            self.good, self.coming = self.coming, None
        if self.watch.calm and state.step - self.good.step >= min(EVERY, max(1, state.step // 4)):
            self.coming = Snapshot.of(state)
        return apart

    def back(self, state: State) -> int:
        """Bring the state back to the last good one, and return its step."""
        self.good.back(state)
        self.watch, self.coming = Watch(), None
        return self.good.step
