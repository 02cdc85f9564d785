"""A whole run: folders, events, checkpoints, previews, stopping and resuming, around the loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..adapter import Adapter
from ..errors import BadConfig, FileProblem, LorasmithError
from . import checkpoint, class_pictures
from .cache import Batch, open_cache
from .config import TrainConfig
from .data import Picture, View, plan, tag_counts, unseen, usable
from .inject import Weights, weights_like
from .loop import Step, train
from .objective import Objective
from .protocols import Backend
from .state import State
from .validation import Validation

Write = Callable[[Adapter, Path, Mapping[str, str]], object]  # writes an adapter file, replacing an older one
Stop = Callable[[], bool]
Cuts = Callable[[str], bool]  # says whether a caption is longer than the model reads


@dataclass(frozen=True)
class Event:
    """One thing that happened; `data()` is a line of the log."""

    event: str  # class_picture | start | step | sample | checkpoint | warning | done | stopped | error
    step: int  # finished steps
    steps: int
    loss: float | None = None
    lr: float | None = None
    seconds: float | None = None  # that this step took; in "done" and "stopped", the run since its start event
    eta: float | None = None  # seconds still to go
    path: str | None = None
    message: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return the event as JSON-ready data, without what is not there."""
        known = {key: value for key, value in asdict(self).items() if key != "more" and value is not None}
        return {**known, **self.more}


def never() -> bool:
    """Return False: nobody asks to stop."""
    return False


def reads_all(caption: str) -> bool:
    """Return False: no caption is cut."""
    return False


def run(
    config: TrainConfig,
    backend: Backend,
    write: Write,
    resume: bool = False,
    stop: Stop = never,
    weights: Weights = weights_like,
    cuts: Cuts = reads_all,
    start: Adapter | None = None,
) -> Iterator[Event]:
    """Train as configured and yield events; each is also a line of `OUT/log.jsonl`.

    The run ends early, after the step in hand and with everything saved, when `stop()` returns True, when a file
    `OUT/stop` appears (it is removed), when the iterator is closed, or on an error; then `resume` goes on bit for bit.
    Captions that `cuts` says True to are warned of. `start` is an adapter to go on from, its layers in the pieces that
    the backend's modules have. No file is replaced or removed that the run did not write.
    Raises LorasmithError for input that is at fault; once the run has begun, after an "error" event.
    """
    for path in class_pictures.make(config, backend.sample):
        yield Event("class_picture", 0, config.steps, path=str(path))
        if stop():
            yield Event("stopped", 0, config.steps, message="class pictures are still missing; start again to go on")
            return
    job = _Job(config, backend, write, weights, cuts, start)
    job.prepare(resume)
    events = job.events(stop)
    try:
        for event in events:
            job.log(event)
            yield event
    except LorasmithError as error:
        event = job.event("error", message=error.message, more={"error": error.details()})
        job.log(event)
        yield event
        raise
    except GeneratorExit:  # the caller closed the iterator: the events below save what was trained
        events.close()  # type: ignore[attr-defined]
        job.log(job.event("stopped", path=str(job.result)))
        raise


