"""The training configuration: one frozen dataclass whose fields carry the comments, and its strict reader."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import BadConfig, FileProblem


@dataclass(frozen=True)
class TrainConfig:
    """All that a run depends on. Relative paths mean the folder that the command is started in, as in a shell.

    >>> TrainConfig(model="sd15", data="pictures", out="run").rank
    16
    """

    # what, from what, to where
    model: str  # diffusers folder, single .safetensors/.ckpt checkpoint, or hub id
    data: str  # folder of pictures
    out: str  # folder of this run: NAME.safetensors, log.jsonl, state/, samples/
    name: str = "lora"  # file name of the result, without its ending
    tokenizer: str | None = None  # folder with vocab.json and merges.txt, for single-file checkpoints

    # length and optimisation
    steps: int = 1000  # optimizer steps in all, resumed ones included
    batch_size: int = 1  # pictures per forward pass
    accumulate: int = 1  # forward passes per optimizer step
    learning_rate: float = 1e-4  # peak rate
    text_encoder_learning_rate: float | None = None  # None = learning_rate
    scheduler: str = "cosine"  # constant | linear | cosine, after the warm-up
    warmup: int = 0  # steps over which the rate rises from 0
    max_grad_norm: float = 1.0  # total norm that gradients are clipped to; 0 = no clipping
    optimizer: str = "adamw"
    weight_decay: float = 0.01

    # the adapter
    rank: int = 16
    alpha: float = 16.0  # the adapter's effect is alpha / rank * up @ down
    targets: str = "attention"  # attention | attention+ff | linear | all
    text_encoder: bool = False  # adapt the text encoder too

    # pictures
    resolution: int = 512  # side of the square that pictures are cropped to, pixels
    center_crop: bool = False  # False: one of five windows along the long side, drawn anew each time
    random_flip: bool = False  # mirror half of the draws
    instance_prompt: str | None = None  # caption of every picture that has none of its own
    class_data: str | None = None  # folder of class pictures: prior preservation
    class_prompt: str | None = None  # caption of every class picture that has none of its own
    prior_weight: float = 1.0  # weight of the class pictures' loss

    # the loss
    objective: str = "auto"  # auto (as the model says) | epsilon | v_prediction
    min_snr_gamma: float | None = None  # None = every timestep weighs the same; 5 is the paper's choice
    noise_offset: float = 0.0  # strength of a constant added to each channel's noise

    # the machine
    seed: int = 1337
    precision: str = "auto"  # auto | fp32 | fp16 | bf16: the frozen model's dtype; the adapter trains in fp32
    device: str = "auto"  # auto | cpu | cuda | cuda:1 | mps ...
    gradient_checkpointing: bool = False  # less memory, about a third more time

    # what comes out on the way
    checkpoint_every: int = 500  # steps; 0 = only at the end
    keep: int = 3  # checkpoints that stay on disk; 0 = all
    validation_prompt: str | None = None  # prompt of the preview pictures
    sample_every: int = 0  # steps; 0 = no previews
    validation_data: str | None = None  # folder of unseen pictures, whose loss is told before and after
    format: str = "kohya"  # key format of the adapter file
    report_to: tuple[str, ...] = field(default=())  # trackers; none yet

    def __post_init__(self) -> None:
        """Check types and ranges; raises BadConfig with one line."""
        for name, check in _TYPES.items():
            check(name, getattr(self, name))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise BadConfig(
                    f"config: {name!r} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}", key=name
                )
        _check_together(self)

    @classmethod
    def from_json(cls, source: str | Path | Mapping[str, Any]) -> TrainConfig:
        """Read a JSON file, or take its content as a mapping.

        Raises BadConfig for an unknown key (naming the nearest known one), a missing key, a wrong type or range, and
        FileProblem for a file that cannot be read.
        """
        values = dict(source) if isinstance(source, Mapping) else _read(Path(source))
        known = [item.name for item in fields(cls)]
        for key in values:
            if key not in known:
                raise BadConfig(_unknown(key, known), key=key)
        missing = [key for key in ("model", "data", "out") if values.get(key) is None]
        if missing:
            raise BadConfig(f"config: {missing[0]!r} is missing; add {missing[0]!r}: PATH", key=missing[0])
        if isinstance(values.get("report_to"), list):
            values["report_to"] = tuple(values["report_to"])
        return cls(**{key: _as_float(key, value) for key, value in values.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data, defaults included."""
        return {**asdict(self), "report_to": list(self.report_to)}

    def to_public_json(self) -> dict[str, Any]:
        """Return `to_json` without this machine's folders, fit for a file that is passed on."""
        values = self.to_json()
        return {**values, **{key: last_part(values[key]) for key in PATHS if values[key] is not None}}


