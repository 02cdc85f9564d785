"""Make an adapter smaller: each layer becomes the best LoRA of a lower rank, by a rule or for a file size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..adapter import Adapter, Target
from ..dtypes import device_named, dtype_named
from ..errors import BadConfig, BadValues, UnsupportedLayer
from ..layers import Full, GLoRA, Layer, LoHa, LoKr, LoRA
from .health import finite, refuse_bad_values
from .merge import widest
from .parts import low_rank
from .provenance import derived
from .ranks import MEGABYTE, RULES, SIZE, Spectrum, check_rule, spread
from .spectrum import decomposed, resolved, singular_values

Matrix = LoRA | LoHa | LoKr | Full  # what has a change of its own

# Bytes of a written file beside its numbers, somewhat more than there are.
_ENTRY = 150  # a tensor's line in the header, the module's name aside
_ALPHA = 8
_OWN = 4096  # what a writer adds to the metadata


def resize(
    adapter: Adapter,
    rule: str,
    value: float = 0,
    conv_rank: int | None = None,
    dtype: str = "keep",
    device: str = "cpu",
    beside: int | None = None,
) -> Adapter:
    """Return the adapter with every matrix's change as the best LoRA of the rank that a rule keeps.

    A layer whose rank is no larger already stays as it is; the others get alpha = rank. LoHa, LoKr, full differences
    of matrices, and GLoRA without a part that depends on the weight, become LoRA (one dense matrix at a time). Changes
    of vectors (norms, biases) stay. No rank is kept for singular values that are rounding alone.
    The error is that of the singular values left out (Eckart and Young), and of the rounding to the dtype.

    Args:
        adapter: what to make smaller.
        rule: "rank"; "energy", "sv_fro", "sv_cumulative": a share of the singular values' squares, of the root of
            their sum, of their sum; "sv_ratio": of the largest to the smallest kept; "knee"; "size": see `ranks`.
        value: the rule's number; of "size" megabytes (10^6 bytes), that the file will not exceed; none for "knee".
        conv_rank: rank of the convolutions whatever the rule says; one of kernel 1x1 counts as linear, as when
            sd-scripts trains or extracts.
        dtype: "fp32", "fp16", "bf16", or "keep": each layer's own (of 8-bit floats, which cannot hold what comes out,
            bfloat16).
        device: where to compute.
        beside: of "size", the bytes of the file that are no factors: header, metadata, alphas, vectors; None: an
            estimate, somewhat too large.

    Raises:
        BadConfig: a number that the rule does not take, a size that rank 1 everywhere exceeds, an unknown dtype.
        BadValues: a layer holds NaN or infinite values.
        UnsupportedLayer: a layer whose effect depends on the base weight (DoRA, OFT, IA3 ...) has no rank to lower.
    """
    check_rule(rule, value)
    if conv_rank is not None and conv_rank < 1:
        raise BadConfig(f"conv rank {conv_rank}: give a whole number from 1")
    narrow, where = dtype_named(dtype), device_named(device)
    refuse_bad_values(adapter, adapter.metadata.get("ss_output_name", "the LoRA"))
    matrices = {target: matrix for target, layer in adapter.layers.items() if (matrix := _matrix(target, layer))}
    if not matrices:
        raise BadConfig("nothing to resize: no layer changes a matrix")
    plan = _Plan(matrices, narrow, where, conv_rank)
    rank_of = plan.ranks_for(adapter, value, beside) if rule == SIZE else _by_rule(rule, value)
    layers: dict[Target, Layer] = {
        target: plan.smaller(target, rank_of) if target in matrices else _cast(layer, narrow)
        for target, layer in adapter.layers.items()
    }
    operation = {"method": "resize", "rule": rule, "value": value, "conv_rank": conv_rank, "dtype": dtype}
    return derived(adapter, layers, operation if beside is None else {**operation, "beside": beside})


def ranks_of(adapter: Adapter) -> list[int]:
    """Return the ranks of all LoRA layers, in the adapter's order."""
    return [layer.rank for layer in adapter.layers.values() if isinstance(layer, LoRA)]


RankOf = Callable[[Target, Tensor], int]


