"""Full difference: a parameter's change itself, as extraction and full fine-tuning write it (`diff`, `diff_b`).

Source: LyCORIS, the `full` module (its forward adds `multiplier * diff`); PEFT, `lora_B.bias`, whose effect is
`scaling * bias`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .base import Additive, wide


@dataclass(frozen=True, eq=False)
class Full(Additive):
    """A dense change of one parameter: a weight, or a bias where the target says so."""

    diff: Tensor  # (out, in, *kernel) or (out,)
    scale: float = 1.0  # factor on it; no file has a place for it beside the tensor, so a writer multiplies it in
    alpha: float | None = None  # that a file has beside it, without any effect; kept so that the file comes back

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter that this layer changes."""
        return tuple(self.diff.shape)

    def delta(self) -> Tensor:
        """Return `scale * diff`, float32."""
        return wide(self.diff) if self.scale == 1 else wide(self.diff) * self.scale

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the one tensor."""
        return (self.diff,)

    def scaled(self, strength: float) -> Full:
        """Return the change at another strength: `scale` carries it, the tensor stays bit for bit."""
        return self if strength == 1 else replace(self, scale=self.scale * strength)
