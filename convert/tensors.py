"""The tensors of one layer, by role <-> the layer itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..lora_core.errors import BadValues, UnsupportedLayer
from ..lora_core.layers import (
    BOFT,
    IA3,
    DiagOFT,
    DoRA,
    Full,
    GLoRA,
    KohyaOFT,
    Layer,
    LoHa,
    LoKr,
    LoRA,
    Norm,
    OFTv2,
    PeftBOFT,
    Replace,
)
from ..lora_core.ops.merge import rescaled, store_dtype
from .scales import PEFT_KEY

HADA = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
LOKR = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
MOST = 1 << 20  # a rank beyond it is a mistake
GLORA = ("a1", "a2", "b1", "b2")
Shape = tuple[int, ...]


class AlphaOf(Protocol):
    """Gives the alpha of a layer whose file has no tensor for it: from its rank, by what the header says."""

    def __call__(self, rank: int) -> float:
        """Return the alpha for which alpha / rank is the scale."""


@dataclass(frozen=True)
class Context:
    """What a layer's tensors do not say themselves."""

    shape: Shape | None  # of the weight, in the released model
    alpha_of: AlphaOf
    settings: Mapping[str, object]  # the PEFT configuration, empty where there is none
    kohya_oft: bool = False  # the keys said so (oft_unet_)
    peft_dora: bool = False  # the keys said so (lora_magnitude_vector)


def build(parts: Mapping[str, Tensor], context: Context) -> Layer:
    """Return the layer that tensors of these roles are.

    Raises:
        UnsupportedLayer: no layer has these roles.
    """
    idle = float(parts["alpha"]) if "alpha" in parts else None
    for role in ("diff", "diff_b", "diff_m", "up_bias"):
        if role in parts:
            return Full(parts[role], alpha=idle)
    for role in ("w_norm", "b_norm"):
        if role in parts:
            return Norm(parts[role], alpha=idle)
    for role in ("value", "value_b"):
        if role in parts:
            return Replace(parts[role])
    additive = _additive(parts, context)
    if additive is None:
        return _transform(parts, context)
    return DoRA(additive, parts["magnitude"], context.peft_dora) if "magnitude" in parts else additive


def _additive(parts: Mapping[str, Tensor], context: Context) -> LoRA | LoHa | LoKr | None:
    scalar = parts.get("scalar")
    if "down" in parts:
        down, up = _unflattened(parts["down"], parts["up"], context.shape)
        alpha = _alpha(parts, context, int(down.shape[0]))
        return _widened(LoRA(down, up, alpha, parts.get("mid"), scalar=scalar), parts.get("reshape"))
    if "embedding_down" in parts:  # PEFT: the change of an embedding (words, width) is (B A) transposed
        down, up = parts["embedding_up"].T.contiguous(), parts["embedding_down"].T.contiguous()
        return LoRA(down, up, _alpha(parts, context, int(down.shape[0])))
    if "hada_w1_a" in parts:
        given = {name: parts[f"hada_{name}"] for name in HADA if f"hada_{name}" in parts}
        alpha = _alpha(parts, context, int(parts["hada_w1_b"].shape[0]))
        return LoHa(**given, alpha=alpha, shape=_true_shape(given, context), scalar=scalar)
    if any(role in parts for role in ("lokr_w1", "lokr_w1_a")):
        factors: dict[str, Any] = {name: parts[f"lokr_{name}"] for name in LOKR if f"lokr_{name}" in parts}
        low = next((parts[role] for role in ("lokr_w1_b", "lokr_w2_b") if role in parts), None)
        rank = int(low.shape[0]) if low is not None else _whole(context.settings, "r")
        alpha = _alpha(parts, context, rank or 1)
        return LoKr(**factors, alpha=alpha, scalar=scalar, r=rank if low is None else None)
    return None


def _widened(layer: LoRA, reshape: Tensor | None) -> LoRA:
    """Return the layer with the shape to which the base weight is widened first.

    Raises:
        BadValues: it is no such shape.
    """
    if reshape is None:
        return layer
    sizes = reshape.flatten().tolist()
    if any(size != int(size) for size in sizes) or tuple(map(int, sizes)) != layer.shape:
        raise BadValues(f"reshape_weight is {sizes}, its layer has the shape {list(layer.shape)}. Get the file again")
    return replace(layer, reshape=reshape)


