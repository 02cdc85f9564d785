"""What a draw says of its picture: trigger word, caption dropout, tags shuffled and left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..errors import BadConfig
from . import rng
from .config import TrainConfig


@dataclass(frozen=True)
class Captions:
    """The rule from a picture's captions to the one that a draw gets.

    In this order: one of several captions, tags left out, tags in a new order, the trigger word in front where it is
    missing (so no draw loses it), and for a share of the draws nothing at all.
    """

    trigger: str | None = None
    dropout: float = 0.0  # share of the draws with an empty caption
    separator: str = ","  # between tags
    shuffle: bool = False
    keep: int = 0  # tags at the beginning that are neither shuffled nor left out
    tag_dropout: float = 0.0  # share of the other tags that a draw leaves out

    def __post_init__(self) -> None:
        """Refuse tags that nothing separates; raises BadConfig."""
        if not self.separator:
            raise BadConfig("config: 'caption_separator' is empty; give what is between tags", key="caption_separator")

    @property
    def finite(self) -> bool:
        """Whether each caption gives few texts, so that all of them can be encoded before the first step."""
        return not (self.shuffle or self.tag_dropout)

    def whole(self, caption: str) -> str:
        """Return a caption with all its tags and the trigger word.

        >>> Captions(trigger="sks").whole("a cat")
        'sks, a cat'
        """
        if not self.trigger or re.search(rf"(?<!\w){re.escape(self.trigger)}(?!\w)", caption):
            return caption
        return self._joined([self.trigger, caption]) if caption else self.trigger

    def every(self, captions: Iterable[str]) -> list[str]:
        """Return the texts that draws may have, each once and in order; those without change where not `finite`."""
        shown = [self.whole(caption) for caption in captions]
        return list(dict.fromkeys([*shown, ""] if self.dropout else shown))

    def draw(self, captions: Sequence[str], seed: int, *place: rng.Place) -> str:
        """Return one draw's caption, a function of the seed and the place alone."""
        if self.dropout and _share(1, seed, "caption dropout", *place)[0] < self.dropout:
            return ""
        which = rng.integer(len(captions), seed, "caption", *place) if len(captions) > 1 else 0
        caption = captions[which]
        return self.whole(caption if self.finite else self._tags(caption, seed, *place))

    def _tags(self, caption: str, seed: int, *place: rng.Place) -> str:
        tags = [tag.strip() for tag in caption.split(self.separator) if tag.strip()]
        kept, loose = tags[: self.keep], tags[self.keep :]
        if self.tag_dropout:
            shares = _share(len(loose), seed, "tag dropout", *place)
            loose = [tag for tag, share in zip(loose, shares, strict=True) if share >= self.tag_dropout]
        if self.shuffle:
            loose = [loose[index] for index in rng.permutation(len(loose), seed, "tag order", *place)]
        return self._joined([*kept, *loose])

    def _joined(self, tags: Sequence[str]) -> str:
        mark = self.separator.strip()
        return (f"{mark} " if mark else self.separator).join(tags)


def captions_of(config: TrainConfig) -> Captions:
    """Return the rule that a configuration asks for; raises BadConfig."""
    return Captions(
        trigger=config.trigger_word,
        dropout=config.caption_dropout,
        separator=config.caption_separator,
        shuffle=config.shuffle_captions,
        keep=config.keep_tokens,
        tag_dropout=config.tag_dropout,
    )


def _share(count: int, seed: int, purpose: str, *place: rng.Place) -> list[float]:
    """Return numbers drawn uniformly from [0, 1)."""
    drawn: list[float] = torch.rand(count, generator=rng.generator(seed, purpose, *place)).tolist()
    return drawn
