"""Presets and patterns: which layers are adapted, and what a pattern that fits nothing is told."""

from __future__ import annotations

import pytest
from torch import nn

from lorasmith.lora_core.errors import BadConfig
from lorasmith.lora_core.train.targets import choose, fits, select


def attention() -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in ("to_q", "to_k", "to_v")} | {"norm": nn.LayerNorm(2)})


def denoiser() -> nn.Module:
    block = nn.ModuleDict({"attn1": attention(), "attn2": attention()})
    return nn.ModuleDict({"down": nn.ModuleList([block]), "mid": attention(), "conv_in": nn.Conv2d(2, 2, 3)})


def encoder() -> nn.Module:
    layer = nn.ModuleDict({"q_proj": nn.Linear(2, 2), "fc1": nn.Linear(2, 2)})
    return nn.ModuleDict({"layers": nn.ModuleList([layer])})


MODELS = {"denoiser": denoiser(), "clip_l": encoder()}


def names(targets: str | tuple[str, ...], exclude: tuple[str, ...] = (), component: str = "denoiser") -> list[str]:
    return list(choose(MODELS, targets, exclude)[component])


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("denoiser.down.0.attn1.to_q", "to_q", True),
        ("denoiser.down.0.attn1.to_q", "attn1.to_?", True),
        ("denoiser.down.0.attn1.to_q", "denoiser.*", True),
        ("denoiser.down.0.attn1.to_q", "down.*", True),
        ("denoiser.down.0.attn1.to_q", "o_q", False),  # only from a dot on
        ("denoiser.down.0.attn1.to_q", "attn1", False),  # only to the end
        ("denoiser.down.0.attn1.to_q", "TO_Q", False),
        ("denoiser.down.0.attn1.to_q", "down.[1-9].*", False),
    ],
)
def test_patterns(name: str, pattern: str, expected: bool) -> None:
    assert fits(name, pattern) == expected


def test_presets_by_component() -> None:
    assert names("attention") == [
        *(f"down.0.attn{n}.to_{x}" for n in (1, 2) for x in "qkv"), *(f"mid.to_{x}" for x in "qkv"),
    ]  # fmt: skip
    assert names("attention", component="clip_l") == ["layers.0.q_proj"]
    assert names("linear", component="clip_l") == ["layers.0.q_proj", "layers.0.fc1"]
    assert "conv_in" in names("all")


def test_patterns_mean_what_diffusers_calls_it() -> None:
    chosen = names(("attn2.to_*", "mid.*", "clip_l.*"), exclude=("to_v",))
    assert chosen == ["down.0.attn2.to_q", "down.0.attn2.to_k", "mid.to_q", "mid.to_k"]
    assert names(("to_q", "clip_l.*"), component="clip_l") == ["layers.0.q_proj", "layers.0.fc1"]


def test_exclude_goes_with_presets() -> None:
    assert names("attention", exclude=("attn1.*", "mid.*")) == [f"down.0.attn2.to_{x}" for x in "qkv"]


def test_a_family_says_what_its_presets_are() -> None:
    found = choose({"denoiser": denoiser()}, "attention", (), {"denoiser": lambda model, _: select(model, (".to_k",))})
    assert list(found["denoiser"]) == ["down.0.attn1.to_k", "down.0.attn2.to_k", "mid.to_k"]


@pytest.mark.parametrize(
    ("targets", "exclude", "line"),
    [
        (("attn2.to_out",), (), "no module fits 'attn2.to_out' in 'targets'; near names: attn2.to_"),
        ("attention", ("to_kk",), "no module fits 'to_kk' in 'exclude'; near names: to_k"),
        (("to_q",), (), "'targets' choose no module of clip_l; its names are layers.0.q_proj, layers.0.fc1"),
        ("attention", ("q_proj",), "'targets' choose no module of clip_l"),
        (("zzzzzzzz",), (), "no module fits 'zzzzzzzz' in 'targets'; names are denoiser.down.0.attn1.to_q"),
    ],
)
def test_what_fits_nothing_is_told(targets: str | tuple[str, ...], exclude: tuple[str, ...], line: str) -> None:
    with pytest.raises(BadConfig) as caught:
        choose(MODELS, targets, exclude)
    assert line in caught.value.message and "\n" not in caught.value.message