def _transform(parts: Mapping[str, Tensor], context: Context) -> Layer:
    constraint = float(parts["alpha"]) if "alpha" in parts else 0.0
    if "oft_blocks" in parts:
        blocks = parts["oft_blocks"]
        if context.kohya_oft:
            return KohyaOFT(blocks, constraint)
        kind = BOFT if blocks.dim() == 4 else DiagOFT
        return kind(blocks, constraint, parts.get("rescale"))
    if "oft_R" in parts:
        return _oft_v2(parts["oft_R"], context.settings, scaled_down="scaled_oft" in parts)
    if "boft_R" in parts:
        return PeftBOFT(parts["boft_R"], parts["boft_s"])
    if "a1" in parts:
        given = {name: parts[name] for name in GLORA}
        if given["a1"].shape[0] < given["a1"].shape[1]:  # early LyCORIS: a1 was (rank, in), under exchanged names
            given = {"a1": given["a2"], "a2": given["a1"], "b1": given["b2"], "b2": given["b1"]}
        return GLoRA(**given, alpha=_alpha(parts, context, int(given["a2"].shape[0])))
    if "ia3_l" in parts:
        return IA3(parts["ia3_l"], on_input=_on_input(parts["ia3_l"], context), absolute=True)
    if "ia3" in parts:
        return IA3(parts["ia3"], on_input=bool(parts["on_input"]))
    raise UnsupportedLayer(f"no layer has the tensors {', '.join(sorted(parts))}")


def _oft_v2(upper: Tensor, settings: Mapping[str, object], scaled_down: bool) -> OFTv2:
    """Return PEFT's rotation under its configuration (source of the names and defaults: PEFT `OFTConfig`)."""
    bound, terms = settings.get("eps"), _whole(settings, "num_cayley_neumann_terms")
    exact = settings.get("use_cayley_neumann") is False
    return OFTv2(
        upper,
        terms=None if exact else OFTv2.terms if terms is None else terms,
        coft=float(bound) if settings.get("coft") is True and isinstance(bound, (int, float)) else None,
        scaled_down=scaled_down,
    )


def _whole(settings: Mapping[str, object], name: str) -> int | None:
    """Return a whole number from 1 of a configuration, None where it has none.

    Raises:
        BadValues: it is something else, on which the layers' effect hangs.
    """
    value = settings.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
        return value
    raise BadValues(f"{PEFT_KEY}: {name} is {str(value)[:40]!r}, not a whole number from 1. Get the file again")


def _on_input(scale: Tensor, context: Context) -> bool:
    """Tell which side PEFT's factor is for: (1, in) and (out, 1) say so themselves, a convolution's is (1, n, 1, 1)."""
    if scale.dim() == 2 or context.shape is None:
        return scale.shape[0] == 1
    out, inner = context.shape[:2]
    ahead = context.settings.get("feedforward_modules")
    return scale.numel() == inner and (inner != out or bool(ahead))


def _true_shape(given: Mapping[str, Tensor], context: Context) -> Shape:
    """Return the weight's shape where the factors go with it, else nothing: the factors then tell it flattened."""
    shape = context.shape
    fits = shape is not None and "t1" not in given
    out, inner = int(given["w1_a"].shape[0]), math.prod(given["w1_b"].shape[1:])
    return shape if fits and shape is not None and (out, inner) == (shape[0], math.prod(shape[1:])) else ()


def _alpha(parts: Mapping[str, Tensor], context: Context, rank: int) -> float:
    return float(parts["alpha"]) if "alpha" in parts else context.alpha_of(rank)


def _unflattened(down: Tensor, up: Tensor, shape: Shape | None) -> tuple[Tensor, Tensor]:
    """Give factors of a convolution their kernel back; ComfyUI's own trainer stores `down` as (rank, in * kernel)."""
    flat = shape is not None and math.prod(shape[2:]) > 1 and down.shape[1:] == (math.prod(shape[1:]),)
    if shape is None or not flat or up.dim() != 2:
        return down, up
    return down.reshape(-1, *shape[1:]), up.reshape(*up.shape, *[1] * len(shape[2:]))


