"""A run's folder: which file lies where, and what is the run's own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import FileProblem
from .config import TrainConfig
from .events import Event


@dataclass(frozen=True)
class Folder:
    """The files of `OUT`. One process of a run writes into it."""

    config: TrainConfig
    writes: bool = True

    @property
    def path(self) -> Path:
        """The folder itself."""
        return Path(self.config.out)

    @property
    def result(self) -> Path:
        """The trained adapter."""
        return self.path / f"{self.config.name}.safetensors"

    @property
    def state(self) -> Path:
        """The states to resume from."""
        return self.path / "state"

    def numbered(self, step: int) -> Path:
        """Return the adapter of a checkpoint."""
        return self.path / f"{self.config.name}-{step:06d}.safetensors"

    def preview(self, step: int) -> Path:
        """Return the previews of a step."""
        return self.path / "samples" / f"{self.config.name}-{step:06d}.png"

    def previews(self) -> list[Path]:
        """Return all previews, the oldest first."""
        return sorted((self.path / "samples").glob(f"{self.config.name}-[0-9]*.png"))

    def open(self, step: int, resume: bool) -> None:
        """Make the folder; raises FileProblem for files that the run would replace and has not written."""
        for path in self._foreign(step, resume):
            raise FileProblem(f"{path}: is there already; move it away, or choose another 'out'", file=path)
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "stop").unlink(missing_ok=True)  # meant for a run that has ended
            self._end_line()
        except OSError as error:
            text = f"{self.path}: cannot be made ({error.strerror}); choose another 'out'"
            raise FileProblem(text, file=self.path) from error

    def _foreign(self, step: int, resume: bool) -> Iterator[Path]:
        """Yield the files in the way from a step on; a resumed run owns result and previews."""
        config = self.config
        every = config.checkpoint_every
        planned = [self.numbered(n) for n in range(step // every * every + every, config.steps, every)] if every else []
        if not resume:
            every = config.sample_every
            turns = range(0, config.steps + 1, every) if every else range(0)
            planned += [self.result, *map(self.preview, turns)]
        return (path for path in planned if path.exists())

    def log(self, event: Event) -> bool:
        """Append an event to `log.jsonl`; returns False where the disk takes no more."""
        if not self.writes:
            return True
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(event.data()) + "\n")
        except OSError:
            return False
        return True

    def _end_line(self) -> None:
        """End the log's last line, which a run that was killed may have cut off."""
        log = self.path / "log.jsonl"
        if log.is_file() and log.stat().st_size:
            with log.open("rb+") as stream:
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    stream.write(b"\n")

    def asked_to_stop(self) -> bool:
        """Say whether a file `stop` is there, and remove it."""
        file = self.path / "stop"
        found = self.writes and file.exists()
        if found:
            file.unlink(missing_ok=True)
        return found
