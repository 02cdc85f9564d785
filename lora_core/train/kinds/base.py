"""What every trained layer promises, and where it stands on a live model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ...adapter import Target
from ...layers import Layer
from ..dropout import Dropout
from ..functions import Fetch
from ..operations import Operation


@dataclass(frozen=True, eq=False)
class Site:
    """One adapted module as a trained layer sees it."""

    target: Target
    operation: Operation
    fetch: Fetch  # to the frozen weight
    dropout: Dropout


class Trained(ABC):
    """The trainable half of one adapted module. Its parameters are matrices, of a DoRA also one vector."""

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The trained tensors by name, float32."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """Tensors that are drawn or computed at the start and belong to the state."""
        return {}

    @abstractmethod
    def layer(self) -> Layer:
        """Return a copy on the CPU that training does not change any more."""

    @abstractmethod
    def output(self, site: Site, x: Tensor) -> Tensor:
        """Return what the adapted module gives for x, differentiable in x and in the parameters."""

    @abstractmethod
    def norm(self) -> Tensor:
        """Return the Frobenius norm of the weight's change, a scalar on the parameters' device."""

    @abstractmethod
    def shrink(self, ratio: Tensor) -> None:
        """Multiply the weight's change by a scalar, in place."""


def copied(tensor: Tensor, *shape: int) -> Tensor:
    """Return a copy on the CPU, in another shape where one is given."""
    plain = tensor.detach().cpu().clone()
    return plain.reshape(shape) if shape else plain
