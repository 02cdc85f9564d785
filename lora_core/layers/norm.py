"""A change of a normalisation layer's scale or shift, which trainers spell `w_norm` and `b_norm`.

Source: LyCORIS, the `norm` module (its forward adds the change to the parameter).
"""

from __future__ import annotations

from dataclasses import dataclass

from .full import Full


@dataclass(frozen=True, eq=False)
class Norm(Full):
    """A dense change `(channels,)` of a norm's weight, or of its bias where the target says so."""
