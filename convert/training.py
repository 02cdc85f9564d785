"""Training from files: the configuration's model through diffusers, the result in the configured key format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import nn

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig, UnsupportedLayer, WrongArchitecture
from ..lora_core.train.budget import Budget
from ..lora_core.train.config import TrainConfig
from ..lora_core.train.create import create
from ..lora_core.train.diffusers_backend import open_backend
from ..lora_core.train.engine import Event, Stop, Write, never, run
from ..lora_core.train.inject import Weights, weights_like
from ..lora_core.train.job import Setup
from ..lora_core.train.planning import planned
from ..lora_core.train.world import World, world
from .files import plan, read, write
from .formats import WRITABLE
from .keymap import Keymap, keymap, names
from .regroup import in_layout, parted, turned
from .training_header import base_hashes, metadata


def train(config: TrainConfig, resume: bool = False, stop: Stop = never) -> Iterator[Event]:
    """Train as configured and yield events (see `lora_core.train.engine.run`).

    Started by `accelerate launch`, each process takes its share; 'batch_size' counts the pictures of one process.
    Raises LorasmithError: BadConfig for a format that cannot be written, before anything is loaded.
    """
    place = world()
    shared = in_world(config, place)
    try:
        setup = opened(shared, resume)
        given = (setup.backend, setup.write, resume, stop, setup.weights, setup.cuts, setup.start)
        yield from run(shared, *given, place)
    finally:
        place.close()


def in_world(config: TrainConfig, place: World) -> TrainConfig:
    """Return the configuration of all processes together, on this one's device."""
    if place.size == 1:
        return config
    return replace(config, batch_size=config.batch_size * place.size, device=str(place.device))


def opened(config: TrainConfig, resume: bool = False) -> Setup:
    """Load what a run needs; raises LorasmithError."""
    if config.format not in WRITABLE:
        raise BadConfig(f"config: 'format' is {config.format!r}; choose one of {', '.join(WRITABLE)}", key="format")
    backend = open_backend(config, diffusers_names)
    refuse_unsayable(config, backend.architecture, backend.modules(), backend.weights)
    start = None
    if config.start_from is not None and not resume:  # a resumed run has it in its state
        start = starting(config.start_from, backend.architecture, backend.modules())
    write_adapter = writer(config, backend.schedule.prediction)

    def write_turned(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> object:
        return write_adapter(halves_turned(adapter, backend.architecture), path, facts)

    return Setup(config, backend, write_turned, backend.weights, backend.cuts, start)


def needed(config: TrainConfig) -> tuple[Budget, TrainConfig]:
    """Return what the run will need, measured on one step, and what was decided for it; see `planning.planned`."""
    setup = opened(config)
    return planned(config, setup.backend, setup.weights)


def halves_turned(adapter: Adapter, architecture: str) -> Adapter:
    """Exchange the halves of the rows where Diffusers has them the other way round: its own inverse.

    Raises UnsupportedLayer for a layer whose rows cannot be rearranged.
    """
    map = keymap(architecture)
    layers = {target: turned(target, layer, map) for target, layer in adapter.layers.items()}
    return replace(adapter, layers=layers)


def refuse_unsayable(
    config: TrainConfig, architecture: str, modules: Mapping[Target, nn.Module], weights: Weights = weights_like
) -> None:
    """Raise BadConfig when the format cannot hold what the algorithm trains, naming those that can.

    Tried with the first module of each kind, all blocks of a fused weight, and one whose halves Diffusers has turned.
    """
    map = keymap(architecture)
    first: dict[tuple[object, ...], str] = {}
    for target, module in modules.items():
        kind = (isinstance(module, nn.Linear), target.block is None, turned_module(target, map))
        first.setdefault((target.component, *kind), target.module)
    some = {target: module for target, module in modules.items() if target.module in first.values()}
    plain = replace(config, init="kaiming", ranks={}, alphas={})
    layers = {target: made.layer() for target, made in create(some, plain, weights=weights).items()}
    able = [format for format in WRITABLE if _can_say(Adapter(architecture, layers), format)]
    if config.format not in able:
        line = f"config: 'format' {config.format!r} cannot hold what 'algorithm' {config.algorithm!r} trains here"
        way = f"choose one of {', '.join(able)}" if able else "choose another 'algorithm' or narrower 'targets'"
        raise BadConfig(f"{line}; {way}", key="format")


def turned_module(target: Target, map: Keymap) -> bool:
    """Say whether Diffusers has the halves of a module's rows the other way round."""
    module = map.module(target)
    return module is not None and module.swapped


def _can_say(adapter: Adapter, format: str) -> bool:
    try:
        plan(halves_turned(adapter, adapter.architecture or ""), "adapter.safetensors", format)
    except UnsupportedLayer:
        return False
    return True


def starting(path: str, architecture: str, targets: Collection[Target]) -> Adapter:
    """Read the adapter to go on from, its layers in the pieces that these targets are, as Diffusers' modules have them.

    Raises LorasmithError: the file cannot be read, is of another model family, or cannot be split.
    """
    adapter = read(path)
    if adapter.architecture not in (None, architecture):
        line = f"{path}: was made for {adapter.architecture}, and the model is {architecture}"
        raise WrongArchitecture(f"{line}; choose an adapter of its family", file=path)
    adapter = replace(adapter, architecture=architecture)
    pieces = {replace(target, block=None) for target in targets if target.block is not None}
    if pieces:
        return halves_turned(parted(adapter, pieces), architecture)
    whole = replace(adapter, layers=in_layout(adapter.layers, keymap(architecture), "original"))
    return halves_turned(whole, architecture)


def diffusers_names(architecture: str, component: str) -> Mapping[str, Target]:
    """Return a component's targets by the names that diffusers and transformers give its modules."""
    return names(architecture, component, "diffusers")


def writer(config: TrainConfig, prediction: str) -> Write:
    """Return the function that writes an adapter with the header that hosts and collectors look for."""
    base: dict[str, str] = {}  # the model's hashes, once they are known

    def write_adapter(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> Path:
        if not base:
            base.update(base_hashes(config.model))
        described = replace(adapter, metadata={**adapter.metadata, **metadata(config, prediction, facts, base)})
        return write(described, path, config.format, overwrite=True)

    return write_adapter
