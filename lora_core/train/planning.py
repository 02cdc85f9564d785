"""What a run will need, said before it: one picture encoded, one forward and backward pass measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..adapter import Adapter
from ..errors import BadConfig
from . import budget, process
from .budget import Budget
from .config import TrainConfig
from .inject import Weights, weights_like
from .job import Checkpointing, Job, Setup
from .protocols import Backend
from .views import View

WAYS = 10  # most views of a picture: five places of the cut, mirrored or not


def planned(config: TrainConfig, backend: Backend, weights: Weights = weights_like) -> tuple[Budget, TrainConfig]:
    """Return what a run needs, and its configuration with 'steps' and 'gradient_checkpointing' decided.

    Nothing is written. Raises LorasmithError as the run itself would before its first step.
    """
    kept = replace(config, cache="memory")  # so that nothing is left on the disk
    job = Job(Setup(kept, backend, _nowhere, weights))
    with process.settings(config), backend.training():
        found = measured(job)
        if not found.fits and config.gradient_checkpointing == "auto" and isinstance(backend, Checkpointing):
            backend.checkpointing(True)
            job.checkpoints = True
            found = measured(job)
    how = "on" if job.checkpoints else "off"
    return found, replace(config, steps=job.config.steps, gradient_checkpointing=how)


def measured(job: Job) -> Budget:
    """Return a job's budget, with a step measured as it is now; raises BadConfig where not even that fits."""
    view, config = job.largest(), job.config
    probe = job.probe(view)
    if probe is None:
        ways = " or ".join(budget.switches(job.needs(budget.Probe(0, 0.0)), config.to_json())[:2])
        raise BadConfig(f"config: one step does not fit into the memory of {job.state.device}; what helps: {ways}")
    steps = replace(probe, seconds=probe.seconds * config.accumulate)
    return replace(job.needs(steps), cache=_cached(job, view))


def _cached(job: Job, view: View) -> int:
    """Return the bytes of all latents and embeddings that the run may keep, from those of one picture."""
    moments, cond, plan = job.cache.moments(view), job.cache.cond(view.caption), job.plan
    ways = (1 if plan.center_crop else WAYS // 2) * (2 if plan.random_flip else 1)
    drawn = job.config.steps * job.config.accumulate * plan.rows
    pictures = len(plan.pictures) + len(plan.priors)
    texts = sum(tensor.nbytes for tensor in cond.values()) * len(plan.texts())
    return min(pictures * ways, drawn) * (moments.mean.nbytes + moments.std.nbytes) + texts


def _nowhere(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> None:
    """Write nothing."""
