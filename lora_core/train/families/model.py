"""What the trainer must know of a model family: a table, and the few functions in which families differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..protocols import Cond, Moments

Config = Mapping[str, Any]  # of a diffusers model or scheduler


@dataclass(frozen=True)
class Encoder:
    """A text encoder of a family."""

    component: str  # as adapters name it: "clip_l", "t5xxl", ...
    model: str  # class in transformers
    folder: str = "text_encoder"  # subfolder of a pipeline; its tokenizer lies in "tokenizer" with the same ending
    clip: bool = False  # a CLIP, which may be adapted
    tokens: int = 77  # that it reads of a caption
    optional: bool = False  # pipelines without it are whole

    @property
    def tokenizer(self) -> str:
        """The subfolder of its tokenizer."""
        return self.folder.replace("text_encoder", "tokenizer")


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in pieces."""

    architecture: str  # family id as adapters carry it
    family: Family
    denoiser: Any
    vae: Any
    text_encoders: Mapping[str, Any]  # component -> text model
    tokenizers: Mapping[str, Any]
    scheduler: Any
    settings: Config = field(default_factory=dict)  # the pipeline's own, beside its parts


@dataclass(frozen=True, eq=False)
class Input:
    """What a denoiser is called with."""

    noisy: Tensor  # (B, C, h, w) or (B, C, frames, h, w), in the denoiser's dtype
    t: Tensor  # (B,): whole timesteps, or 1000 s of flow models
    cond: Cond  # floating point in the denoiser's dtype
    guidance: float  # for models with a guidance embedding
    settings: Config


@dataclass(frozen=True)
class Preview:
    """How a family draws: through diffusers' own pipeline, from embeddings that are there already."""

    pipeline: str  # class in diffusers
    guidance: float  # what people draw with
    embeddings: Mapping[str, str]  # conditioning -> argument of the pipeline; "negative_" before it where negative
    scale: str = "guidance_scale"  # argument that takes the guidance
    negative: bool = True  # the pipeline takes negative embeddings
    rows: bool = False  # it takes embeddings as a list of rows, one a picture
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments
    scheduler: Callable[[Any, Any], Any] | None = None  # (diffusers, the model's) -> the sampler; None = the model's


@dataclass(frozen=True)
class Family:
    """A model family: facts first, then the functions that differ from family to family."""

    name: str  # what people call it
    ids: tuple[str, ...]  # architectures as adapters carry them
    denoiser: str  # class in diffusers
    vae: str  # class in diffusers
    encoders: tuple[Encoder, ...]
    preview: Preview
    # functions
    recognize: Callable[[Config], str | None]  # the denoiser's config -> architecture; None = not of this family
    prepare: Callable[[Parts, str], Cond]  # a caption -> all that does not change when text encoders are trained
    embed: Callable[[Parts, Cond], Cond]  # that -> conditioning; runs the text encoders that may be trained
    predict: Callable[[Any, Input], Tensor]  # (denoiser, input) -> prediction, in the input's shape
    latents: Callable[[Any, Tensor], Moments]  # (vae, pixels (1, 3, [frames,] H, W)) -> one picture's latents
    # what is predicted, and when
    flow: bool = True  # False: discrete diffusion with the scheduler's betas and prediction type
    timesteps: str = "logit_normal"  # density
    shift: float = 1.0  # of flow models, where the scheduler does not say
    # sizes
    folder: str = "transformer"
    scale: int = 8  # pixels along a latent pixel's side
    patch: int = 2  # latent pixels along a token's side
    video: bool = False  # latents have frames
    # layers
    blocks: tuple[str, ...] = ("transformer_blocks",)  # modules of the denoiser that hold its repeated blocks
    attention: tuple[str, ...] = (".to_q", ".to_k", ".to_v", ".to_out.0")  # endings of names
    feed_forward: tuple[str, ...] = (".ff.net.0.proj", ".ff.net.2")
    edges: tuple[str, ...] = ()  # of further layers in the blocks that 'linear' takes; empty = all Linear in the blocks

    @property
    def multiple(self) -> int:
        """What the sides of pictures must be multiples of, in pixels."""
        return self.scale * self.patch

    def endings(self, preset: str) -> tuple[str, ...]:
        """Return what the names of a preset's layers end in; an empty text ends them all."""
        found = {"attention": self.attention, "attention+ff": (*self.attention, *self.feed_forward), "all": ("",)}
        linear = (*self.attention, *self.feed_forward, *self.edges) if self.edges else ("",)
        return {**found, "linear": linear}[preset]


def unchanged(parts: Parts, cond: Cond) -> Cond:
    """Return prepared conditioning as it is: no encoder of the family is trained."""
    return cond
