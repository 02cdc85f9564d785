"""Sums, strengths by block and picked layers in a real ComfyUI: what they make of a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from comfy_client import Comfy, Refused
from graphs import loader, node, sampled
from test_comfy_nodes import apply, picture, read

pytestmark = pytest.mark.host("comfyui")


def pick(lora: str, action: str, **choices: str) -> dict:
    wanted = {"kind": "all", "part": "all", "blocks": "", **choices}
    made = node("LorasmithPickLayers", lora=[lora, 0], action=action)
    return {**made, "inputs": {**made["inputs"], **wanted}}


def added(first: str, second: str, strength: float = 1.0, **more: list) -> dict:
    inputs = {"lora_a": [first, 0], "lora_b": [second, 0], "strength_b": strength, "strength_c": -1.0}
    return node("LorasmithSumLoras", **inputs, **more)


def near(one: bytes, other: bytes) -> bool:
    """Tell whether two pictures are equal, rounding aside."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2


def test_a_sum_applied_is_the_stack_of_its_parts(comfy: Comfy, base: Path) -> None:
    graph = {
        **loader(),
        "a": read("first"),
        "b": read("second"),
        "sum": added("a", "b", 0.5),
        "merged": apply("sum"),
        "one": apply("a"),
        "two": apply("b", ["one", 0], ["one", 1], 0.5),
        "back": added("sum", "b", -0.5),
        "first": apply("back"),
        **sampled(["merged", 0], ["merged", 1], "merged"),
        **sampled(["two", 0], ["two", 1], "stacked"),
        **sampled(["one", 0], ["one", 1], "alone"),
        **sampled(["first", 0], ["first", 1], "again"),
    }
    outputs = comfy.run(graph)
    merged, stacked, alone, again = (picture(base, outputs, name) for name in ("merged", "stacked", "alone", "again"))
    assert near(merged, stacked) and near(alone, again) and not near(merged, alone)


def test_what_is_kept_and_what_is_dropped_make_the_whole(comfy: Comfy, base: Path) -> None:
    graph = {
        **loader(),
        "a": read("first"),
        "kept": pick("a", "keep", kind="attention", blocks="down, mid, clip_l"),
        "rest": pick("a", "drop", kind="attention", blocks="down, mid, clip_l"),
        "sum": added("kept", "rest"),
        "some": node("LorasmithBlockStrengths", lora=["a", 0], blocks="IN=0\nM00=0.5"),
        "whole": apply("sum"),
        "plain": apply("a"),
        "less": apply("some"),
        **sampled(["whole", 0], ["whole", 1], "whole"),
        **sampled(["plain", 0], ["plain", 1], "plain"),
        **sampled(["less", 0], ["less", 1], "less"),
    }
    outputs = comfy.run(graph)
    whole, plain, less = (picture(base, outputs, name) for name in ("whole", "plain", "less"))
    assert near(whole, plain) and not near(less, plain)


def test_an_unknown_block_is_one_line_on_the_node(comfy: Comfy) -> None:
    bad = node("LorasmithBlockStrengths", lora=["a", 0], blocks="INN04=1")
    applied = apply("bad")
    graph = {**loader(), "a": read("first"), "bad": bad, "applied": applied}
    with pytest.raises(Refused) as caught:
        comfy.run({**graph, **sampled(["applied", 0], ["applied", 1], "never")})
    assert "did you mean IN04" in caught.value.message and "\n" not in caught.value.message
