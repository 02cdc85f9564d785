"""(IA)^3: a factor for each input or each output of a weight.

`W' = W * (1 + s * w)` with w as LyCORIS stores it; PEFT stores the factor `1 + w` itself.
Sources: (IA)^3, arXiv 2205.05638, section 3.3; LyCORIS, the forward pass of the `ia3` module; PEFT, the forward pass of
its IA3 layer. On outputs PEFT multiplies what leaves the layer, so that its bias gets the same factor: a second layer,
whose target is the bias, says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .base import Sizes, Transform, misfit, wide


@dataclass(frozen=True, eq=False)
class IA3(Transform):
    """A factor for each input or output."""

    scale: Tensor  # one number for each input or output, in any shape that has no other side
    on_input: bool  # of PEFT's convolutions only the configuration tells (feedforward_modules)
    absolute: bool = False  # whether the numbers are the factors (PEFT) or what is added to 1 (LyCORIS)

    @property
    def shape(self) -> Sizes:
        """`(any, in)` or `(out, any)`."""
        return (None, self.scale.numel()) if self.on_input else (self.scale.numel(), None)

    def changed(self, weight: Tensor, strength: float) -> Tensor:
        """Return the multiplied weight."""
        axis = 1 if self.on_input else 0
        if weight.dim() <= axis or weight.shape[axis] != self.scale.numel():
            raise misfit(self, self.shape, weight)
        change = self.scale.to(weight).flatten()
        change = (change - 1 if self.absolute else change) * strength
        sides = [1] * weight.dim()
        sides[axis] = -1
        return weight * (1 + change.reshape(sides))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the one tensor."""
        return (self.scale,)

    def scaled(self, strength: float) -> IA3:
        """Return the layer at another strength; the numbers, then in float32, carry it."""
        if strength == 1:
            return self
        scale = wide(self.scale)
        return replace(self, scale=1 + (scale - 1) * strength if self.absolute else scale * strength)