def roles(layer: Layer, parameter: str = "weight", alpha: str = "tensor") -> dict[str, Tensor]:
    """Return a layer's tensors by role: the inverse of `build`.

    Args:
        layer: what to take apart.
        parameter: what its target changes: "weight", "bias", or another parameter by name.
        alpha: "tensor" to give the alpha its own, "folded" to multiply a LoRA's scale into `up`, "config" for neither.
    """
    bias = parameter == "bias"
    if isinstance(layer, DoRA):
        return {**roles(layer.layer, parameter, alpha), "magnitude": layer.magnitude}
    if isinstance(layer, Replace):
        return {"value_b" if bias else "value": layer.value}
    if isinstance(layer, LoRA):
        return _low_rank(layer, alpha)
    given = _own(layer, bias)
    first = next(iter(given.values()))
    number = _beside(layer, alpha)
    return given if number is None else {**given, "alpha": store_dtype(torch.tensor(number), first.dtype)}


def _beside(layer: Layer, alpha: str) -> float | None:
    """Return the number that a layer's `alpha` tensor holds, None where it has none to write."""
    if isinstance(layer, (LoHa, LoKr, GLoRA)):  # "folded": these have no factor that a scale could go into
        return layer.alpha if alpha == "tensor" or (alpha == "folded" and layer.scale != 1) else None
    if isinstance(layer, (DiagOFT, BOFT)):
        return None if alpha == "config" else layer.constraint
    if isinstance(layer, KohyaOFT):
        return layer.alpha
    return layer.alpha if isinstance(layer, Full) and alpha == "tensor" else None


def _low_rank(layer: LoRA, alpha: str) -> dict[str, Tensor]:
    up = rescaled(layer.up, layer.scale) if alpha == "folded" else layer.up
    beside = {"mid": layer.mid, "reshape": layer.reshape, "scalar": layer.scalar}
    found = {"down": layer.down, "up": up, **{role: tensor for role, tensor in beside.items() if tensor is not None}}
    if alpha == "tensor":
        found["alpha"] = store_dtype(torch.tensor(layer.alpha), layer.up.dtype)
    return found


def _own(layer: Layer, bias: bool) -> dict[str, Tensor]:
    if isinstance(layer, Norm):
        return {"b_norm" if bias else "w_norm": rescaled(layer.diff, layer.scale)}
    if isinstance(layer, Full):
        return {"diff_b" if bias else "diff": rescaled(layer.diff, layer.scale)}
    if isinstance(layer, LoHa):
        return _given(layer, HADA, "hada_")
    if isinstance(layer, LoKr):
        return _given(layer, LOKR, "lokr_")
    if isinstance(layer, GLoRA):
        return _given(layer, GLORA, "")
    if isinstance(layer, KohyaOFT):
        return {"oft_blocks": layer.blocks}
    if isinstance(layer, (DiagOFT, BOFT)):
        rescale = {} if layer.rescale is None else {"rescale": layer.rescale}
        return {"oft_blocks": layer.blocks, **rescale}
    if isinstance(layer, OFTv2):
        return {"oft_R": layer.upper, **({"scaled_oft": torch.tensor(True)} if layer.scaled_down else {})}
    if isinstance(layer, PeftBOFT):
        return {"boft_R": layer.blocks, "boft_s": layer.rescale}
    if isinstance(layer, IA3):
        side = {"on_input": torch.tensor(layer.on_input)}
        return {"ia3_l": layer.scale} if layer.absolute else {"ia3": layer.scale, **side}
    raise UnsupportedLayer(f"{type(layer).__name__}: no dialect has words for its tensors")


def _given(layer: Layer, names: tuple[str, ...], before: str) -> dict[str, Tensor]:
    tensors = {f"{before}{name}": getattr(layer, name) for name in names}
    scalar = {"scalar": getattr(layer, "scalar", None)}
    return {role: tensor for role, tensor in {**tensors, **scalar}.items() if tensor is not None}


def with_magnitude(layer: DoRA, peft: bool, dimensions: int) -> DoRA:
    """Return a DoRA layer with its magnitude in PEFT's shape, or in LyCORIS' (out, 1, ...).

    Args:
        layer: the layer.
        peft: which of the two.
        dimensions: the weight's.

    Raises:
        UnsupportedLayer: PEFT has no magnitude over the inputs.
    """
    if layer.on_input and peft:
        raise UnsupportedLayer("its magnitude belongs to the inputs, and PEFT knows only magnitudes of the outputs")
    if layer.on_input:
        return layer
    out, ones = layer.magnitude.numel(), [1] * (dimensions - 2)
    shape = ((out,) if dimensions == 2 else (1, out, *ones)) if peft else (out, 1, *ones)
    return replace(layer, magnitude=layer.magnitude.reshape(shape), peft=peft)
