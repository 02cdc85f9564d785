"""Scales that the header carries and the tensors do not: PEFT's `lora_alpha`, its patterns and rsLoRA.

Sources: PEFT `LoraConfig` (scale = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`, arXiv 2312.03732) and its
pattern lookup, which matches a pattern as a regular expression against the end of the module's name; Diffusers
`lora_adapter_metadata`, the same fields with the component's name in front.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..lora_core.errors import BadValues

DIFFUSERS_KEY = "lora_adapter_metadata"
PEFT_KEY = "adapter_config.json"
DENOISERS = ("unet", "transformer", "prior")
PEFT_ALPHA = 8.0  # LoraConfig's default, for a configuration that says none
LITERAL = re.compile(r"\^?[\w.]+")  # a pattern that is a plain name, which needs no expression to be matched
COSTLY = re.compile(r"\)[*+?{]|(?:[*+{].*){4}|\\[1-9]")  # a file's expression must not be able to run for ever


@dataclass(frozen=True)
class Config:
    """The part of a PEFT configuration that decides scales."""

    alpha: float = PEFT_ALPHA
    rslora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)  # pattern -> lora_alpha
    settings: Mapping[str, Any] = field(default_factory=dict)  # the whole configuration

    def effective_alpha(self, names: Sequence[str], rank: int) -> float:
        """Return the alpha for which alpha / rank is PEFT's scale for a module of any of these names."""
        pattern = next((key for key in self.alphas if any(_matches(key, name) for name in names)), None)
        alpha = self.alpha if pattern is None else self.alphas[pattern]
        return alpha * math.sqrt(rank) if self.rslora else alpha


@dataclass(frozen=True)
class Scales:
    """Configurations by the prefix they apply to ("unet", "text_encoder", or "" for the whole file)."""

    configs: Mapping[str, Config]

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> Scales:
        """Collect what a header says.

        Raises:
            BadValues: an entry that holds scales cannot be read: without it the strength would be wrong.
        """
        configs: dict[str, Config] = {}
        for key, text in metadata.items():
            if key.endswith(PEFT_KEY):
                configs[key[: -len(PEFT_KEY)].rstrip(".")] = _config(_object(text, key), key)
        grouped: dict[str, dict[str, Any]] = {}
        for name, value in _object(metadata.get(DIFFUSERS_KEY, "{}"), DIFFUSERS_KEY).items():
            prefix, _, setting = name.rpartition(".")
            grouped.setdefault(prefix, {})[setting] = value
        configs.update({prefix: _config(settings, DIFFUSERS_KEY) for prefix, settings in grouped.items()})
        return cls(configs)

    def alpha(self, prefix: str, names: Sequence[str], rank: int) -> float:
        """Return a layer's alpha, `rank` (scale 1) where the header says nothing.

        Args:
            prefix: the component's name in Diffusers ("unet", "text_encoder", "text_encoder_2").
            names: the module's names, in the Diffusers and the original layout.
            rank: the layer's rank, from its tensors.
        """
        config = self._config(prefix)
        return config.effective_alpha(names, rank) if config else float(rank)

    def settings(self, prefix: str) -> Mapping[str, Any]:
        """Return the PEFT configuration that applies to a component, empty where there is none."""
        config = self._config(prefix)
        return config.settings if config else {}

    def _config(self, prefix: str) -> Config | None:
        alone = len(self.configs) == 1 or prefix in DENOISERS
        return self.configs.get(prefix) or (self.configs.get("") if alone else None)


def _config(settings: Mapping[str, Any], entry: str) -> Config:
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _unreadable(entry, "its alpha_pattern is no table")
    costly = next((pattern for pattern in patterns if not LITERAL.fullmatch(pattern) and COSTLY.search(pattern)), None)
    if costly is not None:
        raise _unreadable(entry, f"the pattern {costly[:60]!r} is too complicated to be safe")
    return Config(
        alpha=_number(settings.get("lora_alpha", settings.get("alpha", PEFT_ALPHA)), entry),
        rslora=settings.get("use_rslora") is True,
        alphas={key: _number(value, entry) for key, value in patterns.items()},
        settings=settings,
    )


def _matches(pattern: str, module: str) -> bool:
    if LITERAL.fullmatch(pattern):
        name = pattern.lstrip("^")
        return module == name or (name == pattern and module.endswith(f".{name}"))
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return False


def _number(value: Any, entry: str) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int of hundreds of digits
        pass
    raise _unreadable(entry, f"{str(value)[:40]!r} is no alpha")


def _object(text: str, entry: str) -> dict[str, Any]:
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _unreadable(entry, "it is no JSON object")
    return value


def _unreadable(entry: str, why: str) -> BadValues:
    return BadValues(f"{entry}: holds the LoRA's scale and cannot be read ({why}). Get the file or its folder again")
