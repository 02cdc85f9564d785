"""Layers as patches for ComfyUI: its own adapters where they compute what the trainer meant, and one of ours elsewhere.

Either kind is lazy: it holds the layer's tensors and computes when ComfyUI patches the weight, on the device, in the
storage and with the offloading that ComfyUI chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import comfy.lora
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from ..convert.suffixes import spelled
from ..convert.tensors import roles
from ..lora_core.layers import Full, Layer, LoHa, LoKr, LoRA
from .fit import Spot

L = TypeVar("L")
NAME = "layer"  # any word: what the host's reader calls the one layer that it is given


class LayerAdapter(WeightAdapterBase):
    """A layer of any algorithm, computed by its own `apply`.

    ComfyUI builds it anew, around tensors that it has moved, as `type(it)(it.loaded_keys, moved(it.weights))`, where
    moving looks into tuples and leaves alone what is no tensor.
    """

    name = "lorasmith"

    def __init__(self, loaded_keys: set[str], weights: tuple[Layer, tuple[Tensor, ...]]):
        self.loaded_keys = loaded_keys
        self.weights = weights  # the layer, and its tensors where they are now

    @classmethod
    def of(cls, layer: Layer) -> LayerAdapter:
        """Return the patch of a layer."""
        return cls(set(), (layer, tuple(_tensors(layer))))

    def calculate_shape(self, key: str) -> tuple[int, ...] | None:
        """Return the weight's shape afterwards where it is another one."""
        reshape = getattr(self.weights[0], "reshape", None)
        return None if reshape is None else tuple(reshape.tolist())

    def calculate_weight(
        self,
        weight: Tensor,
        key: str,
        strength: float,
        strength_model: float,
        offset: tuple[int, int, int] | None,
        function: Callable[[Tensor], Tensor],
        intermediate_dtype: torch.dtype = torch.float32,
        original_weight: Any = None,
    ) -> Tensor:
        """Return the patched weight: the same tensor, which may be some rows of another, where the shape stays.

        Of ComfyUI's arguments the weight and the strength count: our patches ask for no `function` and ComfyUI itself
        takes care of the others.
        """
        layer, tensors = self.weights
        here = _with(layer, iter([tensor.to(weight.device) for tensor in tensors]))
        changed = here.apply(weight.float(), strength)
        return weight.copy_(changed) if changed.shape == weight.shape else changed.to(weight.dtype)


def patches(layers: Mapping[Spot, Layer]) -> dict[Any, Any]:
    """Return what `ModelPatcher.add_patches` takes."""
    return {_key(spot): _patch(layer, spot) for spot, layer in layers.items()}


def _key(spot: Spot) -> Any:
    return spot.name if spot.start is None else (spot.name, (0, spot.start, spot.shape[0]))


def _patch(layer: Layer, spot: Spot) -> Any:
    if isinstance(layer, Full) and layer.scale == 1 and tuple(layer.diff.shape) == spot.shape:
        return ("diff", (layer.diff,))
    if not _as_the_host_does(layer):
        return LayerAdapter.of(layer)
    tensors = {f"{NAME}.{spelled('up-down', role)}": tensor for role, tensor in roles(layer).items()}
    return comfy.lora.load_lora(tensors, {NAME: NAME})[NAME]


def _as_the_host_does(layer: Layer) -> bool:
    """Tell whether ComfyUI's adapter for these tensors gives the trainer's numbers, at every strength.

    It knows Tucker cores of pictures alone and no `scalar`, and its GLoRA guesses which side is the rank.
    """
    if isinstance(layer, LoRA):
        return layer.mid is None and layer.scalar is None and layer.reshape is None
    if isinstance(layer, LoHa):
        return layer.t1 is None and layer.scalar is None
    if isinstance(layer, LoKr):
        flat = layer.w2_b is None or layer.w2_b.dim() == 2
        picture = layer.w2 is None or layer.w2.dim() in (2, 4)
        return layer.t2 is None and layer.scalar is None and layer.r is None and flat and picture
    return False


def _tensors(layer: Any) -> Iterator[Tensor]:
    """Yield the tensors in a layer's fields, and in those of the layer inside it."""
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, Tensor):
            yield value
        elif is_dataclass(value):
            yield from _tensors(value)


def _with(layer: L, tensors: Iterator[Tensor]) -> L:
    """Return the layer with other tensors, in the order of `_tensors`."""
    changed: dict[str, Any] = {}
    for field in fields(layer):  # type: ignore[arg-type]
        value = getattr(layer, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = next(tensors)
        elif is_dataclass(value):
            changed[field.name] = _with(value, tensors)
    return replace(layer, **changed)  # type: ignore[type-var]
