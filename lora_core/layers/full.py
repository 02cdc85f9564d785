"""Full difference: a parameter's change itself, as extraction and full fine-tuning write it (`diff`, `diff_b`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .base import Additive


@dataclass(frozen=True, eq=False)
class Full(Additive):
    """A dense change of one parameter: a weight, or a bias where the target says so."""

    diff: Tensor  # (out, in, *kernel) or (out,)

    def delta(self) -> Tensor:
        """Return the stored change, float32."""
        return self.diff.float()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the one tensor."""
        return (self.diff,)

    def scaled(self, strength: float) -> Full:
        """Return the change multiplied by `strength`, in float32 (a file has no place for a factor beside it)."""
        return self if strength == 1 else replace(self, diff=self.diff.float() * strength)
