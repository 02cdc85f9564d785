"""Fresh trained layers as a configuration asks for them: sizes by part and pattern, and their first values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapter import Target
from ..errors import BadConfig
from . import rng
from .config import TrainConfig
from .dropout import place
from .inject import Weights, weights_like
from .kinds import Trained, TrainedDoRA, TrainedLoHa, TrainedLoKr, TrainedLoRA
from .targets import fits, refuse_idle

DENOISER = "denoiser"
Names = Mapping[Target, str]  # what patterns are matched against, where it is not the target's own module name


def create(
    modules: Mapping[Target, nn.Module],
    config: TrainConfig,
    device: torch.device | None = None,
    weights: Weights = weights_like,
    names: Names | None = None,
) -> dict[Target, Trained]:
    """Return a trained layer for every module, all without effect yet.

    The values are keyed by seed and target: adding or removing targets leaves the others' start as it was. `names` are
    those that the patterns of 'ranks' and 'alphas' mean; the targets' own where there are none. Raises BadConfig for a
    module that cannot be adapted, for a pattern that no module fits, and for options that the algorithm lacks.
    """
    refuse_misplaced(config)
    known = {target: f"{target.component}.{(names or {}).get(target, target.module)}" for target in modules}
    for key, table in (("ranks", config.ranks), ("alphas", config.alphas)):
        for pattern in table:
            refuse_idle(key, pattern, list(known.values()))
    found = {}
    for target, module in modules.items():
        shape = weight_shape(target, module)
        rank, alpha = sizes(config, target, shape, known[target])
        where = device or next(module.parameters()).device
        fresh = Fresh(config, target, shape, rank, alpha, where, _fetch(module, weights, where))
        with torch.inference_mode(False), torch.no_grad():
            found[target] = ALGORITHMS[config.algorithm](fresh)
    return found


def refuse_misplaced(config: TrainConfig) -> None:
    """Raise BadConfig for an option that the algorithm has no place for."""
    plain = {"init": "kaiming", "dropout": 0, "lora_plus_ratio": 1} if config.algorithm in ("loha", "lokr") else {}
    for key, default in plain.items():
        if getattr(config, key) != default:
            way = "leave it out, or set 'algorithm' to 'lora' or 'dora'"
            raise BadConfig(f"config: {key!r} means nothing to 'algorithm' {config.algorithm!r}; {way}", key=key)
    if config.max_weight_norm is not None and config.init in ("pissa", "olora"):
        line = f"config: 'max_weight_norm' cannot shrink what 'init' {config.init!r} starts from; leave one out"
        raise BadConfig(line, key="max_weight_norm")


def sizes(config: TrainConfig, target: Target, shape: tuple[int, ...], name: str) -> tuple[int, float]:
    """Return a module's rank and alpha: by pattern, else for kernels above 1x1, else for text encoders, else the run's.

    Of several patterns that fit, the last one counts.
    """
    rank, alpha = config.rank, config.alpha
    if target.component != DENOISER:
        rank, alpha = config.text_encoder_rank or rank, config.text_encoder_alpha or alpha
    if math.prod(shape[2:]) > 1:
        rank, alpha = config.conv_rank or rank, config.conv_alpha or alpha
    for pattern, value in config.ranks.items():
        rank = value if fits(name, pattern) else rank
    for pattern, amount in config.alphas.items():
        alpha = amount if fits(name, pattern) else alpha
    return rank, alpha


def weight_shape(target: Target, module: nn.Module) -> tuple[int, ...]:
    """Return the weight's shape; raises BadConfig for a module that cannot be adapted."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return (module.out_channels, module.in_channels, *module.kernel_size)
    kind = type(module).__name__
    raise BadConfig(f"{target.module}: a {kind} cannot take a LoRA; choose targets that are Linear or plain Conv2d")


def _fetch(module: nn.Module, weights: Weights, device: torch.device) -> Callable[[], Tensor]:
    return lambda: weights(module, torch.empty(0, device=device))[0].float()


