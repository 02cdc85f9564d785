"""The training configuration: one frozen dataclass whose fields carry the comments, and its strict reader."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import BadConfig, FileProblem
from .settings import (
    ANYTHING,
    FLAG,
    MAYBE_TEXT,
    TEXT,
    Each,
    Either,
    Number,
    OneOf,
    choice,
    count,
    flag,
    maybe_text,
    number,
    plain,
    read,
    rules,
    setting,
    text,
)

TARGETS = ("attention", "attention+ff", "linear", "all")  # presets


@dataclass(frozen=True)
class TrainConfig:
    """All that a run depends on. Relative paths mean the folder that the command is started in, as in a shell.

    >>> TrainConfig(model="sd15", data="pictures", out="run").rank
    16
    """

    # what, from what, to where
    model: str  # diffusers folder, single .safetensors/.ckpt checkpoint, or hub id
    data: str  # folder of pictures, a Hugging Face dataset's name, or a folder of arrow or parquet files
    out: str  # folder of this run: NAME.safetensors, log.jsonl, state/, samples/
    name: str = text("lora")  # file name of the result, without its ending
    tokenizer: str | None = maybe_text()  # folder with vocab.json and merges.txt, for single-file checkpoints
    family: str | None = maybe_text()  # model family id; None = as the model says
    revision: str | None = maybe_text()  # branch, tag or commit of a model on the hub

    # length and optimisation
    steps: int = count(1000, 1)  # optimizer steps in all, resumed ones included
    epochs: int = count(0)  # rounds over the pictures, which then decide 'steps'; 0 = 'steps' says it
    batch_size: int = count(1, 1)  # pictures per forward pass
    accumulate: int = count(1, 1)  # forward passes per optimizer step
    learning_rate: float = number(1e-4, above=True)  # peak rate
    text_encoder_learning_rate: float | None = number(None, above=True)  # None = learning_rate
    lora_plus_ratio: float = number(1.0, above=True)  # rate of `up` over that of `down` (LoRA+); 16 is the paper's
    scheduler: str = choice("cosine", "constant", "linear", "cosine_with_restarts", "polynomial", "rex")
    warmup: int = count(0)  # steps over which the rate rises from 0
    cycles: int = count(1, 1)  # of cosine_with_restarts
    power: float = number(1.0, above=True)  # of polynomial
    min_rate: float = number(0.0, high=1.0)  # share of the peak rate that the schedule ends at
    max_grad_norm: float = number(1.0)  # total norm that gradients are clipped to; 0 = no clipping
    optimizer: str = text("adamw")  # adamw, adafactor, muon, prodigy, lion; or MODULE.CLASS of an installed package
    optimizer_args: Mapping[str, Any] = setting({}, Each(ANYTHING, table=True))  # further arguments, by name
    weight_decay: float = number(0.01)
    ema: float = number(0.0, high=1.0)  # decay of the weights' moving average, which is then what is saved; 0 = none

    # the adapter
    algorithm: str = choice("lora", "loha", "lokr", "dora")
    rank: int = count(16, 1)
    alpha: float = number(16.0, above=True)  # the adapter's effect is alpha / rank * up @ down
    conv_rank: int | None = setting(None, Number(1, whole=True, optional=True))  # of kernels above 1x1; None = rank
    conv_alpha: float | None = number(None, above=True)  # None = alpha
    text_encoder_rank: int | None = setting(None, Number(1, whole=True, optional=True))  # None = rank
    text_encoder_alpha: float | None = number(None, above=True)  # None = alpha
    ranks: Mapping[str, int] = setting({}, Each(Number(1, whole=True), table=True))  # pattern of module names -> rank
    alphas: Mapping[str, float] = setting({}, Each(Number(0, above=True), table=True))  # pattern -> alpha
    rank_stabilized: bool = flag()  # alpha / sqrt(rank) instead of alpha / rank (rsLoRA)
    factor: int = setting(-1, Number(-1, whole=True))  # lokr: size of the first Kronecker factor; -1 = near the root
    init: str = choice("kaiming", "gaussian", "pissa", "olora")  # of lora; the last two end as a plain LoRA
    start_from: str | None = maybe_text()  # a LoRA of any format to go on from
    targets: str | tuple[str, ...] = setting("attention", Either(Each(TEXT), OneOf(TARGETS)))  # preset, or patterns
    exclude: tuple[str, ...] = setting((), Each(TEXT))  # patterns of module names that are left out
    text_encoder: bool = flag()  # adapt the text encoders too
    dropout: float = number(0.0, high=0.99)  # of what enters `up`
    rank_dropout: float = number(0.0, high=0.99)  # of whole ranks
    module_dropout: float = number(0.0, high=0.99)  # of whole layers, per step
    max_weight_norm: float | None = number(None, above=True)  # layers whose change has a larger norm are scaled down

    # pictures
    resolution: int = count(512, 8)  # side of the square that pictures are cropped to, or the area's root; pixels
    center_crop: bool = flag()  # False: one of five windows along the long side, drawn anew each time
    random_flip: bool = flag()  # mirror half of the draws
    buckets: bool = flag()  # keep aspect ratios: batches of equal sizes of about the same area, instead of squares
    bucket_step: int = count(64, 8)  # sides of buckets are multiples of this
    bucket_min: int = count(256, 8)  # smallest side
    bucket_max: int = count(2048, 8)  # largest side
    bucket_upscale: bool = flag(True)  # enlarge pictures that are smaller than their bucket
    masks: str | None = maybe_text()  # "alpha", or a folder of masks of the pictures' names: white counts, black less
    unmasked_weight: float = number(0.0, high=1.0)  # weight of the loss where the mask is black
    frames: int = count(1, 1)  # of video models: pictures in a row (4 n + 1)
    image_column: str = text("image")  # of a Hugging Face dataset
    caption_column: str = text("text")
    max_pictures: int = count(0)  # train on so many of them, the first in order; 0 = all
    skip_broken: bool = flag()  # leave out pictures that cannot be read, and say so; False: refuse them

    # captions
    instance_prompt: str | None = maybe_text()  # caption of every picture that has none of its own
    trigger_word: str | None = maybe_text()  # put before every caption that lacks it, and into the file
    caption_dropout: float = number(0.0, high=1.0)  # share of the draws with an empty caption
    caption_separator: str = text(",")  # between tags
    shuffle_captions: bool = flag()  # tags in a new order for each draw
    keep_tokens: int = count(0)  # tags at the beginning that are neither shuffled nor dropped
    tag_dropout: float = number(0.0, high=1.0)  # share of the tags that each draw leaves out

    # prior preservation
    class_data: str | None = maybe_text()  # folder of class pictures
    class_prompt: str | None = maybe_text()  # caption of every class picture that has none of its own
    class_pictures: int = count(0)  # generate so many into class_data before the run, as far as they are not there
    prior_weight: float = number(1.0)  # weight of the prior's loss
    prior_from_base: bool = flag()  # no class pictures: keep to what the model predicts without the adapter

    # the loss
    objective: str = choice("auto", "epsilon", "v_prediction", "flow")  # auto = as the model says
    loss: str = choice("mse", "huber", "smooth_l1")
    huber_c: float = number(0.1, above=True)  # where huber and smooth_l1 turn from squares to amounts
    huber_schedule: str = choice("constant", "exponential", "snr")  # how huber_c falls with the noise
    weighting: str = choice("none", "debiased", "sigma_sqrt", "cosmap")  # of timesteps, beside min_snr_gamma
    min_snr_gamma: float | None = number(None, above=True)  # None = every timestep counts alike; 5 is the paper's
    timesteps: str = choice(
        "auto", "uniform", "logit_normal", "mode", "cosmap"
    )  # density; auto = as the family's table
    logit_mean: float = setting(0.0, Number(float("-inf")))
    logit_std: float = number(1.0, above=True)
    mode_scale: float = number(1.29)
    shift: float | str = setting("auto", Either(OneOf(("auto", "resolution")), Number(0, above=True)))  # of flow models
    min_timestep: float = number(0.0, high=1.0)  # share of the noise schedule below which nothing is drawn
    max_timestep: float = number(1.0, high=1.0)
    guidance: float = number(1.0)  # value fed to models with a guidance embedding
    noise_offset: float = number(0.0)  # strength of a constant added to each channel's noise
    noise_offset_random: bool = flag()  # draw the strength from 0 to noise_offset each time
    pyramid_noise: int = count(0)  # iterations of noise at ever coarser resolutions; 0 = none
    pyramid_discount: float = number(0.3, high=1.0)
    input_perturbation: float = number(0.0)  # strength of further noise in the input that the target does not have
    zero_terminal_snr: bool = flag()  # rescale the betas so that the last timestep is pure noise

    # the machine
    seed: int = count(1337)
    precision: str = choice("auto", "fp32", "fp16", "bf16")  # what the frozen model computes in; the adapter is fp32
    device: str = text("auto")  # auto | cpu | cuda | cuda:1 | mps ...
    gradient_checkpointing: bool | str = setting("auto", Either(FLAG, OneOf(("auto", "on", "off"))))
    quantize: str = choice("none", "fp8", "int8", "nf4")  # the frozen denoiser's weights
    swap_blocks: int = count(0)  # blocks of the denoiser that wait on the CPU until their turn
    cache: str = choice("memory", "disk")  # where latents and embeddings are kept
    offload_encoders: bool = flag(True)  # move text encoders and VAE off the device once all is cached
    compile: bool = flag()  # torch.compile each block of the denoiser
    tf32: bool = flag()  # let GPUs multiply float32 with fewer digits, which is faster
    deterministic: bool = flag()  # torch's deterministic kernels: bit-exact on GPUs too, slower
    on_out_of_memory: str = choice("stop", "retry")  # retry = turn on the switch that helps and go on

    # what comes out on the way
    checkpoint_every: int = count(500)  # steps; 0 = only at the end
    keep: int = count(3)  # checkpoints that stay on disk; 0 = all
    validation_prompt: str | tuple[str, ...] | None = setting(None, Either(Each(TEXT), MAYBE_TEXT))  # for previews
    negative_prompt: str = text("")  # of the previews
    sample_every: int = count(0)  # steps; 0 = no previews
    sample_steps: int = count(25, 1)  # of the previews' sampler
    sample_guidance: float | None = number(None)  # None = as the family's table says
    sample_count: int = count(1, 1)  # previews per prompt, with different seeds
    validation_data: str | None = maybe_text()  # folder of unseen pictures, whose loss is told before and after
    validation_every: int = count(0)  # steps between two measurements; 0 = with the checkpoints
    format: str = text("kohya")  # key format of the adapter file
    report_to: tuple[str, ...] = setting((), Each(OneOf(("tensorboard", "wandb"))))  # trackers, if installed
    push_to_hub: str | None = maybe_text()  # repository id that the result is uploaded to

    def __post_init__(self) -> None:
        """Check types and ranges; raises BadConfig with one line."""
        for name, rule in rules(type(self)).items():
            rule.check(name, getattr(self, name))
        _check_together(self)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> TrainConfig:
        """Read a JSON file, or take its content as a mapping.

        Raises BadConfig for an unknown key (naming the nearest known one), a missing key, a wrong type or range, and
        FileProblem for a file that cannot be read.
        """
        values = dict(source) if isinstance(source, Mapping) else _read(Path(source))
        known = rules(cls)
        for key in values:
            if key not in known:
                raise BadConfig(_unknown(key, list(known)), key=key)
        missing = [key for key in ("model", "data", "out") if values.get(key) is None]
        if missing:
            raise BadConfig(f"config: {missing[0]!r} is missing; add {missing[0]!r}: PATH", key=missing[0])
        return cls(**{key: read(known[key], value) for key, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data, defaults included."""
        return {item.name: plain(getattr(self, item.name)) for item in fields(self)}

    def to_public_json(self) -> dict[str, Any]:
        """Return `to_json` without this machine's folders, fit for a file that is passed on."""
        values = self.to_json()
        return {**values, **{key: last_part(values[key]) for key in PATHS if values[key] is not None}}

    @property
    def prompts(self) -> tuple[str, ...]:
        """The previews' prompts."""
        prompt = self.validation_prompt
        return () if prompt is None else (prompt,) if isinstance(prompt, str) else prompt


