"""The parts that a run is made of, and what each of them is asked for on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ..adapter import Adapter
from ..errors import BadConfig
from . import budget
from .cache import Batch, open_cache
from .checkpoint import Identity
from .config import TrainConfig
from .data import Picture, plan, tag_counts, unseen, usable
from .events import Event, Stop
from .folder import Folder
from .inject import Weights, attached, weights_like
from .loop import Step, batch_loss, train
from .objective import Objective
from .protocols import Backend
from .saving import Saving, Write
from .state import State
from .storage import resting
from .validation import Validation
from .views import Plan, View
from .watch import Guard, Snapshot
from .world import World

Cuts = Callable[[str], bool]  # says whether a caption is longer than the model reads
T = TypeVar("T")


@runtime_checkable
class Checkpointing(Protocol):
    """A backend whose activations can be computed anew instead of kept."""

    def checkpointing(self, on: bool) -> None:
        """Switch it."""


@runtime_checkable
class Offloading(Protocol):
    """A backend whose encoders can leave the device; they come back when they are needed."""

    def offload(self) -> None:
        """Take them off."""


def reads_all(caption: str) -> bool:
    """Return False: no caption is cut."""
    return False


@dataclass(frozen=True, eq=False)
class Setup:
    """What a run is given."""

    config: TrainConfig  # 'batch_size' counts the pictures of all processes
    backend: Backend
    write: Write
    weights: Weights = weights_like
    cuts: Cuts = reads_all
    start: Adapter | None = None  # to go on from
    world: World = field(default_factory=World)


class Job:
    """One run's parts."""

    def __init__(self, setup: Setup):
        """Read the data, and make the state before the first step; raises LorasmithError."""
        self.setup, self.backend, self.world = setup, setup.backend, setup.world
        self.plan = plan(setup.config)
        self.config = config = lasting(setup.config, self.plan)
        if config.batch_size % self.world.size:
            text = f"config: 'batch_size' is {config.batch_size} for {self.world.size} processes; choose a multiple"
            raise BadConfig(text, key="batch_size")
        self.cache = open_cache(config, self.backend)
        self.objective = Objective(self.backend.schedule, config)
        self.validation = self._validation()
        modules, place = self.backend.denoiser.modules(), (self.backend.device, self.backend.dtype)
        self.state = State.fresh(modules, config, *place, setup.weights, self.backend.names, setup.start)
        identity = Identity(config, self.backend.fingerprint, self.plan.digest())
        self.folder = Folder(config, self.world.leads)
        self.saving = Saving(self.folder, self.state, identity, setup.write, self.backend.architecture, self.header)
        self.pieces = 1  # that a micro-batch is cut into, for want of memory
        self.measured: budget.Probe | None = None
        self.checkpoints = config.gradient_checkpointing in (True, "on")
        self.guard = Guard(Snapshot({}, {"step": 0}))

    @property
    def facts(self) -> dict[str, Any]:
        """What survives a resume beside the state."""
        return self.saving.facts

    def _validation(self) -> Validation | None:
        if self.config.validation_data is None or not self.world.leads:
            return None
        return Validation(unseen(self.config), self.cache, self.backend.denoiser, self.objective, self.config)

    def prepare(self, resume: bool) -> None:
        """Bring the state back, or refuse to overwrite what is there; make the folder."""
        self.saving.restore(resume)
        self.guard = Guard(Snapshot.of(self.state))
        self.world.wait()  # no process may see files that another has begun to write

    def event(self, kind: str, **fields: Any) -> Event:
        """Return an event at the step in hand."""
        return Event(kind, self.state.step, self.config.steps, **fields)

    @property
    def prior(self) -> str | None:
        """The caption for which the frozen model's own predictions are kept."""
        return (self.config.class_prompt or "") if self.config.prior_from_base else None

    def steps(self) -> Generator[Step, None, None]:
        """Train from where the state stands."""
        setup, denoiser = self.setup, self.backend.denoiser
        return train(denoiser, self.batches, self.objective, self.config, self.state, setup.weights, self.world)

    def batches(self, index: int) -> list[Batch]:
        """Return this process's micro-batches of a step (0-based); the draws are keyed by positions among all rows."""
        found = []
        for micro, views in enumerate(self.plan.views(index)):
            placed = list(enumerate(views, micro * self.plan.rows))
            own = self.world.share(placed, self._kinds)
            names = [view.picture.path.name for view in views]
            for piece in parts(own, self.pieces, self._kinds):
                share = len(piece) / len(own) / self.config.accumulate
                found.append(replace(self._batch(piece, index), names=names, share=share))
        self.offload()
        return found

    @property
    def _kinds(self) -> int:
        return 2 if self.plan.priors else 1

    def _batch(self, placed: Sequence[tuple[int, View]], index: int) -> Batch:
        config, rows = self.config, [row for row, _ in placed]
        views = [view for _, view in placed]
        return self.cache.batch(views, config.seed, "train", index, rows, config.prior_weight, self.prior)

    def fill(self, stop: Stop) -> None:
        """Encode each picture as its next epoch shows it; other crops and mirrorings follow when they are drawn."""
        if self.config.skip_broken:
            self.plan = self.cache.sound(self.plan, self.config.steps)
        if self.config.skip_broken and self.validation is not None:
            broken = self.cache.fill(map(View, self.validation.pictures), skip=True)
            self.validation = replace(self.validation, pictures=usable(self.validation.pictures, broken))
        further = () if self.prior is None else (self.prior,)
        self.cache.fill(self._drawn(), stop, further=further)
        self.offload()

    def _drawn(self) -> Iterator[View]:
        """Yield what this process shows in the next epoch."""
        for step in self.plan.epoch(self.state.step, self.config.steps):
            for views in self.plan.views(step):
                yield from self.world.share(views, self._kinds)

    def offload(self) -> None:
        """Take the encoders off the device, unless captions without end have to be encoded on the way."""
        if self.cache.texts_are_finite and isinstance(self.backend, Offloading):
            self.backend.offload()

    def validated(self) -> dict[str, float]:
        """Return the loss on unseen pictures, before and now; empty without any."""
        if self.validation is None:
            return {}
        with self.state.as_saved():
            now = self.validation.loss(self.state.device)
        return {"validation_loss_before": self.facts["validation_loss_before"], "validation_loss": now}

    def probe(self, view: View) -> budget.Probe | None:
        """Measure the forward and backward pass of a batch of one view; None where the memory does not do."""
        config, device = self.config, self.state.device
        views = [view] * self.world.share_of(self.plan.rows)
        batch = self.cache.batch(views, config.seed, "probe", 0, 0, 1.0, self.prior)
        self.offload()

        def loss() -> Tensor:
            with torch.inference_mode(False), torch.enable_grad():
                return batch_loss(self.backend.denoiser, batch, self.objective, config, device, "probe", 0, 0)

        try:
            with attached(self.backend.denoiser.modules(), self.state.factors, self.setup.weights):
                return budget.probe(loss, self.state.parameters(), device)
        except RuntimeError as error:
            if not budget.is_full(error):
                raise
        budget.clear()  # here the error is gone, and with it the tensors of its frames
        return None

    def largest(self) -> View:
        """Return a view of the largest size among those of the next epoch."""
        steps = self.plan.epoch(self.state.step, self.config.steps)
        return max(self.plan.drawn(steps), key=lambda view: self._area(view))

    def _area(self, view: View) -> int:
        cut = view.cut(self.plan.shapes)
        return cut.width * cut.height

    def needs(self, probe: budget.Probe) -> budget.Budget:
        """Return what the run needs, as far as it is known without more measuring."""
        models = getattr(self.backend, "parts", None)
        config, state = self.config, self.state
        encoders = [] if models is None else [models.vae, *models.text_encoders.values()]
        device = state.device
        return budget.Budget(
            denoiser=0 if models is None else budget.weights([models.denoiser]) - _resting(models.denoiser),
            encoders=budget.weights(encoders),
            encoders_stay=not (config.offload_encoders and self.cache.texts_are_finite),
            adapter=budget.adapter(state.parameters(), config.optimizer),
            probe=probe,
            cache=0,
            file=sum(parameter.numel() for parameter in state.parameters()) * 4,
            steps=config.steps,
            memory=budget.memory(device),
        )

    def header(self) -> dict[str, str]:
        """Return what the adapter file says of the run."""
        config = self.config
        return {
            "lorasmith.config": json.dumps(config.to_public_json()),
            "lorasmith.step": str(self.state.step),
            "lorasmith.pictures": str(len(self.plan.pictures)),
            "lorasmith.loss": repr(self.facts.get("loss")),
            "lorasmith.model": self.backend.fingerprint,
            "lorasmith.tags": json.dumps(tag_counts(self.plan.spoken(), config.caption_separator)),
            "lorasmith.folders": json.dumps(self._folders()),
            **({"lorasmith.ema": repr(config.ema)} if config.ema else {}),
        }

    def _folders(self) -> dict[str, dict[str, Any]]:
        """Return pictures, repeats and tags of each folder of the data, by name."""
        folders: dict[tuple[str, int], list[Picture]] = {}
        for picture in self.plan.pictures:
            folders.setdefault((picture.path.parent.name, picture.repeats), []).append(picture)
        captions = self.plan.captions
        return {
            name: {
                "n_images": len(pictures),
                "n_repeats": repeats,
                "tags": tag_counts([captions.whole(p.caption) for p in pictures], self.config.caption_separator),
            }
            for (name, repeats), pictures in folders.items()
        }

    def described(self) -> dict[str, Any]:
        """Return what the start event tells."""
        told = {} if self.measured is None else {"activations": self.measured.activations}
        return {
            **self.backend.facts,
            "architecture": self.backend.architecture,
            "objective": self.objective.prediction,
            "pictures": len(self.plan.pictures),
            "layers": len(self.state.factors),
            "parameters": sum(tensor.numel() for tensor in self.state.parameters()),
            "gradient_checkpointing": self.checkpoints,
            **told,
            **({"processes": self.world.size} if self.world.size > 1 else {}),
            **{key: value for key, value in self.facts.items() if key.startswith("validation")},
        }

    def remarks(self) -> Iterator[str]:
        """Yield what a person should know of the data before the first step."""
        yield from self.plan.warnings
        small = self.plan.enlarged()
        cut = [picture for picture in self.plan.pictures if self.setup.cuts(picture.caption)]
        if small:
            yield f"{len(small)} pictures are smaller than 'resolution' and are enlarged: {_first(small)}"
        if cut:
            yield f"{len(cut)} captions are longer than the text encoder reads and are cut: {_first(cut)}"


