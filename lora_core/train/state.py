"""Everything that training changes, as named tensors: factors, their average, optimizer, loss scale, step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Target
from .average import Average
from .config import TrainConfig
from .create import Names, create
from .dropout import Dropout, place
from .inject import Weights, weights_like
from .kinds import Trained
from .optimizer_state import pack, unpack
from .optimizers import build
from .start import begin


@dataclass
class LossScale:
    """Dynamic loss scaling for fp16 (arXiv 1710.03740, section 3.2): halve on overflow, double after a calm stretch."""

    factor: float = 1.0
    calm: int = 0  # steps without overflow
    active: bool = False

    def grow(self, stretch: int = 2000) -> None:
        """Count a good step."""
        self.calm += 1
        if self.active and self.calm >= stretch:
            self.factor, self.calm = self.factor * 2, 0

    def shrink(self) -> bool:
        """Halve the factor after an overflow; False when there is nothing left to halve."""
        self.factor, self.calm = self.factor / 2, 0
        return self.active and self.factor >= 1


@dataclass(eq=False)
class State:
    """A run between two steps. Mutable: `advance`, `skip` and `restore` change it in place."""

    factors: Mapping[Target, Trained]
    optimizer: torch.optim.Optimizer
    scale: LossScale = field(default_factory=LossScale)
    dropout: Dropout = field(default_factory=Dropout)
    average: Average | None = None
    max_norm: float | None = None  # of each layer's change
    step: int = 0  # finished optimizer steps
    whole: bool = True  # False while an optimizer step is under way: nothing may be saved then

    @classmethod
    def fresh(
        cls,
        modules: Mapping[Target, nn.Module],
        config: TrainConfig,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        weights: Weights = weights_like,
        names: Names | None = None,
        start: Adapter | None = None,
    ) -> State:
        """Return the state before the first step.

        Args:
            modules: what is adapted.
            config: the run's.
            device: where the model computes; None takes the modules' own.
            dtype: what the model computes in; None takes the modules' own. Only fp16 needs its loss scaled.
            weights: the host's way to a frozen weight, which some starts depend on.
            names: the modules' names that the patterns of 'ranks' and 'alphas' mean; None takes the targets' own.
            start: the adapter to go on from, with its layers in the pieces that `modules` has.

        Raises:
            BadConfig: an option, a module or the adapter does not go with the rest.
        """
        factors = create(modules, config, device, weights, names)
        if start is not None:
            begin(factors, start, config)
        dtypes = {dtype} if dtype else {getattr(module.weight, "dtype", None) for module in modules.values()}
        scale = LossScale(2.0**16, active=True) if torch.float16 in dtypes else LossScale()
        dropout = Dropout(config.seed, config.dropout, config.rank_dropout, config.module_dropout)
        optimizer = build(factors, config, _device(factors))
        state = cls(factors, optimizer, scale, dropout, max_norm=config.max_weight_norm)
        if config.ema:
            state.average = Average.of(config.ema, list(state.parameters()))
        state._training(True)
        return state

    @property
    def device(self) -> torch.device:
        """Where the factors live."""
        return _device(self.factors)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all trainable tensors; each call starts anew."""
        return (tensor for trained in self.factors.values() for tensor in trained.parameters.values())

    def set_rate(self, factor: float) -> float:
        """Set every group's learning rate to its peak times `factor` and return the first group's."""
        for group in self.optimizer.param_groups:
            rate = group["peak"] * factor
            if isinstance(group["lr"], Tensor):  # optimizers that are compiled keep it so
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return float(self.optimizer.param_groups[0]["lr"])

    def advance(self) -> None:
        """Take the optimizer step with the gradients at hand."""
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._cap_norms()
        if self.average is not None:
            self.average.update(list(self.parameters()))
        self.scale.grow()
        self.step += 1
        self.whole = True

    def skip(self) -> None:
        """Count a step whose gradients overflowed, without taking it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def _cap_norms(self) -> None:
        """Scale down the layers whose change has grown too large; on the device, without waiting for it."""
        if self.max_norm is None:
            return
        for trained in self.factors.values():
            trained.shrink((self.max_norm / trained.norm().clamp(min=1e-12)).clamp(max=1.0))

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Let the factors hold the values that are saved inside the block: their average, where there is one.

        Schedule-free optimizers have an average of their own. Afterwards each value is back bit for bit.
        """
        if self.average is None and not hasattr(self.optimizer, "eval"):
            yield
            return
        parameters = list(self.parameters())
        with torch.no_grad():
            before = [parameter.detach().clone() for parameter in parameters]
            self._training(False)
            for parameter, value in zip(parameters, self.average.tensors if self.average else [], strict=False):
                parameter.copy_(value)
        try:
            yield
        finally:
            self._training(True)
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)

    def _training(self, on: bool) -> None:
        """Put a schedule-free optimizer's parameters where gradients are taken, or where its average is."""
        change = getattr(self.optimizer, "train" if on else "eval", None)
        if change is not None:
            change()

    def adapter(self, architecture: str | None = None, ema: bool = True) -> Adapter:
        """Return a copy as an adapter: of what is saved, or without `ema` of the factors as they are trained."""
        if ema:
            with self.as_saved():
                return self.adapter(architecture, ema=False)
        return Adapter(architecture, {target: trained.layer() for target, trained in self.factors.items()})

    def finite(self) -> bool:
        """Say whether every factor is finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Return factors, average and optimizer tensors by name, as they are in memory."""
        named = dict(self._named())
        found = {name: parameter.detach() for name, parameter in named.items()}
        found.update(self._constants())
        if self.average is not None:
            found.update({f"average|{name}": value for name, value in zip(named, self.average.tensors, strict=True)})
        return {**found, **pack(self.optimizer, named)[0]}

    def facts(self) -> dict[str, Any]:
        """Return what is no tensor, JSON-ready."""
        scale = {"scale": self.scale.factor, "calm": self.scale.calm}
        averaged = {} if self.average is None else {"averaged": self.average.count}
        return {"step": self.step, **scale, **averaged, "optimizer": pack(self.optimizer, dict(self._named()))[1]}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over saved tensors and facts, bit for bit; raises ValueError when one is missing or misshapen."""
        named = dict(self._named())
        try:
            unpack(self.optimizer, named, tensors, facts["optimizer"])
            wanted: dict[str, Tensor] = {**named, **self._constants()}
            if self.average is not None:
                self.average.count = int(facts["averaged"])
                wanted |= {f"average|{name}": value for name, value in zip(named, self.average.tensors, strict=True)}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the optimizer's state is not whole ({error!r})") from error
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name not in tensors or tensors[name].shape != tensor.shape:
                    raise ValueError(f"no tensor {name!r} of shape {tuple(tensor.shape)}")
                tensor.copy_(tensors[name])
        self.step, self.scale.factor, self.scale.calm = facts["step"], facts["scale"], facts["calm"]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for target, trained in self.factors.items():
            for part, parameter in trained.parameters.items():
                yield f"{_label(target)}|{part}", parameter

    def _constants(self) -> dict[str, Tensor]:
        factors = self.factors.items()
        return {f"{_label(at)}|{part}": value for at, one in factors for part, value in one.constants.items()}


def _label(target: Target) -> str:
    return "|".join(map(str, (target.component, *place(target))))


def _device(factors: Mapping[Target, Trained]) -> torch.device:
    return next(iter(next(iter(factors.values())).parameters.values())).device
