"""What an optimizer remembers, as named tensors and JSON, and back again bit for bit, whichever optimizer it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Named = Mapping[str, nn.Parameter]
ITEMS, TUPLE, TABLE, TENSOR, PARTS, OWN = "items", "tuple", "table", "tensor", "parts", "own"  # tags of JSON values


def pack(optimizer: torch.optim.Optimizer, named: Named) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors, `PARAMETER|SLOT`, and all else that it remembers, JSON-ready.

    Tensors of a class of their own (8-bit states) are taken apart into their plain tensors.
    """
    tensors: dict[str, Tensor] = {}
    slots: dict[str, dict[str, Any]] = {}
    apart: set[str] = set()
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if _plain(value) and value.is_contiguous():
                tensors[f"{name}|{key}"] = value.detach()
                apart |= {key} if value.device != parameter.device else set()
            else:
                slots.setdefault(name, {})[key] = _encoded(value, f"{name}|{key}", tensors)
    groups = [
        {key: _encoded(value, f"group|{index}|{key}", tensors) for key, value in group.items() if key != "params"}
        for index, group in enumerate(optimizer.param_groups)
    ]
    return tensors, {"slots": slots, "groups": groups, "apart": sorted(apart)}


def unpack(
    optimizer: torch.optim.Optimizer, named: Named, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Bring what `pack` gave back into a fresh optimizer over the same parameters, which are changed meanwhile.

    Raises ValueError when it belongs to an optimizer of other groups.
    """
    if len(facts["groups"]) != len(optimizer.param_groups):
        raise ValueError(f"{len(facts['groups'])} groups of parameters for {len(optimizer.param_groups)}")
    if PARTS in str(facts["slots"]):
        _prime(optimizer)
    templates = {name: dict(optimizer.state.get(parameter, {})) for name, parameter in named.items()}
    plain = _by_parameter(named, tensors)
    for name, parameter in named.items():
        found: dict[str, Any] = {}
        for key, value in plain[name].items():
            apart = key in facts["apart"]
            found[key] = value.to("cpu" if apart else parameter.device, copy=True)
        for key, value in facts["slots"].get(name, {}).items():
            found[key] = _decoded(value, f"{name}|{key}", tensors, templates[name].get(key), parameter.device)
        optimizer.state[parameter] = found
    for index, (group, saved) in enumerate(zip(optimizer.param_groups, facts["groups"], strict=True)):
        for key, value in saved.items():
            place = group["params"][0].device
            group[key] = _decoded(value, f"group|{index}|{key}", tensors, group.get(key), place)


def _by_parameter(named: Named, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the plain tensors by parameter and slot."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in named}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("|")
        if owner in found:
            found[owner][key] = tensor
    return found


def _plain(value: Any) -> bool:
    return type(value) in (Tensor, nn.Parameter)


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON, its tensors put with the others."""
    if _plain(value):
        tensors[name] = value.detach()
        return {TENSOR: [value.device.type == "cpu", _order(value)]}
    if isinstance(value, Tensor):
        parts, _ = value.__tensor_flatten__()  # type: ignore[attr-defined]
        tensors.update({f"{name}|{part}": getattr(value, part).detach() for part in parts})
        return {PARTS: list(parts)}
    if isinstance(value, (list, tuple)):
        tag = TUPLE if isinstance(value, tuple) else ITEMS
        return {tag: [_encoded(item, f"{name}|{n}", tensors) for n, item in enumerate(value)]}
    if isinstance(value, dict):
        return {TABLE: {str(key): _encoded(item, f"{name}|{key}", tensors) for key, item in value.items()}}
    return value if value is None or isinstance(value, (bool, int, float, str)) else {OWN: type(value).__name__}


def _decoded(value: Any, name: str, tensors: Mapping[str, Tensor], template: Any, device: torch.device) -> Any:
    """Return a value from JSON; what JSON cannot hold, such as a function, stays as the fresh optimizer has it."""
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == TENSOR:
        on_cpu, order = content
        return _laid_out(tensors[name].to("cpu" if on_cpu else device, copy=True), order)
    if tag == PARTS:
        for part in content:
            getattr(template, part).copy_(tensors[f"{name}|{part}"])
        return template
    if tag == TABLE:
        return {key: _decoded(item, f"{name}|{key}", tensors, None, device) for key, item in content.items()}
    if tag == OWN:
        return template
    items = [_decoded(item, f"{name}|{n}", tensors, None, device) for n, item in enumerate(content)]
    return tuple(items) if tag == TUPLE else items


def _order(tensor: Tensor) -> list[int]:
    """Return the dimensions as they lie in memory, the outermost first: another layout would round differently."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda side: -strides[side])


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    return tensor.permute(order).contiguous().permute([order.index(side) for side in range(len(order))])


def _prime(optimizer: torch.optim.Optimizer) -> None:
    """Take a step of no consequence, so that tensors of the optimizer's own classes are there to be filled."""
    parameters = list(_parameters(optimizer))
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
