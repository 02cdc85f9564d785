"""Latents and text embeddings, computed once and kept under what they are made of: never under a step or a position."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import BadDataset, BadValues
from . import rng
from .cache_store import Disk, Memory, Recent, Store, key_of
from .captions import captions_of
from .config import TrainConfig
from .families import collate
from .masks import averaged
from .pictures import pixels
from .protocols import Backend, Cond, Moments
from .shapes import Shapes, shapes_of
from .views import Broken, Plan, View

TEXT_MEMORY = 2**28  # bytes of embeddings that are kept where captions have no end
AHEAD = 4  # pictures that are decoded while others are encoded


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward and backward pass needs."""

    latents: Tensor  # (B, C, h, w) float32
    cond: Cond
    weights: Tensor  # (B,): the loss is sum(weights * losses)
    names: Sequence[str]  # file names, for messages
    mask: Tensor | None = None  # (B, 1, h, w): what each place of the latents counts; None = 1
    prior: Cond | None = None  # what the frozen model's own prediction is kept for; None = nothing
    rows: Sequence[int] | None = None  # their positions in the step, which key the draws; None = one after the other
    share: float | None = None  # of the step's loss; None = the same for all of its batches


@dataclass(frozen=True, eq=False)
class Cache:
    """A backend's encoders, and what they have made.

    A store may forget: then a view or a text is encoded anew, with the same result.
    """

    backend: Backend
    shapes: Shapes = Shapes()
    frames: int = 1
    unmasked: float | None = None  # weight of the loss where a mask is black; None = there are no masks
    texts_are_finite: bool = True  # all texts can be encoded before the first step, and the text encoders can go
    made_by: str = ""  # what else decides on latents and embeddings, beside the backend's fingerprint
    latents: Store = field(default_factory=Memory)
    texts: Store = field(default_factory=Memory)

    def moments(self, view: View) -> Moments:
        """Return a view's latent distribution; raises BadDataset, and BadValues where the encoder gives NaN."""
        key = self._key(view)
        found = self.latents.get(key)
        if found is None:
            return self._encoded(key, view, self._pixels(view))
        return Moments(found["mean"], found["std"])

    def cond(self, caption: str) -> Cond:
        """Return a caption's conditioning, each tensor with a leading dimension of 1."""
        key = key_of("text", self.backend.fingerprint, self.made_by, caption)
        found: Cond | None = self.texts.get(key)
        if found is None:
            found = {name: _kept(tensor) for name, tensor in self.backend.encode_text(caption).items()}
            self.texts.put(key, found)
        return found

    def mask(self, view: View, size: torch.Size) -> Tensor:
        """Return what each place of a view's latents counts, (1, h, w) float32 in [unmasked, 1].

        `size` is (h, w). Class pictures, and pictures without a mask, count as a whole. Raises BadDataset.
        """
        mask = view.picture.mask
        if self.unmasked is None or mask is None:
            return torch.ones(1, *size)
        key = key_of("mask", mask.digest, self._key(view), list(size))
        found = self.latents.get(key)
        if found is None:
            covered = mask.cover(view.cut(self.shapes), view.picture.size)
            found = {"mask": averaged(covered, (size[0], size[1]))[None]}
            self.latents.put(key, found)
        return self.unmasked + (1 - self.unmasked) * found["mask"]

    def fill(
        self,
        views: Iterable[View],
        stop: Callable[[], bool] = lambda: False,
        skip: bool = False,
        further: Iterable[str] = (),
    ) -> list[Broken]:
        """Encode views, their captions and `further` ones ahead of the steps that draw them; ends early on `stop()`.

        All pictures come first, then all captions, so that the autoencoder and the text encoders need not be held
        together. With `skip`, pictures that cannot be decoded, or whose latents are not finite, are returned; without,
        the first of them raises BadDataset or BadValues naming it. Where captions have no end, only `further` ones are
        encoded.
        """
        texts, broken = dict.fromkeys(further), dict[str, Broken]()
        for view, decoded in _ahead(self._unmade(views, texts), self._pixels):
            if stop():
                return list(broken.values())
            if view.picture.digest not in broken:
                try:
                    moments = self._encoded(self._key(view), view, decoded())
                except (BadDataset, BadValues) as error:
                    if not skip:
                        raise
                    broken[view.picture.digest] = Broken(view.picture, error.message)
                    continue
                self.mask(view, moments.mean.shape[-2:])
        for text in texts:
            if stop():
                break
            self.cond(text)
        return list(broken.values())

    def sound(self, plan: Plan, end: int) -> Plan:
        """Return a plan of `end` steps without the pictures that cannot be decoded or encoded.

        What is looked at is the first epoch from step 0, so that a resumed run leaves out the same ones. Raises
        BadDataset where none would be left.
        """
        while broken := self.fill(plan.drawn(plan.epoch(0, end)), skip=True):
            plan = plan.without(broken)
        return plan

    def batch(
        self,
        views: Sequence[View],
        seed: int,
        purpose: str,
        step: int,
        first: int | Sequence[int],
        prior_weight: float,
        prior: str | None = None,
    ) -> Batch:
        """Assemble a micro-batch; `first` is the position of its first row within the step, which keys the draws.

        Rows that do not follow each other are given one by one. `prior` is a caption for which the frozen model's
        prediction is to be kept. The loss over the rows is
        `mean(instance) + prior_weight * mean(class)` (DreamBooth, arXiv 2208.12242, equation 2).
        """
        rows = range(first, first + len(views)) if isinstance(first, int) else first
        latents = [self._sample(self.moments(v), seed, purpose, step, r) for v, r in zip(views, rows, strict=True)]
        sizes = [self._time_ids(view) for view in views]
        conds = [{**self.cond(v.caption), "time_ids": ids} for v, ids in zip(views, sizes, strict=True)]
        kept = [] if prior is None else [{**self.cond(prior), "time_ids": ids} for ids in sizes]
        count = sum(not view.prior for view in views)
        weights = [(prior_weight if view.prior else 1.0) / count for view in views]
        masks = [] if self.unmasked is None else [self.mask(v, latents[0].shape[-2:]) for v in views]
        return Batch(
            torch.stack(latents),
            collate(conds),
            torch.tensor(weights),
            [view.picture.path.name for view in views],
            mask=torch.stack(masks) if masks else None,
            prior=collate(kept) if kept else None,
            rows=rows,
        )

    def _key(self, view: View) -> str:
        cut = view.cut(self.shapes)
        made = ["picture", self.backend.fingerprint, self.made_by, view.picture.digest]
        return key_of(*made, cut.width, cut.height, self.frames, view.window, view.flip)

    def _pixels(self, view: View) -> Tensor:
        return pixels(view.picture.source, view.cut(self.shapes), self.frames)

    def _encoded(self, key: str, view: View, seen: Tensor) -> Moments:
        made, path = self.backend.encode_image(seen), view.picture.path
        moments = Moments(_kept(made.mean), _kept(made.std))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            raise BadValues(f"{path}: its latents are not finite; set 'precision' to 'fp32' or 'bf16'", file=path)
        self.latents.put(key, {"mean": moments.mean, "std": moments.std})
        return moments

    def _unmade(self, views: Iterable[View], texts: dict[str, None]) -> Iterator[View]:
        """Yield the views that are not in the cache, each once, and note the captions of all."""
        seen = set[str]()
        for view in views:
            if self.texts_are_finite:
                texts[view.caption] = None
            key = self._key(view)
            if key not in seen and self.latents.get(key) is None:
                yield view
            seen.add(key)

    def _time_ids(self, view: View) -> Tensor:
        """Return SDXL's size conditioning, (1, 6): original height, width, crop top, left, target height, width.

        Source: SDXL, arXiv 2307.01952, section 2.2. Other families ignore it.
        """
        (width, height), cut = view.picture.size, view.cut(self.shapes)
        left, top = cut.corner(view.picture.size)
        return torch.tensor([[height, width, top, left, cut.height, cut.width]], dtype=torch.float32)

    def _sample(self, moments: Moments, seed: int, purpose: str, step: int, row: int) -> Tensor:
        noise = rng.normal(moments.mean.shape, seed, f"{purpose} latents", step, row)
        return moments.mean + moments.std * noise


