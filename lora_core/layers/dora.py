"""DoRA: a changed weight whose rows, or columns, get trained lengths.

`W' = m * V / ||V||` with `V = W + delta` and one norm for each output, or each input, kernel included.
Away from strength 1 the trainers differ, and each file keeps its trainer's rule:
LyCORIS (and OneTrainer, which has no strength) scales the change of length alone: `W' = V * (1 + s (m / ||V|| - 1))`,
so that a small strength leaves `W + delta`; PEFT scales the change inside: `V = W + s delta`.
Sources: DoRA, arXiv 2402.09353, equation 5; LyCORIS, its `weight_decompose`; PEFT, the forward pass of its DoRA layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import WrongArchitecture
from .base import Sizes, Transform, misfit
from .loha import LoHa
from .lokr import LoKr
from .lora import LoRA


@dataclass(frozen=True, eq=False)
class DoRA(Transform):
    """A change of direction and a magnitude for each output, or each input.

    The magnitude's shape tells the side: `(out,)`, `(out, 1)`, `(out, 1, 1, 1)` and PEFT's `(1, out, 1, 1)` mean
    outputs, `(1, in)` and `(1, in, 1, 1)` inputs. One dimension alone always means outputs, also where the weight is
    square.
    """

    layer: LoRA | LoHa | LoKr
    magnitude: Tensor
    peft: bool = False  # PEFT's form (lora_magnitude_vector): outputs always, and its rule for strengths

    @property
    def on_input(self) -> bool:
        """Whether there is a magnitude for each input."""
        sides = self.magnitude.shape
        if self.peft or len(sides) < 2 or sides[0] != 1:
            return False
        return sides[1] != 1 or self.layer.shape[0] != 1

    @property
    def shape(self) -> Sizes:
        """Shape of the weight, as the inner layer tells it."""
        return self.layer.shape

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the weight with its new direction and lengths."""
        axis = 1 if self.on_input else 0
        if math.prod(self.layer.shape) != weight.numel():
            raise misfit(self, self.shape, weight)
        if weight.shape[axis] != self.magnitude.numel():
            raise WrongArchitecture(
                f"a DoRA layer with {self.magnitude.numel()} magnitudes met a weight of shape {tuple(weight.shape)}"
            )
        delta = self.layer.delta().to(weight).reshape(weight.shape)
        changed = torch.add(weight, delta, alpha=strength if self.peft else 1.0)
        sides = [1] * weight.dim()
        sides[axis] = -1
        others = [side for side in range(weight.dim()) if side != axis]
        lengths = torch.linalg.vector_norm(changed, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
        factor = self.magnitude.to(weight).reshape(sides) / lengths
        return torch.mul(changed, factor if self.peft else 1 + strength * (factor - 1))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the inner layer's tensors and the magnitude."""
        return (*self.layer.tensors(), self.magnitude)

    def scaled(self, strength: float) -> DoRA | None:
        """Return PEFT's form with its inner layer scaled; LyCORIS's form has no place for a strength."""
        if strength == 1:
            return self
        return replace(self, layer=self.layer.scaled(strength)) if self.peft and strength != 0 else None