@dataclass(frozen=True, eq=False)
class Fresh:
    """What a layer's first values depend on."""

    config: TrainConfig
    target: Target
    shape: tuple[int, ...]  # of the weight
    rank: int
    alpha: float
    device: torch.device
    weight: Callable[[], Tensor]  # the frozen weight, float32

    @property
    def columns(self) -> int:
        """The weight's columns as a matrix, kernel included."""
        return math.prod(self.shape[1:])

    @property
    def scale(self) -> float:
        """`alpha / rank`, or `alpha / sqrt(rank)` (rsLoRA, arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.config.rank_stabilized else self.rank)

    def uniform(self, part: str, rows: int, columns: int) -> nn.Parameter:
        """Draw a matrix as `kaiming_uniform_(a=sqrt(5))` does: `+-1 / sqrt(columns)`."""
        noise = torch.rand(rows, columns, generator=self._generator(part))
        return self.parameter((2 * noise - 1) * math.sqrt(1 / columns))

    def normal(self, part: str, rows: int, columns: int, std: float) -> nn.Parameter:
        """Draw a matrix of normal values."""
        return self.parameter(torch.randn(rows, columns, generator=self._generator(part)) * std)

    def zeros(self, rows: int, columns: int) -> nn.Parameter:
        """Return a matrix of zeros."""
        return self.parameter(torch.zeros(rows, columns))

    def parameter(self, values: Tensor) -> nn.Parameter:
        """Return values as a parameter on the device."""
        return nn.Parameter(values.to(self.device, torch.float32).contiguous())

    def _generator(self, part: str) -> torch.Generator:
        more = (part,) if part else ()
        return rng.generator(self.config.seed, "init", self.target.component, *place(self.target), *more)


def lora(fresh: Fresh) -> TrainedLoRA:
    """Return a LoRA: `down` drawn and `up` zero, or both taken from the weight and subtracted again."""
    init, rank, (out, columns) = fresh.config.init, fresh.rank, (fresh.shape[0], fresh.columns)
    if init in ("pissa", "olora"):
        if rank > min(out, columns):
            line = f"{fresh.target.module}: 'init' {init!r} of rank {rank} needs a weight of that rank; this one has "
            raise BadConfig(f"{line}{min(out, columns)}: lower its rank with 'ranks'", key="init")
        down, up = (_principal if init == "pissa" else _orthonormal)(fresh.weight().flatten(1), rank, fresh.scale)
        start = (fresh.parameter(down).data, fresh.parameter(up).data)
        return TrainedLoRA(fresh.parameter(down.clone()), fresh.parameter(up.clone()), fresh.scale, fresh.shape, start)
    if init == "gaussian":
        down_values = fresh.normal("", rank, columns, 1 / rank)
    else:
        down_values = fresh.uniform("", rank, columns)
    return TrainedLoRA(down_values, fresh.zeros(out, rank), fresh.scale, fresh.shape)


def _principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return down and up whose scaled product is the weight's best approximation (PiSSA, arXiv 2404.02948)."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def _orthonormal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return down and up as the first rows and columns of `W = QR` (OLoRA, arXiv 2406.01775)."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


def dora(fresh: Fresh) -> TrainedDoRA:
    """Return a LoRA with the weight's own lengths as its magnitude."""
    inner = lora(fresh)
    return TrainedDoRA(inner, fresh.parameter(fresh.weight().flatten(1).norm(dim=1)))


def loha(fresh: Fresh) -> TrainedLoHa:
    """Return a LoHa with LyCORIS's start: `w2_a` zero, the others normal with deviations 0.1, 1 and 1."""
    rank, (out, columns) = fresh.rank, (fresh.shape[0], fresh.columns)
    first = fresh.normal("w1_a", out, rank, 0.1), fresh.normal("w1_b", rank, columns, 1.0)
    second = fresh.zeros(out, rank), fresh.normal("w2_b", rank, columns, 1.0)
    return TrainedLoHa(*first, *second, fresh.scale, fresh.shape)


def lokr(fresh: Fresh) -> TrainedLoKr:
    """Return a LoKr with LyCORIS's sizes and start: the second factor (its last part) zero, the others drawn.

    The second factor is of low rank where that is smaller. Between whole factors the scale is 1, as in every reader.
    """
    (a, c), (b, d) = (split(side, fresh.config.factor) for side in fresh.shape[:2])
    width = d * math.prod(fresh.shape[2:])
    w1 = fresh.uniform("w1", a, b)
    if fresh.rank >= max(c, d) / 2:
        if fresh.config.rank_dropout:
            line = f"{fresh.target.module}: 'rank_dropout' finds no ranks between two whole LoKr factors"
            raise BadConfig(f"{line}; lower 'rank' below {max(c, d) / 2:g}, or leave it out", key="rank_dropout")
        return TrainedLoKr(w1, (fresh.zeros(c, width),), 1.0, fresh.alpha, fresh.shape)
    second = (fresh.uniform("w2_a", c, fresh.rank), fresh.zeros(fresh.rank, width))
    return TrainedLoKr(w1, second, fresh.scale, fresh.scale * fresh.rank, fresh.shape)


def split(side: int, factor: int) -> tuple[int, int]:
    """Return two factors of a side, the smaller first: `factor` where it divides, else the pair nearest the root.

    A positive `factor` is also a bound on the smaller one, as in LyCORIS.

    >>> split(320, -1), split(320, 8), split(320, 7)
    ((16, 20), (8, 40), (5, 64))
    """
    if factor > 0 and side % factor == 0:
        first, second = sorted((factor, side // factor))
        return first, second
    bound = side if factor < 0 else factor
    pairs = [(n, side // n) for n in range(1, math.isqrt(side) + 1) if side % n == 0 and n <= bound]
    return pairs[-1]


ALGORITHMS: Mapping[str, Callable[[Fresh], Trained]] = {"lora": lora, "dora": dora, "loha": loha, "lokr": lokr}
