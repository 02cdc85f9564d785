"""Optimizers by name: torch's, two built in, and whatever class of an installed package."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..adapter import Target
from ..errors import BadConfig
from .config import TrainConfig
from .kinds import Trained
from .lion import Lion
from .prodigy import Prodigy

DENOISER = "denoiser"
TORCH = {"adamw": "AdamW", "adafactor": "Adafactor", "muon": "Muon", "sgd": "SGD"}
OWN: Mapping[str, type[torch.optim.Optimizer]] = {"prodigy": Prodigy, "lion": Lion}
ALIASES = {  # short names that trainers use -> MODULE.CLASS
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "ademamix8bit": "bitsandbytes.optim.AdEMAMix8bit",
    "schedulefree": "schedulefree.AdamWScheduleFree",
    "prodigy-plus": "prodigyplus.ProdigyPlusScheduleFree",
    "came": "came_pytorch.CAME",
}
PACKAGES = {  # module -> what pip installs, where it is not the module's own name
    "prodigyplus": "prodigy-plus-schedule-free",
    "came_pytorch": "came-pytorch",
    "lion_pytorch": "lion-pytorch",
    "pytorch_optimizer": "pytorch-optimizer",
}
ONE_RATE = ("prodigyopt",)  # packages whose optimizers refuse groups of different rates


def build(factors: Mapping[Target, Trained], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the configured optimizer over all trained tensors, in groups of one rate, each with its peak.

    Raises BadConfig for an optimizer that is not there, or arguments that it does not take.
    """
    kind = find(config.optimizer)
    groups = _groups(factors, config)
    if len(groups) > 1 and kind.__module__.split(".")[0] in ONE_RATE:
        raise _refused(config, "it takes one rate only: leave out 'text_encoder_learning_rate' and 'lora_plus_ratio'")
    if kind.__name__.startswith("Prodigy") and config.learning_rate < 0.01:
        line = f"config: 'learning_rate' is {config.learning_rate:g}; Prodigy finds the rate itself"
        raise BadConfig(f"{line}, and this is a factor on it: set it to 1", key="learning_rate")
    if "schedulefree" in kind.__name__.lower() and config.ema:
        raise BadConfig("config: a schedule-free optimizer averages weights itself; set 'ema' to 0", key="ema")
    if kind.__name__ == "Muon" and any(tensor.dim() != 2 for group in groups for tensor in group["params"]):
        raise _refused(config, "it moves matrices only, and a DoRA's magnitude is none: choose another optimizer")
    try:
        return kind(groups, lr=config.learning_rate, **_arguments(kind, config, device))  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise _refused(config, f"it refuses its arguments ({why}); see 'optimizer_args'") from error


def find(word: str) -> type[torch.optim.Optimizer]:
    """Return an optimizer's class by name; raises BadConfig naming what to install, or the nearest name."""
    known = word.lower()
    if known in OWN:
        return OWN[known]
    path = f"torch.optim.{TORCH[known]}" if known in TORCH else ALIASES.get(known, word)
    module, _, name = path.rpartition(".")
    if not module:
        names = (*TORCH, *OWN, *ALIASES)
        near = difflib.get_close_matches(known, names, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(names)}, or MODULE.CLASS of a package"
        raise BadConfig(f"config: unknown 'optimizer' {word!r}; {meant}", key="optimizer")
    return _load(word, module, name)


def _load(word: str, module: str, name: str) -> type[torch.optim.Optimizer]:
    top = module.split(".")[0]
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        line = f"config: 'optimizer' {word!r} needs the package {top} ({str(error).splitlines()[0]})"
        raise BadConfig(f"{line}: pip install {PACKAGES.get(top, top)}", key="optimizer") from error
    if found is None and top == "torch":
        line = f"config: 'optimizer' {word!r} is not in torch {torch.__version__}; update torch, or choose another"
        raise BadConfig(line, key="optimizer")
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        line = f"config: {module} has no optimizer {name!r}; see its documentation for its classes"
        raise BadConfig(line, key="optimizer")
    return found


def _groups(factors: Mapping[Target, Trained], config: TrainConfig) -> list[dict[str, Any]]:
    """Return the trained tensors by rate, in their order: text encoders and, by LoRA+, `up` may have their own."""
    text_rate = config.text_encoder_learning_rate or config.learning_rate
    found: dict[float, list[nn.Parameter]] = {}
    for target, trained in factors.items():
        rate = config.learning_rate if target.component == DENOISER else text_rate
        for name, tensor in trained.parameters.items():
            found.setdefault(rate * (config.lora_plus_ratio if name == "up" else 1.0), []).append(tensor)
    return [{"params": tensors, "lr": rate, "peak": rate} for rate, tensors in found.items()]


def _arguments(kind: type[torch.optim.Optimizer], config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Return the further arguments; raises BadConfig for one that the class does not know."""
    signature = inspect.signature(kind.__init__).parameters.values()
    known = {one.name for one in signature} - {"self", "params", "lr"}
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.optimizer_args.items()}
    for key in given if not open_ended else ():
        if key not in known:
            raise _refused(config, f"it has no argument {key!r}; {_near(key, known)}")
    if "weight_decay" in known or open_ended:
        given.setdefault("weight_decay", config.weight_decay)
    elif config.weight_decay != TrainConfig.weight_decay:
        line = f"config: 'weight_decay' means nothing to {config.optimizer!r}; leave it out"
        raise BadConfig(line, key="weight_decay")
    if kind is torch.optim.AdamW and _has_fused(device) and not {"fused", "foreach"} & given.keys():
        given["fused"] = True
    return given


def _near(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(known))}"


def _refused(config: TrainConfig, why: str) -> BadConfig:
    return BadConfig(f"config: 'optimizer' {config.optimizer!r}: {why}", key="optimizer")


def _has_fused(device: torch.device) -> bool:
    """Say whether this torch has the one-kernel AdamW for a device: CUDA always, the CPU since 2.4."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" or (device.type == "cpu" and (major, minor) >= (2, 4))