def last_part(path: str) -> str:
    """Return a path's last part, and a hub id as it is.

    >>> last_part("/home/someone/models/sd15.safetensors"), last_part("someone/sd15")
    ('sd15.safetensors', 'someone/sd15')
    """
    is_hub_id = path.count("/") == 1 and not path.startswith(("/", ".", "~")) and not Path(path).exists()
    return path if is_hub_id else Path(path).name


PATHS = ("model", "data", "out", "tokenizer", "class_data", "validation_data")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "scheduler": ("constant", "linear", "cosine"),
    "optimizer": ("adamw",),
    "targets": ("attention", "attention+ff", "linear", "all"),
    "objective": ("auto", "epsilon", "v_prediction"),
    "precision": ("auto", "fp32", "fp16", "bf16"),
}
LARGEST = 2**64 - 1  # the widest seed that hosts give


@dataclass(frozen=True)
class _Number:
    low: float
    whole: bool = False
    above: bool = False  # low itself is out of range
    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if value is None and self.optional:
            return
        kind = "a whole number" if self.whole else "a number"
        if isinstance(value, int) and abs(value) > LARGEST:
            raise BadConfig(f"config: {name!r} has too many digits; it must be {kind} below {LARGEST:.3g}", key=name)
        right = isinstance(value, int if self.whole else (int, float)) and not isinstance(value, bool)
        if not right or not math.isfinite(value):
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {kind}", key=name)
        if value < self.low or (self.above and value == self.low):
            bound = "above" if self.above else "at least"
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {bound} {self.low:g}", key=name)


@dataclass(frozen=True)
class _Kind:
    kind: type
    word: str
    optional: bool = False

    def __call__(self, name: str, value: Any) -> None:
        if not (isinstance(value, self.kind) or (value is None and self.optional)):
            raise BadConfig(f"config: {name!r} is {value!r}; it must be {self.word}", key=name)


_TEXT, _MAYBE_TEXT, _FLAG = (
    _Kind(str, "a text"),
    _Kind(str, "a text or null", optional=True),
    _Kind(bool, "true or false"),
)
_COUNT, _FROM_ZERO = _Number(1, whole=True), _Number(0, whole=True)
_TYPES: Mapping[str, _Number | _Kind] = {
    **dict.fromkeys(("model", "data", "out", "name", "scheduler", "optimizer", "targets", "objective"), _TEXT),
    **dict.fromkeys(("precision", "device", "format"), _TEXT),
    **dict.fromkeys(("tokenizer", "instance_prompt", "class_data", "class_prompt"), _MAYBE_TEXT),
    **dict.fromkeys(("validation_prompt", "validation_data"), _MAYBE_TEXT),
    **dict.fromkeys(("text_encoder", "center_crop", "random_flip", "gradient_checkpointing"), _FLAG),
    **dict.fromkeys(("steps", "batch_size", "accumulate", "rank"), _COUNT),
    **dict.fromkeys(("warmup", "seed", "checkpoint_every", "keep", "sample_every"), _FROM_ZERO),
    **dict.fromkeys(("learning_rate", "alpha"), _Number(0, above=True)),
    **dict.fromkeys(("max_grad_norm", "weight_decay", "prior_weight", "noise_offset"), _Number(0)),
    **dict.fromkeys(("min_snr_gamma", "text_encoder_learning_rate"), _Number(0, above=True, optional=True)),
    "resolution": _Number(8, whole=True),
    "report_to": _Kind(tuple, "a list of texts"),
}


def _check_together(config: TrainConfig) -> None:
    """Refuse values that are fine alone and wrong together."""
    if config.resolution % 8:
        raise BadConfig(f"config: 'resolution' is {config.resolution}; it must be a multiple of 8", key="resolution")
    if not config.name or Path(config.name).name != config.name:
        raise BadConfig(f"config: 'name' is {config.name!r}; it must be a file name without folders", key="name")
    if config.class_prompt is not None and config.class_data is None:
        text = "config: 'class_prompt' needs 'class_data', a folder of class pictures; they are not generated"
        raise BadConfig(text, key="class_data")
    if config.sample_every and config.validation_prompt is None:
        raise BadConfig(
            "config: 'sample_every' needs 'validation_prompt', the previews' prompt", key="validation_prompt"
        )
    if config.report_to:
        text = f"config: 'report_to' is {list(config.report_to)}; no tracker is built in, read OUT/log.jsonl instead"
        raise BadConfig(text, key="report_to")


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"config: unknown key {key!r}; did you mean {near[0]!r}?"
    return f"config: unknown key {key!r}; known keys: {', '.join(known)}"


def _as_float(key: str, value: Any) -> Any:
    """Turn `16` into `16.0` where the field is a float, so that equal configurations compare equal."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    check = _TYPES.get(key)
    return float(value) if whole and isinstance(check, _Number) and not check.whole and abs(value) <= LARGEST else value


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
