"""The denoiser's blocks through `torch.compile`: each alone, so that equal blocks share what was compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .inject import Replaced, replaced_forward

BACKEND = "inductor"
LOG = logging.getLogger("lorasmith")


class Compiled(Replaced):
    """The forward of a compiled block."""


class Attempt:
    """A block's forward, compiled at its first call; as it was, from then on, where that fails."""

    def __init__(self, block: nn.Module, backend: str, warn: Callable[[str], None]):
        """Prepare; nothing is compiled yet."""
        self.plain: Callable[..., Any] = block.forward
        self.fast: Callable[..., Any] | None = torch.compile(self.plain, backend=backend)
        self.warn, self.name = warn, type(block).__name__

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Compute the block."""
        if self.fast is None:
            return self.plain(*given, **named)
        try:
            return self.fast(*given, **named)
        except _failures() as error:
            self.fast = None
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self.warn(f"{self.name} cannot be compiled here ({reason}); it runs uncompiled, set 'compile' to false")
            return self.plain(*given, **named)


@contextmanager
def compiled(
    blocks: Sequence[nn.Module], backend: str = BACKEND, warn: Callable[[str], None] = LOG.warning
) -> Iterator[None]:
    """Let blocks run compiled inside the block, the layers that are attached to them included.

    Enter it before `attached`, and in the place of `lean`, whose layers it would have to leave in pieces. `warn` gets
    one line for the first kind of block that cannot be compiled; such blocks run as they are, with the same numbers.
    """
    said: set[str] = set()

    def once(line: str) -> None:
        if not said:
            warn(line)
        said.add(line)

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(replaced_forward(block, Compiled(Attempt(block, backend, once))))
        yield


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException

    return (TorchDynamoException,)
