"""A whole run, read from top to bottom: events, previews, checkpoints, stopping, resuming, and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from ..adapter import Adapter
from ..errors import BadConfig, BadDataset, BadValues, FileProblem, LorasmithError
from . import budget, class_pictures, hub, process
from .config import TrainConfig
from .events import Event, Stop, never
from .grid import grid
from .inject import Weights, weights_like
from .job import Checkpointing, Cuts, Job, Setup, reads_all
from .loop import Step
from .protocols import Backend
from .report import Report
from .saving import Write
from .trackers import Trackers
from .world import World

__all__ = ["Event", "Stop", "Write", "never", "reads_all", "run"]


def run(
    config: TrainConfig,
    backend: Backend,
    write: Write,
    resume: bool = False,
    stop: Stop = never,
    weights: Weights = weights_like,
    cuts: Cuts = reads_all,
    start: Adapter | None = None,
    world: World | None = None,
) -> Iterator[Event]:
    """Train as configured and yield events; each is also a line of `OUT/log.jsonl`.

    The run ends early, after the step in hand and with everything saved, when `stop()` returns True, when a file
    `OUT/stop` appears (it is removed), when the iterator is closed, or on an error; then `resume` goes on bit for bit.
    Captions that `cuts` says True to are warned of. `start` is an adapter to go on from, its layers in the pieces that
    the backend's modules have. In a `world` of several processes 'batch_size' counts the pictures of all, each process
    yields the events, and the first one alone writes. No file is replaced or removed that the run did not write.
    Raises LorasmithError for input that is at fault; once the run has begun, after an "error" event.
    """
    world = world or World()
    if world.leads:
        hub.check(config)
    with process.settings(config):
        stopped = yield from _class_pictures(config, backend, stop, world)
        if not stopped:
            yield from _followed(Job(Setup(config, backend, write, weights, cuts, start, world)), resume, stop)


def _class_pictures(config: TrainConfig, backend: Backend, stop: Stop, world: World) -> Generator[Event, None, bool]:
    """Make the class pictures that are missing; returns True when asked to stop."""
    stopped = False
    for path in class_pictures.make(config, backend.sample) if world.leads else ():
        yield Event("class_picture", 0, config.steps, path=str(path))
        stopped = stop()
        if stopped:
            break
    if world.any(stopped):
        yield Event("stopped", 0, config.steps, message="class pictures are still missing; start again to go on")
        return True
    return False


def _followed(job: Job, resume: bool, stop: Stop) -> Iterator[Event]:
    """Prepare a job and yield its events; log and trackers follow them, however the run ends."""
    job.prepare(resume)
    with closing(Trackers(job.config if job.world.leads else None)) as trackers:
        running = _Run(job, stop)
        events, warned = running.events(), False
        try:
            for event in events:
                trackers.follow(event.data())
                if not job.folder.log(event) and not warned:
                    warned = True
                    yield job.event("warning", message=f"{job.folder.path}: the log cannot be written; free some space")
                yield event
        except LorasmithError as error:
            event = job.event("error", path=_there(job), message=error.message, more={"error": error.details()})
            job.folder.log(event)
            trackers.follow(event.data())
            yield event
            raise
        except GeneratorExit:  # the caller closed the iterator: the events below save what was trained
            events.close()  # type: ignore[attr-defined]
            job.folder.log(job.event("stopped", path=str(job.folder.result)))
            raise


def _there(job: Job) -> str | None:
    return str(job.folder.result) if job.folder.result.exists() else None


class _Run:
    """A job on its way."""

    def __init__(self, job: Job, stop: Stop):
        self.job, self.stop = job, stop
        self.notes: list[str] = []  # warnings that are still to be told
        self.report = Report(job.folder.path, job.config, job.plan.pictures)

    def events(self) -> Iterator[Event]:
        """Yield the run's events; saves what was trained however it ends."""
        job, began, steps = self.job, time.perf_counter(), self.steps()
        ending = "done"
        with job.backend.training():
            try:
                yield from self.start()
                for step in steps:
                    yield from self.told()
                    yield self.stepped(step)
                    self.watch(step)
                    yield from self.previewed()
                    ending = self.ending()
                    if ending:
                        break
                    yield from self.validated()
                    yield from self.checkpointed()
                yield from self.end(ending, began)
            except BadValues as error:
                raise self.went_back(error) from error
            finally:
                job.saving.result()
                steps.close()

    def start(self) -> Iterator[Event]:
        """Encode an epoch, so that a bad file ends the run before it has begun, and say what is going to happen."""
        job = self.job
        job.fill(self.stop)
        self.report = Report(job.folder.path, job.config, job.plan.pictures)  # without those that are left out
        job.guard.watch = job.guard.watch.of(job.facts.get("watch", {}))
        job.pieces = job.facts.get("pieces", 1)
        self.choose_checkpointing()
        if job.validation is not None and "validation_loss_before" not in job.facts:
            job.facts["validation_loss_before"] = job.validation.loss(job.state.device)
        yield job.event("start", path=str(job.folder.result), more=job.described())
        yield from (job.event("warning", message=text) for text in job.remarks())
        if job.state.step == 0:
            yield from self.previewed()

    def choose_checkpointing(self) -> None:
        """Decide where it is "auto", from one measured step: on when the activations do not fit into what is free."""
        job = self.job
        if job.config.gradient_checkpointing != "auto" or not isinstance(job.backend, Checkpointing):
            return
        free = budget.available(job.state.device)
        job.measured = job.probe(job.largest())
        needed = None if job.measured is None else job.needs(job.measured).adapter + job.measured.activations
        job.checkpoints = needed is None or bool(free and needed > free * (1 - budget.RESERVE))
        job.backend.checkpointing(job.checkpoints)

    def steps(self) -> Generator[Step, None, None]:
        """Train; where memory runs out, save and say what helps, or switch that on and go on from the same step."""
        while True:
            with closing(self.job.steps()) as steps:
                try:
                    yield from steps
                    return
                except RuntimeError as error:
                    if not budget.is_full(error):
                        raise
            self.relieve()  # here the error is gone, and with it the tensors of its frames

    def relieve(self) -> None:
        """Switch on what lowers the memory, if that is wanted and there is more to switch; raises BadConfig if not."""
        job = self.job
        at = f"step {job.state.step + 1}: the device's memory is full"
        job.state.optimizer.zero_grad(set_to_none=True)
        if not job.state.whole:
            job.saving.went_back(job.guard.back(job.state))
        budget.clear()
        rows = job.world.share_of(job.config.batch_size)
        can = isinstance(job.backend, Checkpointing) and not job.checkpoints
        if job.config.on_out_of_memory == "retry" and job.world.size == 1:
            if can and isinstance(job.backend, Checkpointing):
                job.checkpoints = True
                job.backend.checkpointing(True)
                return self.notes.append(f"{at}; gradient checkpointing is on from here")
            if job.pieces < rows:
                job.pieces = job.facts["pieces"] = min(2 * job.pieces, rows)
                return self.notes.append(f"{at}; each batch goes through the model in {job.pieces} pieces from here")
        settings = {**job.config.to_json(), "gradient_checkpointing": "off" if can else "on"}
        found = budget.switches(job.needs(job.measured or budget.Probe(0, 0.0)), settings)[:2]
        raise BadConfig(f"{at}; what helps: {' or '.join(found)}", key="on_out_of_memory")

    def told(self) -> Iterator[Event]:
        """Yield the warnings that have come up."""
        while self.notes:
            yield self.job.event("warning", message=self.notes.pop(0))

    def stepped(self, step: Step) -> Event:
        """Return the step's event."""
        job = self.job
        job.facts["loss"] = step.loss
        job.facts["trained_seconds"] = job.facts.get("trained_seconds", 0.0) + step.seconds
        eta = job.facts["trained_seconds"] / step.index * (job.config.steps - step.index)
        return job.event("step", loss=step.loss, lr=step.lr, seconds=step.seconds, eta=eta, more={"norm": step.norm})

    def watch(self, step: Step) -> None:
        """Raise BadValues when the losses have left all bounds."""
        job = self.job
        apart = job.guard.follow(job.state, step.loss)
        job.facts["watch"] = job.guard.watch.facts()
        if apart:
            names = ", ".join(step.names[:4])
            text = f"step {step.index}: the loss is {step.loss:.4g} on {names}, far above what it was"
            raise BadValues(f"{text}; lower 'learning_rate'", step=step.index)

    def went_back(self, error: BadValues) -> BadValues:
        """Go back to the last good state after a loss that was none, and return the error that says so."""
        if "step" not in error.extra:  # an encoder's values, which have changed nothing
            return error
        step = self.job.guard.back(self.job.state)
        self.job.saving.went_back(step)
        self.job.facts["watch"] = {}
        told = f"the result is that of step {step}, the last good one" if step else "nothing was learnt before"
        return BadValues(f"{error.message}; {told}", file=error.file, good_step=step, **error.extra)

    def ending(self) -> str:
        """Return the last event's name when the run ends here, else an empty text."""
        job = self.job
        asked = job.world.any(self.stop() or job.folder.asked_to_stop())
        if job.state.step >= job.config.steps:
            return "done"
        return "stopped" if asked else ""

    def previewed(self) -> Iterator[Event]:
        """Draw the validation prompts when their turn has come, with the same seeds each time."""
        job, config, step = self.job, self.job.config, self.job.state.step
        if not config.prompts or not config.sample_every or step % config.sample_every or not job.world.leads:
            return
        seeds = range(config.seed, config.seed + config.sample_count)
        with job.state.as_saved():
            rows = [(prompt, [job.backend.sample(prompt, seed) for seed in seeds]) for prompt in config.prompts]
        path = job.folder.preview(step)
        try:
            path.parent.mkdir(exist_ok=True)
            grid(rows).save(path)
        except OSError as error:
            yield job.event("warning", message=f"{path}: cannot be written ({error.strerror}); free some space")
            return
        job.offload()
        yield job.event("sample", path=str(path))

    def validated(self) -> Iterator[Event]:
        """Measure the loss on unseen pictures when its turn has come, apart from checkpoints."""
        job, every = self.job, self.job.config.validation_every
        if job.validation is not None and every and job.state.step % every == 0:
            yield job.event("validation", more=job.validated())

    def checkpointed(self) -> Iterator[Event]:
        """Write a checkpoint and the report when their turn has come; a full disk is told, and the run goes on."""
        job, config = self.job, self.job.config
        due = config.checkpoint_every and job.state.step % config.checkpoint_every == 0
        if not due or not job.state.finite() or not job.guard.watch.calm:  # the next losses will tell
            return
        try:
            path = job.saving.checkpoint()
        except FileProblem as error:
            yield job.event("warning", message=f"no checkpoint at this step: {error.message}")
            return
        yield job.event("checkpoint", path=str(path), more={} if config.validation_every else job.validated())
        yield from self.reported()

    def reported(self) -> Iterator[Event]:
        """Write `report.html` and `loss.svg`; a problem with them is told."""
        try:
            if self.job.world.leads:
                self.report.write()
        except (OSError, BadDataset) as error:
            yield self.job.event("warning", message=f"no report: {error}")

    def end(self, ending: str, began: float) -> Iterator[Event]:
        """Save, report and upload, and yield the last event."""
        job, more = self.job, dict[str, Any](self.job.validated())
        job.saving.result()
        yield from self.told()
        if ending == "done" and job.config.push_to_hub and job.world.leads:
            try:
                found = job.folder.previews()
                more["hub"] = hub.push(job.config, job.folder.result, job.described(), found)
            except FileProblem as error:
                yield job.event("warning", message=error.message)
        yield from self.reported()
        seconds = time.perf_counter() - began
        yield job.event(ending, seconds=seconds, path=str(job.folder.result), more=more)
