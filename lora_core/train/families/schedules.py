"""How a loaded model adds noise: from its scheduler's configuration, and from its family where that is silent."""

from __future__ import annotations

from typing import Any

from ...errors import BadConfig, WrongArchitecture
from ..protocols import Schedule
from .model import Config, Family

_DISCRETE = ("epsilon", "v_prediction")


def schedule_of(family: Family, scheduler: Any, asked: str = "auto") -> Schedule:
    """Return a model's schedule; `asked` is the configuration's 'objective'.

    Raises BadConfig for an objective that the family has not, WrongArchitecture for a scheduler that says something
    that is not trained here.
    """
    kinds = ("flow",) if family.flow else _DISCRETE
    if asked not in ("auto", *kinds):
        what = f"config: 'objective' is {asked!r}, and {family.name} has {' or '.join(kinds)}"
        raise BadConfig(f"{what}; leave it at 'auto'", key="objective")
    return _flow(family, scheduler.config) if family.flow else _discrete(scheduler, asked)


def _flow(family: Family, config: Config) -> Schedule:
    shift = config.get("shift", config.get("flow_shift")) or family.shift
    tokens = None
    if config.get("use_dynamic_shifting"):
        names = {"base_seq_len": "base_image_seq_len", "max_seq_len": "max_image_seq_len"}
        names |= {"base_shift": "base_shift", "max_shift": "max_shift"}
        tokens = {ours: float(config[theirs]) for ours, theirs in names.items()}
    return Schedule("flow", None, family.timesteps, float(shift), tokens, family.patch)


def _discrete(scheduler: Any, asked: str) -> Schedule:
    found = scheduler.config.prediction_type if asked == "auto" else asked
    if found not in _DISCRETE:
        raise WrongArchitecture(f"the model predicts {found!r}; set 'objective' to 'epsilon' or 'v_prediction'")
    return Schedule(found, scheduler.alphas_cumprod.float())
