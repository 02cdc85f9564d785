"""What a dialect can say of a layer: the layer's tensors in that dialect's form, or the reason why it cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..lora_core.adapter import Target
from ..lora_core.errors import UnsupportedLayer
from ..lora_core.layers import (
    BOFT,
    IA3,
    Additive,
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
from .formats import FORMATS
from .keymap import Keymap
from .model import Format
from .tensors import roles, with_magnitude

KINDS: tuple[tuple[type, str, str], ...] = (  # a type of layer, the word for it in Format.kinds, what people call it
    (DoRA, "dora", "DoRA"),
    (LoRA, "lora", "LoRA"),
    (LoHa, "loha", "LoHa"),
    (LoKr, "lokr", "LoKr"),
    (Norm, "norm", "a norm's change"),
    (Full, "full", "a full difference"),
    (Replace, "value", "a whole weight"),
    (KohyaOFT, "oft_kohya", "kohya's OFT"),
    (DiagOFT, "oft", "LyCORIS' OFT"),
    (BOFT, "boft", "LyCORIS' BOFT"),
    (OFTv2, "oft_v2", "OFT of version 2"),
    (PeftBOFT, "boft_peft", "PEFT's BOFT"),
    (GLoRA, "glora", "GLoRA"),
    (IA3, "ia3", "IA3"),
)
EMBEDDINGS = ("embed_tokens", "token_embedding", "shared", "tok_embeddings")


def expressible(
    target: Target, layer: Layer, layers: Mapping[Target, Layer], row: Format, map: Keymap
) -> dict[str, Tensor]:
    """Return a layer's tensors by role as a dialect holds them, the same change bit for bit or rounded in float32.

    Args:
        target: where the layer acts.
        layer: the layer, in the dialect's layout.
        layers: all layers, for a bias that goes with its weight's.
        row: the dialect.
        map: the family's keys.

    Raises:
        UnsupportedLayer: the dialect cannot say it; names the dialects that can.
    """
    shape = map.shape(target)
    if isinstance(layer, Full) and target.parameter == "bias" and "full" not in row.kinds:
        return _bias_beside(target, layer, layers, row)
    _refuse_unknown(target, layer, row)
    peft = row.id in ("diffusers", "peft")
    if isinstance(layer, DoRA):
        inner = layer.layer
        layer = replace(layer, layer=_plain(inner, row, shape) if isinstance(inner, LoRA) else inner)
        try:
            layer = with_magnitude(layer, peft, len(shape or (0, 0)))
        except UnsupportedLayer as error:
            raise UnsupportedLayer(
                f"{_where(target)}: {error.message}. {_ways(layer, ('dora', kind(inner)[0]), row)}"
            ) from None
    if isinstance(layer, LoRA):
        layer = _plain(layer, row, shape)
    if isinstance(layer, LoKr) and layer.r is not None and layer.w1 is not None:  # no scale of two whole factors here
        layer = replace(layer, w1=rescaled(layer.w1, layer.scale), r=None)
    found = roles(layer, target.parameter, row.alpha)
    if row.id == "peft" and isinstance(layer, LoRA) and target.module.endswith(EMBEDDINGS):
        return {"embedding_down": found["up"].T.contiguous(), "embedding_up": found["down"].T.contiguous()}
    return found


def kind(layer: Layer) -> tuple[str, str]:
    """Return the word for a layer's algorithm in `Format.kinds`, and what people call it."""
    return next((word, title) for type, word, title in KINDS if isinstance(layer, type))


def _refuse_unknown(target: Target, layer: Layer, row: Format) -> None:
    inner = [kind(layer.layer)[0]] if isinstance(layer, DoRA) else []
    wanted = (kind(layer)[0], *inner)
    if all(word in row.kinds for word in wanted) and not _odd(layer, row):
        return
    title = kind(layer)[1]
    if isinstance(layer, DoRA) and wanted[0] in row.kinds:
        title = f"a DoRA over {kind(layer.layer)[1]}"
    if _odd(layer, row):
        title = f"{title} with settings of its own"
    raise UnsupportedLayer(
        f"{_where(target)}: {title} cannot be said in the {row.id} dialect. {_ways(layer, wanted, row)}"
    )


def _odd(layer: Layer, row: Format) -> bool:
    """Tell whether a layer has a part that the dialect's readers do not know."""
    if isinstance(layer, OFTv2):
        return (layer.terms, layer.coft) != (OFTv2.terms, None)  # only a PEFT configuration says how it turns
    return isinstance(layer, LoRA) and layer.reshape is not None and "value" not in row.kinds


def _ways(layer: Layer, wanted: tuple[str, ...], row: Format) -> str:
    """Say what to do instead: the dialects that keep a layer, and an approximation where it has a change of its own."""
    able = [
        other.id
        for other in FORMATS
        if other.writable and other is not row and set(wanted) <= set(other.kinds) and not _odd(layer, other)
    ]
    ways = [f"convert to {' or '.join(able)}, which keep it"] if able else []
    if isinstance(layer, Additive) and not isinstance(layer, LoRA):
        ways.append("approximate with --bake-to lora --rank N")
    text = ", or ".join(ways) or "no dialect that is written here can say it; use the file as it is"
    return text[0].upper() + text[1:]


def _plain(layer: LoRA, row: Format, shape: tuple[int, ...] | None) -> LoRA:
    """Return a low-rank layer without what the dialect has no word for: a Tucker core, a scalar, flat factors."""
    if layer.scalar is not None:
        layer = replace(layer, up=rescaled(layer.up, float(layer.scalar)), scalar=None)
    if layer.mid is not None and "tucker" not in row.kinds:
        down = layer.columns().reshape(layer.rank, -1, *layer.mid.shape[2:])
        layer = replace(layer, down=store_dtype(down, layer.down.dtype), mid=None)
    return _with_module_shape(layer, shape) if row.module_shape else layer


def _with_module_shape(layer: LoRA, shape: tuple[int, ...] | None) -> LoRA:
    """Give linear factors of a 1x1 convolution its further dimensions, and the other way round."""
    if shape is None or layer.down.dim() == len(shape) or layer.mid is not None:
        return layer
    if layer.down.dim() == 2:
        ones = [1] * (len(shape) - 2)
        down, up = (factor.reshape(*factor.shape, *ones) for factor in (layer.down, layer.up))
        return replace(layer, down=down, up=up)
    if layer.down.shape[2:].numel() == 1:
        return replace(layer, down=layer.down.flatten(1), up=layer.up.flatten(1))
    return layer


def _bias_beside(target: Target, layer: Full, layers: Mapping[Target, Layer], row: Format) -> dict[str, Tensor]:
    """Return a bias' change as PEFT keeps it, `lora_B.bias`, which its low-rank layer's scale multiplies."""
    weight = layers.get(replace(target, parameter="weight"))
    if "bias" not in row.kinds or not isinstance(weight, LoRA):
        raise UnsupportedLayer(
            f"{_where(target)}: a bias' change cannot be said in the {row.id} dialect. {_ways(layer, ('full',), row)}"
        )
    scale = layer.scale if row.alpha == "folded" else layer.scale / weight.scale
    return {"up_bias": rescaled(layer.diff, scale)}


def _where(target: Target) -> str:
    return f"{target.component}.{target.module}"