class _Job:
    """One run's parts, and the few acts it is made of."""

    def __init__(
        self,
        config: TrainConfig,
        backend: Backend,
        write: Write,
        weights: Weights,
        cuts: Cuts,
        start: Adapter | None = None,
    ):
        self.config, self.backend, self.write, self.weights, self.cuts = config, backend, write, weights, cuts
        self.out = Path(config.out)
        self.result = self.out / f"{config.name}.safetensors"
        self.plan = plan(config)
        self.cache = open_cache(config, backend)
        self.objective = Objective(backend.schedule, config)
        self.validation = self._validation()
        self.identity = checkpoint.Identity(config, backend.fingerprint, self.plan.digest())
        modules, place = backend.denoiser.modules(), (backend.device, backend.dtype)
        self.state = State.fresh(modules, config, *place, weights, backend.names, start)
        self.facts: dict[str, Any] = {}  # what survives a resume beside the state
        self.saved = 0  # step of the last save

    def _validation(self) -> Validation | None:
        config = self.config
        if config.validation_data is None:
            return None
        pictures = unseen(config)
        return Validation(pictures, self.cache, self.backend.denoiser, self.objective, config)

    def prepare(self, resume: bool) -> None:
        """Refuse to overwrite, or to resume another run; make the folder."""
        folder = self.out / "state"
        if resume:
            self.facts = checkpoint.restore(folder, self.state, self.identity)
            self.saved = self.state.step
        elif checkpoint.steps(folder):
            raise FileProblem(f"{folder}: is there already; resume it, or choose another 'out'", file=folder)
        for path in self.foreign(resume):
            raise FileProblem(f"{path}: is there already; move it away, or choose another 'out'", file=path)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "stop").unlink(missing_ok=True)  # meant for a run that has ended
        except OSError as error:
            text = f"{self.out}: cannot be made ({error.strerror}); choose another 'out'"
            raise FileProblem(text, file=self.out) from error

    def foreign(self, resume: bool) -> Iterator[Path]:
        """Yield the files that the run would replace and has not written; a resumed run owns result and previews."""
        config = self.config
        planned = [*map(self._numbered, self._turns(config.checkpoint_every, config.steps))]
        if not resume:
            planned += [self.result, *map(self._preview, self._turns(config.sample_every, config.steps + 1))]
        return (path for path in planned if path.exists())

    def _turns(self, every: int, end: int) -> range:
        """Return the steps before `end` that are still to come and that `every` meets."""
        return range(self.state.step // every * every + every, end, every) if every else range(0)

    def events(self, stop: Stop) -> Iterator[Event]:
        """Yield the run's events; saves what was trained however it ends."""
        began, ending, more = time.perf_counter(), "done", {}
        steps = train(self.backend.denoiser, self.batches, self.objective, self.config, self.state, self.weights)
        with self.backend.training():
            try:
                yield from self.start(stop)
                for step in steps:
                    yield self.stepped(step)
                    yield from self.previewed()
                    ending = self.ending(stop)
                    if ending:
                        more = self.validated()
                        break
                    yield from self.checkpointed()
                self.save()
                yield self.event(ending, seconds=time.perf_counter() - began, path=str(self.result), more=more)
            except torch.cuda.OutOfMemoryError as error:
                way = "lower 'batch_size' or 'resolution', or set 'gradient_checkpointing'"
                raise BadConfig(f"step {self.state.step + 1}: the device's memory is full; {way}") from error
            finally:
                self.save()
                steps.close()  # type: ignore[attr-defined]

    def event(self, kind: str, **fields: Any) -> Event:
        """Return an event at the step in hand."""
        return Event(kind, self.state.step, self.config.steps, **fields)

    @property
    def prior(self) -> str | None:
        """The caption for which the frozen model's own predictions are kept."""
        return (self.config.class_prompt or "") if self.config.prior_from_base else None

    def batches(self, index: int) -> list[Batch]:
        """Return the micro-batches of a step (0-based)."""
        config, rows = self.config, self.plan.rows
        return [
            self.cache.batch(views, config.seed, "train", index, micro * rows, config.prior_weight, self.prior)
            for micro, views in enumerate(self.plan.views(index))
        ]

    def start(self, stop: Stop) -> Iterator[Event]:
        """Encode an epoch, so that a bad file ends the run before it has begun, and say what is going to happen."""
        self.fill(stop)
        small = self.plan.enlarged()
        cut = [picture for picture in self.plan.pictures if self.cuts(picture.caption)]
        if self.validation is not None and "validation_loss_before" not in self.facts:
            self.facts["validation_loss_before"] = self.validation.loss(self.state.device)
        yield self.event("start", path=str(self.result), more=self.described())
        yield from (self.event("warning", message=text) for text in self.plan.warnings)
        if small:
            text = f"{len(small)} pictures are smaller than 'resolution' and are enlarged: {_first(small)}"
            yield self.event("warning", message=text)
        if cut:
            text = f"{len(cut)} captions are longer than the text encoder reads and are cut: {_first(cut)}"
            yield self.event("warning", message=text)

    def described(self) -> dict[str, Any]:
        """Return what the start event tells."""
        return {
            **self.backend.facts,
            "architecture": self.backend.architecture,
            "objective": self.objective.prediction,
            "pictures": len(self.plan.pictures),
            "layers": len(self.state.factors),
            "parameters": sum(tensor.numel() for tensor in self.state.parameters()),
            **{key: value for key, value in self.facts.items() if key.startswith("validation")},
        }

    def fill(self, stop: Stop) -> None:
        """Encode each picture as its next epoch shows it; other crops and mirrorings follow when they are drawn."""
        if self.config.skip_broken:
            self.plan = self.cache.sound(self.plan, self.config.steps)
        if self.config.skip_broken and self.validation is not None:
            broken = self.cache.fill(map(View, self.validation.pictures), skip=True)
            self.validation = replace(self.validation, pictures=usable(self.validation.pictures, broken))
        steps = self.plan.epoch(self.state.step, self.config.steps)
        self.cache.fill(self.plan.drawn(steps), stop, further=() if self.prior is None else (self.prior,))

    def stepped(self, step: Step) -> Event:
        """Return the step's event."""
        self.facts["loss"] = step.loss
        self.facts["trained_seconds"] = self.facts.get("trained_seconds", 0.0) + step.seconds
        eta = self.facts["trained_seconds"] / step.index * (self.config.steps - step.index)
        return self.event("step", loss=step.loss, lr=step.lr, seconds=step.seconds, eta=eta, more={"norm": step.norm})

    def ending(self, stop: Stop) -> str:
        """Return the last event's name when the run ends here, else an empty text."""
        asked = stop() or self._stop_file()
        if self.state.step >= self.config.steps:
            return "done"
        return "stopped" if asked else ""

    def _stop_file(self) -> bool:
        file = self.out / "stop"
        found = file.exists()
        file.unlink(missing_ok=True)
        return found

    def previewed(self) -> Iterator[Event]:
        """Draw the validation prompt when its turn has come, with the same seed each time."""
        config, step = self.config, self.state.step
        if config.validation_prompt is None or not config.sample_every or step % config.sample_every:
            return
        path = self._preview(step)
        path.parent.mkdir(exist_ok=True)
        with self.state.as_saved():
            self.backend.sample(config.validation_prompt, config.seed).save(path)
        yield self.event("sample", path=str(path))

    def checkpointed(self) -> Iterator[Event]:
        """Write the state and a usable adapter when their turn has come, and drop the run's oldest adapters.

        The state goes first: it names the adapters that are the run's own, whenever the run is killed.
        """
        config, step = self.config, self.state.step
        due = config.checkpoint_every and step % config.checkpoint_every == 0
        if not due or not self.state.finite():  # the next step's loss will tell
            return
        path, ours = self._numbered(step), [*self.facts.get("checkpoints", ()), step]
        self.facts["checkpoints"] = ours[-config.keep :]  # all of them when it is 0
        self._save_state()
        self._write(path)
        for old in ours[: -len(self.facts["checkpoints"])]:
            self._numbered(old).unlink(missing_ok=True)
        yield self.event("checkpoint", path=str(path), more=self.validated())

    def validated(self) -> dict[str, float]:
        """Return the loss on unseen pictures, before and now; empty without any."""
        if self.validation is None:
            return {}
        with self.state.as_saved():
            now = self.validation.loss(self.state.device)
        return {"validation_loss_before": self.facts["validation_loss_before"], "validation_loss": now}

    def save(self) -> None:
        """Write result and state unless they are there, or unfit: half a step, or values that are not finite."""
        new = self.state.step > self.saved or (self.state.step > 0 and not self.result.exists())
        if new and self.state.whole and self.state.finite():
            self._write(self.result)
            self._save_state()

    def _save_state(self) -> None:
        checkpoint.save(self.out / "state", self.state, self.identity, self.facts, self.config.keep)
        self.saved = self.state.step

    def _write(self, path: Path) -> None:
        facts = {
            "lorasmith.config": json.dumps(self.config.to_public_json()),
            "lorasmith.step": str(self.state.step),
            "lorasmith.pictures": str(len(self.plan.pictures)),
            "lorasmith.loss": repr(self.facts.get("loss")),
            "lorasmith.model": self.backend.fingerprint,
            "lorasmith.tags": json.dumps(tag_counts(self.plan.spoken(), self.config.caption_separator)),
        }
        self.write(self.state.adapter(self.backend.architecture), path, facts)

    def _numbered(self, step: int) -> Path:
        return self.out / f"{self.config.name}-{step:06d}.safetensors"

    def _preview(self, step: int) -> Path:
        return self.out / "samples" / f"{self.config.name}-{step:06d}.png"

    def log(self, event: Event) -> None:
        """Append an event to the run's log."""
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event.data()) + "\n")


def _first(pictures: Sequence[Picture]) -> str:
    """Return the first three pictures' names, for messages."""
    return ", ".join(picture.path.name for picture in pictures[:3])
