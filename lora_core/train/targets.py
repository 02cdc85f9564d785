"""Which layers a run adapts: the field's presets as endings of module names, or patterns.

A pattern is a shell pattern (`*`, `?`, `[abc]`) for a module's name or its last parts: `to_q` means every `....to_q`,
`attn2.to_*` all projections of the cross-attention, `mid_block.*` whatever lies in a block of that name. Names are
those of Diffusers and transformers, with the component before them, so that `clip_l.*` means a whole text encoder.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import BadConfig

Preset = Callable[[nn.Module, str], dict[str, nn.Module]]  # (model, word of the preset) -> modules by name

_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_FEED_FORWARD = (".ff.net.0.proj", ".ff.net.2")
_IN_AND_OUT = (".proj_in", ".proj_out")
_TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")

DENOISER: Mapping[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_FEED_FORWARD),
    "linear": (*_ATTENTION, *_FEED_FORWARD, *_IN_AND_OUT),  # all Linear and 1x1 layers of the attention blocks
    "all": ("",),  # convolutions and time embeddings too
}
TEXT_ENCODER: Mapping[str, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    **dict.fromkeys(("attention+ff", "linear", "all"), (*_TEXT_ATTENTION, ".fc1", ".fc2")),
}


def fits(name: str, pattern: str) -> bool:
    """Say whether a pattern fits a name or, from a dot on, its end.

    >>> [fits("down.0.attn2.to_q", pattern) for pattern in ("to_q", "attn2.*", "o_q", "down.0.attn2.to_q")]
    [True, True, False, True]
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def select(model: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the Linear and Conv2d modules whose name ends in one of these, by name, in the model's order.

    >>> block = nn.ModuleDict({"to_q": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    >>> list(select(nn.ModuleDict({"attn": block}), DENOISER["attention"]))
    ['attn.to_q']
    """
    adaptable = ((name, part) for name, part in model.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d)))
    return {name: part for name, part in adaptable if name.endswith(endings)}


def choose(
    models: Mapping[str, nn.Module],
    targets: str | Sequence[str],
    exclude: Sequence[str] = (),
    presets: Mapping[str, Preset] | None = None,
) -> dict[str, dict[str, nn.Module]]:
    """Return the modules to adapt, by component and name, in the models' order.

    Args:
        models: the networks by component ("denoiser", "clip_l", ...).
        targets: a preset, or patterns.
        exclude: patterns of what is left out.
        presets: what a preset means to a component; without, the endings above.

    Raises:
        BadConfig: a component has nothing to adapt, or no module fits a pattern; the line names modules that come near.
    """
    names = {part: select(model, ("",)) for part, model in models.items()}
    everything = [f"{part}.{name}" for part, found in names.items() for name in found]
    patterns = () if isinstance(targets, str) else targets
    for key, given in (("targets", patterns), ("exclude", exclude)):
        for pattern in given:
            refuse_idle(key, pattern, everything)
    chosen = {}
    for part, found in names.items():
        if isinstance(targets, str):
            preset = (presets or {}).get(part) or _by_ending(DENOISER if part == "denoiser" else TEXT_ENCODER)
            wanted = preset(models[part], targets)
        else:
            wanted = _fitting(part, found, targets)
        left_out = _fitting(part, found, exclude)
        chosen[part] = {name: module for name, module in wanted.items() if name not in left_out}
        if not chosen[part]:
            line = f"config: 'targets' choose no module of {part}; its names are {_some(found)}"
            raise BadConfig(line, key="targets")
    return chosen


def _by_ending(words: Mapping[str, tuple[str, ...]]) -> Preset:
    return lambda model, preset: select(model, words[preset])


def refuse_idle(key: str, pattern: str, names: Sequence[str]) -> None:
    """Raise BadConfig for a pattern that fits no name, naming the nearest."""
    if any(fits(name, pattern) for name in names):
        return
    near = difflib.get_close_matches(pattern, _endings(names), n=3, cutoff=0.5)
    shown = f"near names: {', '.join(near)}" if near else f"names are {_some(names)}"
    raise BadConfig(f"config: no module fits {pattern!r} in {key!r}; {shown}", key=key)


def _fitting(part: str, found: Mapping[str, nn.Module], patterns: Sequence[str]) -> dict[str, nn.Module]:
    return {
        name: module for name, module in found.items() if any(fits(f"{part}.{name}", pattern) for pattern in patterns)
    }


def _endings(names: Iterable[str]) -> list[str]:
    """Return what a pattern could have meant: each name's last one to eight parts."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[-n:]) for part in parts for n in range(1, min(9, len(part) + 1))))


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