def lasting(config: TrainConfig, data: Plan) -> TrainConfig:
    """Return the configuration with as many steps as its epochs make."""
    if not config.epochs:
        return config
    shown = config.epochs * sum(picture.repeats for picture in data.pictures)
    return replace(config, steps=max(1, -(-shown // (config.batch_size * config.accumulate))))


def parts(rows: Sequence[T], count: int, kinds: int = 1) -> list[list[T]]:
    """Return rows cut into about equal pieces, each with the same slice of every kind.

    >>> parts(["a", "b", "c", "A", "B", "C"], 2, kinds=2)
    [['a', 'A'], ['b', 'c', 'B', 'C']]
    """
    each = len(rows) // kinds
    count = min(count, each)
    cuts = [each * n // count for n in range(count + 1)]
    starts = [kind * each for kind in range(kinds)]
    return [[row for s in starts for row in rows[s + a : s + b]] for a, b in zip(cuts, cuts[1:], strict=False)]


def _resting(denoiser: nn.Module) -> int:
    """Return the bytes of the weights that wait on the CPU while others are computed with."""
    return sum(module.weight.nbytes for module in resting(denoiser) if isinstance(module.weight, Tensor))


def _first(pictures: Sequence[Picture]) -> str:
    """Return the first three pictures' names, for messages."""
    return ", ".join(picture.path.name for picture in pictures[:3])