def _by_rule(name: str, value: float) -> RankOf:
    return lambda _, values: RULES[name].rank(values, value)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The layers that change, and what holds for all of them."""

    matrices: Mapping[Target, Matrix]
    dtype: torch.dtype | None
    device: torch.device
    conv_rank: int | None

    def smaller(self, target: Target, rank_of: RankOf) -> Layer:
        """Return a layer at its new rank; the very same one where that is no less than it has."""
        layer = self.matrices[target]
        found = decomposed(layer, self.device)
        values = resolved(found.values)
        fixed = self.conv_rank if _is_convolution(layer) else None
        rank = max(1, min(rank_of(target, values) if fixed is None else fixed, len(values)))
        if isinstance(layer, LoRA) and rank >= layer.rank:
            return _cast(layer, self.dtype)
        best = found.best(rank)
        stored = self.dtype or own_dtype(layer)
        made = low_rank(best.rows.to(stored).cpu(), best.columns.to(stored).cpu(), tuple(layer.shape))
        if not all(map(finite, made.tensors())):
            where, name = f"{target.component}.{target.module}", str(stored).removeprefix("torch.")
            raise BadValues(f"{where}: too large for {name} at this rank; choose bf16 or fp32")
        return replace(made, reshape=layer.reshape) if isinstance(layer, LoRA) else made

    def ranks_for(self, adapter: Adapter, megabytes: float, beside: int | None) -> RankOf:
        """Return the ranks that give the least error within a file's size."""
        spectra = {target: self._spectrum(layer) for target, layer in self.matrices.items()}
        fixed = self._beside(adapter) if beside is None else beside
        ranks = spread(list(spectra.values()), megabytes * MEGABYTE - fixed)
        if ranks is None:
            least = (fixed + sum(one.cost for one in spectra.values())) / MEGABYTE
            raise BadConfig(
                f"size {megabytes:g} MB: too small, rank 1 everywhere takes {least:.3g} MB; give at least "
                f"{math.ceil(least * 1000) / 1000:g}MB, or prune the LoRA first"
            )
        chosen = dict(zip(spectra, ranks, strict=True))
        return lambda target, _: chosen[target]

    def _spectrum(self, layer: Matrix) -> Spectrum:
        values = resolved(singular_values(layer, self.device))
        cost = _cost(layer, self.dtype)
        if self.conv_rank is None or not _is_convolution(layer):
            return Spectrum(values, cost)
        return Spectrum(values[:1], cost * min(self.conv_rank, len(values)))  # takes or leaves nothing

    def _beside(self, adapter: Adapter) -> int:
        """Return the bytes, at most, of all that is not a new factor: header, metadata, alphas, what stays."""
        total = _OWN + len(json.dumps(dict(adapter.metadata), ensure_ascii=False).encode())
        total += sum(len(key.encode()) + _ENTRY + _stored(tensor, self.dtype) for key, tensor in adapter.extras.items())
        for target, layer in adapter.layers.items():
            entry = len(target.component + target.module) + _ENTRY
            if target in self.matrices:
                total += 3 * entry + _ALPHA
                continue
            total += sum(entry + _stored(tensor, self.dtype) for tensor in layer.tensors())
        return total


def factor_bytes(adapter: Adapter, dtype: str = "keep") -> int:
    """Return the bytes that the factors of all LoRA layers take by the count of "size"."""
    narrow = dtype_named(dtype)
    return sum(_cost(layer, narrow) * layer.rank for layer in adapter.layers.values() if isinstance(layer, LoRA))


def _cost(layer: Matrix, dtype: torch.dtype | None) -> int:
    """Return the bytes of each rank, a Tucker core absorbed."""
    return int(layer.shape[0] + math.prod(layer.shape[1:])) * (dtype or own_dtype(layer)).itemsize


def own_dtype(layer: Matrix) -> torch.dtype:
    """Return the dtype that holds all of a layer's numbers; of 8-bit floats bfloat16, for such are of one scale."""
    dtype = widest([tensor for tensor in layer.tensors() if tensor.is_floating_point() and tensor.dim()])
    return torch.bfloat16 if dtype.itemsize == 1 else dtype


def _matrix(target: Target, layer: Layer) -> Matrix | None:
    """Return a layer's change of a matrix, None for that of a vector. Raises UnsupportedLayer."""
    if isinstance(layer, GLoRA) and not (layer.a1.any() and layer.a2.any()):
        return LoRA(layer.b2, layer.b1, layer.alpha)
    if not isinstance(layer, Matrix):
        raise UnsupportedLayer(
            f"{target.component}.{target.module}: what a {type(layer).__name__} layer does depends on the base weight, "
            "so it has no rank to lower; resize takes LoRA, LoHa, LoKr and full differences"
        )
    return layer if len(layer.shape) > 1 else None


def _is_convolution(layer: Matrix) -> bool:
    return math.prod(layer.shape[2:]) > 1


def _cast(layer: Layer, dtype: torch.dtype | None) -> Layer:
    """Return a layer that stays, its numbers in a dtype."""
    if dtype is None:
        return layer
    if isinstance(layer, LoRA):
        mid = None if layer.mid is None else layer.mid.to(dtype)
        return replace(layer, down=layer.down.to(dtype), up=layer.up.to(dtype), mid=mid)
    return replace(layer, diff=layer.diff.to(dtype)) if isinstance(layer, Full) else layer


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> int:
    """Return the bytes that a tensor will take."""
    size = dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.element_size()
    return tensor.numel() * size
