"""Everything that training changes, as named tensors: factors, optimizer, loss scale, step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..adapter import Adapter, Target
from .config import TrainConfig
from .inject import Factors, create

DENOISER = "denoiser"


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

    factors: Mapping[Target, Factors]
    optimizer: torch.optim.Optimizer
    scale: LossScale = field(default_factory=LossScale)
    step: int = 0  # finished optimizer steps
    whole: bool = True  # False while an optimizer step is under way: nothing may be saved then

    @classmethod
    def fresh(
        cls,
        modules: Mapping[Target, nn.Module],
        config: TrainConfig,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Return the state before the first step.

        `device` and `dtype` are those that the model computes on and in; None takes the modules' own. Only fp16 needs
        its loss scaled.
        """
        factors = create(modules, config.rank, config.alpha, config.seed, device)
        dtypes = {dtype} if dtype else {getattr(module.weight, "dtype", None) for module in modules.values()}
        scale = LossScale(2.0**16, active=True) if torch.float16 in dtypes else LossScale()
        return cls(factors, _adamw(factors, config), scale)

    @property
    def device(self) -> torch.device:
        """Where the factors live."""
        return next(self.parameters()).device

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all trainable tensors; each call starts anew."""
        return (tensor for pair in self.factors.values() for tensor in (pair.down, pair.up))

    def set_rate(self, factor: float) -> float:
        """Set every group's learning rate to its peak times `factor` and return the first group's."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def advance(self) -> None:
        """Take the optimizer step with the gradients at hand."""
        self.whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.scale.grow()
        self.step += 1
        self.whole = True

    def skip(self) -> None:
        """Count a step whose gradients overflowed, without taking it."""
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def adapter(self, architecture: str | None = None) -> Adapter:
        """Return a copy of the factors as an adapter."""
        return Adapter(architecture, {target: pair.layer() for target, pair in self.factors.items()})

    def finite(self) -> bool:
        """Say whether every factor is finite."""
        return all(bool(tensor.isfinite().all()) for tensor in self.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """Return factors and optimizer tensors by name, as they are in memory."""
        found: dict[str, Tensor] = {}
        for name, parameter in self._named():
            found[name] = parameter.detach()
            found.update({f"{name}|{key}": value for key, value in self.optimizer.state[parameter].items()})
        return found

    def facts(self) -> dict[str, Any]:
        """Return what is no tensor, JSON-ready."""
        return {"step": self.step, "scale": self.scale.factor, "calm": self.scale.calm}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Take over saved tensors and facts, bit for bit; raises ValueError when a factor is missing or misshapen."""
        with torch.no_grad():
            for name, parameter in self._named():
                if name not in tensors or tensors[name].shape != parameter.shape:
                    raise ValueError(f"no tensor {name!r} of shape {tuple(parameter.shape)}")
                parameter.copy_(tensors[name])
                prefix = f"{name}|"
                slots = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
                placed = {key: value.to(self._place(parameter, value), copy=True) for key, value in slots.items()}
                self.optimizer.state[parameter] = placed
        self.step, self.scale.factor, self.scale.calm = facts["step"], facts["scale"], facts["calm"]

    def _place(self, parameter: nn.Parameter, value: Tensor) -> torch.device:
        """Return where an optimizer tensor lives: beside its parameter; step counts on the CPU unless fused."""
        apart = value.dim() == 0 and not self.optimizer.defaults.get("fused")
        return torch.device("cpu") if apart else parameter.device

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for target, pair in self.factors.items():
            for part in ("down", "up"):
                yield f"{target.component}|{target.module}|{part}", getattr(pair, part)


def _adamw(factors: Mapping[Target, Factors], config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW (arXiv 1711.05101) with a group for the denoiser and one for the text encoders."""
    text_rate = config.text_encoder_learning_rate or config.learning_rate
    groups: list[dict[str, Any]] = []
    for of_denoiser, rate in ((True, config.learning_rate), (False, text_rate)):
        chosen = [pair for target, pair in factors.items() if (target.component == DENOISER) == of_denoiser]
        if chosen:
            groups.append({"params": [t for pair in chosen for t in (pair.down, pair.up)], "lr": rate, "peak": rate})
    device = next(iter(factors.values())).down.device
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=_has_fused(device) or None
    )


def _has_fused(device: torch.device) -> bool:
    """Say whether this torch has the one-kernel AdamW for a device: CUDA always, the CPU since 2.4."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" or (device.type == "cpu" and (major, minor) >= (2, 4))
