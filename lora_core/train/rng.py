"""Counter-based randomness: every draw is a function of the seed and of what it is for.

No generator's state has to be saved, no draw depends on an earlier one, and the global generators are never touched,
so a run continues bit for bit from any step. Draws happen on the CPU and are then moved: they are the same on every
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

Place = int | str


def generator(seed: int, purpose: str, *place: Place) -> torch.Generator:
    """Return a fresh CPU generator for one draw.

    `purpose` names the kind of draw ("noise", "timestep", ...), `place` says which one: a step, a position, a name.

    >>> int(torch.randint(100, (1,), generator=generator(1, "noise", 2))) == int(
    ...     torch.randint(100, (1,), generator=generator(1, "noise", 2)))
    True
    """
    text = "\x1f".join((str(seed), purpose, *map(repr, place)))
    digest = blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def normal(shape: Sequence[int], seed: int, purpose: str, *place: Place) -> Tensor:
    """Return standard normal float32 values of the given shape."""
    return torch.randn(tuple(shape), generator=generator(seed, purpose, *place))


def integer(bound: int, seed: int, purpose: str, *place: Place) -> int:
    """Return a whole number in `[0, bound)`."""
    return int(torch.randint(bound, (1,), generator=generator(seed, purpose, *place)))


def permutation(count: int, seed: int, purpose: str, *place: Place) -> list[int]:
    """Return the numbers `0 .. count - 1` in a random order."""
    order: list[int] = torch.randperm(count, generator=generator(seed, purpose, *place)).tolist()
    return order
