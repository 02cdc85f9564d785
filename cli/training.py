"""The verb `train`: a run's events on the way, and an end that can be asked for."""

from __future__ import annotations

import os
import signal
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .output import json_text, note, progress

Emit = Callable[[Mapping[str, Any]], None]


def train(options: Namespace) -> int:
    """Train a LoRA as CONFIG, a JSON file, says."""
    from ..lora_core.errors import LorasmithError

    if options.plan:
        return planned(options)
    leads = os.environ.get("RANK", "0") == "0"
    if not leads:  # of several processes the first one speaks
        options.events = None
    with events_to(options.events) as emit, stop_signals() as asked:
        last: Mapping[str, Any] = {"event": "", "step": 0, "steps": 0}
        try:
            for last in events(options, lambda: bool(asked)):
                emit(last)
                if leads:
                    progress(last)
        except LorasmithError as error:
            if last["event"] != "error":
                emit({**last, "event": "error", "message": error.message, "error": error.details()})
            raise
    if options.events != "-" and leads:
        how = "trained" if last["event"] == "done" else "stopped after"
        print(f"{how} {last['step']} of {last['steps']} steps: {last['path']}")
    return 128 + signal.SIGINT if signal.SIGINT in asked else 0


def planned(options: Namespace) -> int:
    """Say what the run will need, measured on one step."""
    from ..convert import training
    from ..lora_core.train import TrainConfig, budget

    config = TrainConfig.from_json(options.CONFIG)
    found, decided = training.needed(config)
    settings = decided.to_json()
    if options.json:
        print(json_text({**found.data(), "switches": budget.advice(found, settings)}))
    for line in () if options.json else budget.text(found, settings):
        print(line)
    return 0


def events(options: Namespace, stop: Callable[[], bool]) -> Iterator[Mapping[str, Any]]:
    """Yield the run's events as JSON-ready data."""
    from ..convert import training
    from ..lora_core.train import TrainConfig

    config = TrainConfig.from_json(options.CONFIG)
    for event in training.train(config, resume=options.resume, stop=stop):
        yield event.data()


@contextmanager
def events_to(target: str | None) -> Iterator[Emit]:
    """Yield what writes an event as a line of JSON to stdout ("-"), to the end of a file, or nowhere."""
    if target is None:
        yield lambda event: None
    elif target == "-":
        yield lambda event: print(json_text(event), flush=True)
    else:
        with open(target, "a", encoding="utf-8") as stream:
            yield lambda event: print(json_text(event), file=stream, flush=True)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield the signals that asked for an end so far; the second one interrupts instead of asking."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        note("stopping after the step in hand; once more to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
