"""The one file that speaks ComfyUI's node API: every Node of the catalog becomes a V3 node class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import ComfyExtension, io

from ..lora_core.errors import LorasmithError
from .catalog import nodes
from .host import ComfyHost
from .seam import Host
from .spec import CATEGORY, Input, Node, Number, Output, Socket, Switch, Text


class NodeError(Exception):
    """What the host shows on a node: one line, without the traceback of where the core found it."""


class LorasmithExtension(ComfyExtension):
    """All nodes of the catalog."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the node classes, in the catalog's order."""
        host = ComfyHost()
        return [node_class(node, host) for node in nodes(host)]


def node_class(node: Node, host: Host) -> type[io.ComfyNode]:
    """Return ComfyUI's class for a node."""
    methods: dict[str, Any] = {
        "define_schema": classmethod(lambda cls: _schema(node)),
        "execute": classmethod(lambda cls, **inputs: _execute(node, host, inputs)),
    }
    fingerprint = node.fingerprint
    if fingerprint is not None:
        methods["fingerprint_inputs"] = classmethod(lambda cls, **inputs: fingerprint(**inputs))
    return type(node.id, (io.ComfyNode,), methods)


def _execute(node: Node, host: Host, inputs: dict[str, Any]) -> io.NodeOutput:
    try:
        result = node.run(**inputs)
    except LorasmithError as error:
        raise NodeError(error.message) from None
    if result.text:
        host.say(result.text)
    return io.NodeOutput(*result.values, ui={"text": [result.text]} if result.text else None)


def _schema(node: Node) -> io.Schema:
    return _given(
        io.Schema,
        node_id=node.id,
        display_name=node.title,
        category=CATEGORY,
        description=node.description,
        search_aliases=list(node.aliases),
        inputs=[_input(one) for one in node.inputs],
        outputs=[_output(one) for one in node.outputs],
        is_output_node=node.terminal,
    )


def _input(one: Input) -> io.Input:
    if isinstance(one, Socket):
        return _given(_type(one.type).Input, id=one.id, optional=one.optional, tooltip=one.tooltip)
    common = {"id": one.id, "default": one.default, "tooltip": one.tooltip}
    if one.advanced:
        common |= {"advanced": True, "optional": True}  # a graph written by hand may leave it out
    if isinstance(one, Number):
        kind = io.Int if isinstance(one.step, int) else io.Float
        limits = {"min": one.low, "max": one.high, "step": one.step}
        return _given(kind.Input, **common, **limits, control_after_generate=False)  # a seed stays as it is
    if isinstance(one, Switch):
        return _given(io.Boolean.Input, **common)
    if isinstance(one, Text):
        return _given(io.String.Input, **common, multiline=one.multiline)
    return _given(io.Combo.Input, **common, options=one.listed())


def _output(one: Output) -> io.Output:
    """Ids of outputs must differ from those of inputs on older hosts."""
    return _type(one.type).Output(id=f"{one.id}_out", display_name=one.id, tooltip=one.tooltip)


def _type(name: str) -> Any:
    own = {"MODEL": io.Model, "CLIP": io.Clip, "VAE": io.Vae, "IMAGE": io.Image, "STRING": io.String}
    return own.get(name) or io.Custom(name)


def _given(make: Callable[..., Any], **arguments: Any) -> Any:
    """Call with those arguments that this host's version takes."""
    taken = inspect.signature(make).parameters
    return make(**{name: value for name, value in arguments.items() if name in taken})
