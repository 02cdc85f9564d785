"""Training that goes on from an existing adapter: its tensors become the trained ones, its effect stays what it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..errors import BadConfig
from ..layers import DoRA, Layer, LoHa, LoKr, LoRA
from .config import TrainConfig
from .kinds import Trained, TrainedDoRA, TrainedLoHa, TrainedLoKr, TrainedLoRA

KEY = "start_from"


def begin(factors: Mapping[Target, Trained], adapter: Adapter, config: TrainConfig) -> None:
    """Put an adapter's layers into fresh ones, in place.

    A LoRA of a smaller rank is filled up: the ranks that it lacks are as in a fresh layer, without effect yet. Layers
    of the run that the adapter lacks stay fresh. What the adapter has and the run would not train is refused, since the
    result would lose it. The run's own alpha and rank go on; factors are scaled so that the effect is the same.

    Raises BadConfig for layers that the run does not train, of another algorithm, or of another size.
    """
    if config.init in ("pissa", "olora"):
        raise _refused(f"goes on from an adapter, and 'init' {config.init!r} starts anew; leave one out")
    left = [target for target in adapter.layers if target not in factors]
    if left:
        names = ", ".join(f"{target.component}.{target.module}" for target in left[:3])
        way = "choose wider 'targets' (and 'text_encoder'), or take those layers out first"
        raise _refused(f"has {len(left)} layers that this run does not train, such as {names}; {way}")
    with torch.inference_mode(False), torch.no_grad():
        for target, layer in adapter.layers.items():
            _take(factors[target], layer, f"{target.component}.{target.module}")


def _take(trained: Trained, layer: Layer, name: str) -> None:
    if isinstance(trained, TrainedLoRA) and isinstance(layer, LoRA):
        return _take_lora(trained, layer, name)
    if isinstance(trained, TrainedDoRA) and isinstance(layer, DoRA) and isinstance(layer.layer, LoRA):
        if layer.on_input:
            raise _refused(f"{name}: has a magnitude for each input; only those for outputs can be trained on")
        _take_lora(trained.inner, layer.layer, name)
        return _copy(trained.magnitude, layer.magnitude.flatten(), name)
    if isinstance(trained, TrainedLoHa) and isinstance(layer, LoHa) and layer.t1 is None:
        return _take_loha(trained, layer, name)
    if isinstance(trained, TrainedLoKr) and isinstance(layer, LoKr) and layer.t2 is None and layer.w1 is not None:
        return _take_lokr(trained, layer, name)
    ours, theirs = type(trained).__name__.removeprefix("Trained"), type(layer).__name__
    if isinstance(layer, DoRA):
        theirs = f"{theirs} of a {type(layer.layer).__name__}"
    way = f"set 'algorithm' to {theirs.lower()!r}" if theirs in ("LoRA", "DoRA", "LoHa", "LoKr") else "resize it first"
    raise _refused(f"{name}: is a {theirs}, and this run trains a {ours}; {way}")


def _take_lora(trained: TrainedLoRA, layer: LoRA, name: str) -> None:
    """Copy a LoRA, a Tucker core multiplied out, and fill up the ranks that it lacks."""
    rank, ours = layer.rank, trained.down.shape[0]
    if rank > ours:
        way = f"set 'rank' to {rank}, or make it smaller with: resize IN OUT --rank {ours}"
        raise _refused(f"{name}: is of rank {rank}, above this run's {ours}; {way}")
    if layer.reshape is not None:
        raise _refused(f"{name}: widens its weight, which training cannot")
    down, up = layer.columns(), layer.up.flatten(1).float() * (layer.scale / trained.scale)
    fresh = trained.down.detach().clone()
    filled = torch.zeros_like(trained.up)
    if down.shape[1] != fresh.shape[1] or up.shape[0] != filled.shape[0]:
        raise _misfit(name, (up.shape[0], down.shape[1]), (filled.shape[0], fresh.shape[1]))
    fresh[:rank], filled[:, :rank] = down.to(fresh), up.to(filled)
    trained.down.copy_(fresh)
    trained.up.copy_(filled)


def _take_loha(trained: TrainedLoHa, layer: LoHa, name: str) -> None:
    _copy(trained.w1_a, layer.w1_a.flatten(1).float() * (layer.scale / trained.scale), name)
    for ours, theirs in ((trained.w1_b, layer.w1_b), (trained.w2_a, layer.w2_a), (trained.w2_b, layer.w2_b)):
        _copy(ours, theirs.flatten(1), name)


def _take_lokr(trained: TrainedLoKr, layer: LoKr, name: str) -> None:
    second = [tensor for tensor in (layer.w2, layer.w2_a, layer.w2_b) if tensor is not None]
    if len(second) != len(trained.second) or layer.w1 is None:
        theirs, ours = ("is whole" if count == 1 else "is of low rank" for count in (len(second), len(trained.second)))
        way = "set 'rank' and 'factor' to the same"
        raise _refused(f"{name}: its second factor {theirs}, and this run's {ours}; {way}")
    _copy(trained.w1, layer.w1.float() * (layer.scale / trained.scale), name)
    for mine, given in zip(trained.second, second, strict=True):
        _copy(mine, given.flatten(1), name)


def _copy(ours: Tensor, theirs: Tensor, name: str) -> None:
    if ours.shape != theirs.shape:
        raise _misfit(name, tuple(theirs.shape), tuple(ours.shape))
    ours.copy_(theirs.to(ours))


def _misfit(name: str, theirs: tuple[int, ...], ours: tuple[int, ...]) -> BadConfig:
    way = "set 'rank' and 'factor' to the same"
    return _refused(f"{name}: has factors of shape {theirs}, and this run's are {ours}; {way}")


def _refused(why: str) -> BadConfig:
    return BadConfig(f"config: 'start_from' {why}", key=KEY)
