"""The training node: a run in a thread of its own, while the node's thread moves the bar and listens for Cancel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue
from threading import Event as Flag
from typing import Any

from .. import convert
from ..convert.training import writer
from ..lora_core.adapter import Adapter
from ..lora_core.errors import FileProblem, WrongArchitecture
from ..lora_core.train.config import TrainConfig
from ..lora_core.train.engine import Event, run
from .fit import family
from .paths import below, free_folder, free_name, last_folder
from .seam import Host, Progress
from .spec import Result

PAUSE = 0.1  # seconds between two looks for Cancel


def train_lora(host: Host, model: Any, clip: Any, vae: Any, pictures: str, name: str, **settings: Any) -> Result:
    """Train a LoRA for the loaded model; `settings` are the node's other widgets.

    The run's log and state lie in `output/lorasmith/NAME`, the result also in `output/loras`. When the person cancels,
    the step in hand is finished, everything is saved, and then the host's own interrupt is raised.
    """
    resume = settings.pop("resume", False)
    config = _config(host, pictures, name, resume, settings)
    loaded = family(host.weights(model, None))
    if loaded is None:
        raise WrongArchitecture("training needs a model family that has a table here, such as SD 1.5 or SDXL")
    progress = host.progress(config.steps)
    backend = host.backend(model, clip, vae, loaded, config, progress)

    def events(stop: Callable[[], bool]) -> Iterator[Event]:
        return run(config, backend, writer(config, backend.schedule.prediction), resume, stop, backend.weights)

    last = follow(events, progress, host.say)
    result = Path(config.out) / f"{config.name}.safetensors"
    published = _published(host, result, name) if result.exists() else None
    cancelled = progress.cancelled()
    if cancelled is not None:
        raise cancelled
    if published is None:
        raise FileProblem(
            f"{result}: the run ended before anything was saved; look into log.jsonl beside it", file=result
        )
    adapter, path = published
    trained = f"{last.step} steps, loss {last.loss:.4f}" if last and last.loss is not None else "nothing left to train"
    return Result((adapter, str(path)), f"{trained}, saved as {path.name}")


def _config(host: Host, pictures: str, name: str, resume: bool, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the run's configuration; an empty prompt and a gamma of 0 mean none."""
    folder = below(host.output_folder() / "lorasmith", name)
    return TrainConfig.from_json(
        {
            **settings,
            "model": "the model loaded in ComfyUI",
            "data": str(below(host.input_folder(), pictures)),
            "out": str(last_folder(folder) if resume else free_folder(folder)),
            "name": folder.name,
            "instance_prompt": settings.get("instance_prompt", "").strip() or None,
            "trigger_word": settings.get("trigger_word", "").strip() or None,
            "min_snr_gamma": settings.get("min_snr_gamma") or None,
        }
    )


def follow(
    events: Callable[[Callable[[], bool]], Iterator[Event]], progress: Progress, say: Callable[[str], None]
) -> Event | None:
    """Run the events in a thread of their own, show their steps here, and return the last of them.

    A fresh thread is outside the host's inference mode. The host's interrupt, which may come up in that thread too,
    ends the run like Cancel seen here; any other error of the run is raised.
    """
    queue: Queue[Event] = Queue()
    stop = Flag()
    steps: list[Event] = []

    def work() -> None:
        for event in events(stop.is_set):
            queue.put(event)

    with ThreadPoolExecutor(1, "lorasmith-training") as pool:
        job = pool.submit(work)
        try:
            while not (job.done() and queue.empty()):
                steps += _shown(queue, progress, say)
                if progress.cancelled() is not None:
                    stop.set()
        finally:
            stop.set()
        error = job.exception()
        if error is not None and not progress.is_cancel(error):
            raise error
        return steps[-1] if steps else None


def pictures_fingerprint(host: Host, pictures: str | None = None, **_others: Any) -> Any:
    """Return what changes when a picture or caption changes."""
    folder = below(host.input_folder(), pictures) if pictures else None
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder and folder.is_dir() else []
    return [pictures, *(f"{path.name} {path.stat().st_mtime_ns}" for path in files)]


def _shown(queue: Queue[Event], progress: Progress, say: Callable[[str], None]) -> list[Event]:
    """Wait a moment for an event; say a warning, or move the bar to a step and return it."""
    try:
        event = queue.get(timeout=PAUSE)
    except Empty:
        return []
    if event.message:
        say(event.message)
    if event.event != "step":
        return []
    progress.show(event.step)
    say(f"step {event.step} of {event.steps}, loss {event.loss:.4f}, {event.seconds or 0:.2f} s a step")
    return [event]


def _published(host: Host, result: Path, name: str) -> tuple[Adapter, Path]:
    """Write a run's result below `output/loras` under a free name, and return it as it is there."""
    path = free_name(below(host.output_folder() / "loras", name), ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    convert.write(convert.read(result), path, "kohya")
    return convert.read(path), path