def last_part(path: str) -> str:
    """Return a path's last part, and a hub id as it is.

    >>> last_part("/home/someone/models/sd15.safetensors"), last_part("someone/sd15")
    ('sd15.safetensors', 'someone/sd15')
    """
    is_hub_id = path.count("/") == 1 and not path.startswith(("/", ".", "~")) and not Path(path).exists()
    return path if is_hub_id else Path(path).name


PATHS = ("model", "data", "out", "tokenizer", "class_data", "validation_data", "masks", "start_from")
CHOICES: Mapping[str, tuple[str, ...]] = {
    **{name: rule.options for name, rule in rules(TrainConfig).items() if isinstance(rule, OneOf)},
    "targets": TARGETS,
}


def _check_together(config: TrainConfig) -> None:
    """Refuse values that are fine alone and wrong together."""
    if config.resolution % 8:
        raise BadConfig(f"config: 'resolution' is {config.resolution}; it must be a multiple of 8", key="resolution")
    if config.bucket_step % 8:
        raise BadConfig(f"config: 'bucket_step' is {config.bucket_step}; it must be a multiple of 8", key="bucket_step")
    if not config.name or Path(config.name).name != config.name:
        raise BadConfig(f"config: 'name' is {config.name!r}; it must be a file name without folders", key="name")
    for key, needs, why in _NEEDS:
        if getattr(config, key) and not getattr(config, needs):
            raise BadConfig(f"config: {key!r} needs {needs!r}, {why}", key=needs)
    if config.class_prompt is not None and config.class_data is None and not config.prior_from_base:
        ways = "'class_data', a folder of class pictures, or 'prior_from_base'"
        raise BadConfig(f"config: 'class_prompt' needs {ways}", key="class_data")
    if config.class_data is not None and config.prior_from_base:
        line = "config: 'prior_from_base' and 'class_data' are two ways to keep the prior; leave one out"
        raise BadConfig(line, key="prior_from_base")
    if config.min_timestep >= config.max_timestep:
        line = f"config: 'min_timestep' {config.min_timestep:g} is not below 'max_timestep' {config.max_timestep:g}"
        raise BadConfig(f"{line}; nothing could be drawn", key="min_timestep")


_NEEDS = (  # (a setting, one that it needs, what that is)
    ("class_pictures", "class_data", "the folder that the pictures go to"),
    ("class_pictures", "class_prompt", "what they are generated from"),
    ("sample_every", "validation_prompt", "the previews' prompt"),
    ("validation_every", "validation_data", "a folder of unseen pictures"),
    ("unmasked_weight", "masks", "where the masks are"),
)


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"config: unknown key {key!r}; did you mean {near[0]!r}?"
    return f"config: unknown key {key!r}; known keys: {', '.join(known)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileProblem(
            f"{path}: cannot be read ({error.strerror}); give the path of a JSON file", file=path
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadConfig(f"{path}: not JSON ({error}); see the example in the documentation", file=path) from error
    if not isinstance(values, dict):
        raise BadConfig(f"{path}: holds a {type(values).__name__}; a configuration is one JSON object", file=path)
    return values
