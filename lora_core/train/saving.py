"""What a run leaves on the disk: its result, adapters on the way, and the states to resume from."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapter import Adapter
from ..errors import FileProblem
from . import checkpoint
from .checkpoint import Identity
from .folder import Folder
from .state import State

Write = Callable[[Adapter, Path, Mapping[str, str]], object]  # writes an adapter file, replacing an older one


@dataclass(eq=False)
class Saving:
    """Writes one run's files; `facts` survive a resume beside the state."""

    folder: Folder
    state: State
    identity: Identity
    write: Write
    architecture: str
    described: Callable[[], Mapping[str, str]]  # the adapter file's header
    facts: dict[str, Any] = field(default_factory=dict)
    saved: int = 0  # step of the last save
    lost: bool = False  # the last one failed, and that was said

    def restore(self, resume: bool) -> None:
        """Bring the newest state back, or refuse to overwrite one; raises FileProblem and BadConfig."""
        folder = self.folder.state
        if resume:
            self.facts = checkpoint.restore(folder, self.state, self.identity)
            self.saved = self.state.step
        elif checkpoint.steps(folder):
            raise FileProblem(f"{folder}: is there already; resume it, or choose another 'out'", file=folder)
        self.folder.open(self.state.step, resume)

    def checkpoint(self) -> Path:
        """Write the state and a usable adapter, drop the run's oldest adapters, and return the new one's path.

        The state goes first: it names the adapters that are the run's own, whenever the run is killed. Raises
        FileProblem where the disk refuses; then what was there before is there still.
        """
        step, keep = self.state.step, self.folder.config.keep
        path, ours = self.folder.numbered(step), [*self.facts.get("checkpoints", ()), step]
        self.facts["checkpoints"] = ours[-keep:]  # all of them when it is 0
        self._save_state()
        self._write(path)
        for old in ours[: -len(self.facts["checkpoints"])]:
            self.folder.numbered(old).unlink(missing_ok=True)
        return path

    def result(self) -> None:
        """Write result and state unless they are there, or unfit: half a step, or values that are not finite.

        Raises FileProblem where the disk refuses; the adapter then lies in the system's folder for temporary files, if
        that takes it.
        """
        new = self.state.step > self.saved or (self.state.step > 0 and not self.folder.result.exists())
        if not (new and self.state.whole and self.state.finite()) or self.lost or not self.folder.writes:
            return
        written = False
        try:
            self._write(self.folder.result)
            written = True
            self._save_state()
        except FileProblem as error:
            self.lost = True
            where = "the result is there, the state to resume from is not" if written else self._elsewhere()
            raise FileProblem(f"{error.message}; {where}", file=error.file) from error

    def went_back(self, step: int) -> None:
        """Remove what was written after the step that the state has gone back to, so that a resume begins there."""
        self.saved = min(self.saved, step)
        ours: list[int] = self.facts.get("checkpoints", [])
        self.facts["checkpoints"] = [at for at in ours if at <= step]
        if self.folder.writes:
            checkpoint.drop_after(self.folder.state, step)
            for late in (at for at in ours if at > step):
                self.folder.numbered(late).unlink(missing_ok=True)

    def _elsewhere(self) -> str:
        """Write the adapter to where there may be space, and say where it is."""
        path = Path(tempfile.gettempdir()) / f"lorasmith-{self.folder.result.stem}-{self.state.step:06d}.safetensors"
        try:
            self._write(path)
        except FileProblem:
            return "the last steps are lost; free some space and resume from the last checkpoint"
        return f"the trained adapter is {path}; move it away, and free some space"

    def _save_state(self) -> None:
        if self.folder.writes:
            keep = self.folder.config.keep
            checkpoint.save(self.folder.state, self.state, self.identity, self.facts, keep)
        self.saved = self.state.step

    def _write(self, path: Path) -> None:
        if not self.folder.writes:
            return
        try:
            self.write(self.state.adapter(self.architecture), path, self.described())
        except OSError as error:
            raise FileProblem(f"{path}: cannot be written ({error.strerror}); free some space", file=path) from error