def open_cache(config: TrainConfig, backend: Backend) -> Cache:
    """Return the cache that a configuration asks for: in memory, or in `OUT/cache`."""
    disk = Disk(Path(config.out) / "cache") if config.cache == "disk" else None
    finite = captions_of(config).finite
    made_by = [config.model, config.tokenizer, config.family, config.text_encoder, config.guidance, str(backend.dtype)]
    return Cache(
        backend,
        shapes_of(config),
        frames=config.frames,
        unmasked=None if config.masks is None else config.unmasked_weight,
        texts_are_finite=finite,
        made_by=key_of(made_by),
        latents=disk or Memory(),
        texts=(disk or Memory()) if finite else Recent(TEXT_MEMORY),
    )


def _ahead(views: Iterable[View], decode: Callable[[View], Tensor]) -> Iterator[tuple[View, Callable[[], Tensor]]]:
    """Yield views with what returns their pixels, or raises; some are decoded ahead in a thread of their own."""
    waiting = deque[tuple[View, Future[Tensor]]]()
    with ThreadPoolExecutor(1) as pool:
        for view in views:
            waiting.append((view, pool.submit(decode, view)))
            if len(waiting) > AHEAD:
                view, future = waiting.popleft()
                yield view, future.result
        for view, future in waiting:
            yield view, future.result


def _kept(tensor: Tensor) -> Tensor:
    """Return a CPU copy that is no inference tensor and part of no graph."""
    with torch.inference_mode(False):
        return tensor.detach().cpu().clone()
