"""The third word of every key: how dialects spell the tensors of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

NAME = "{name}"  # stands for a PEFT adapter's name
BLOCK = "{block}"  # stands for the number of a row block
COMMON = ""  # the group of the suffixes that go with every other group


@dataclass(frozen=True)
class Suffixes:
    """A group of suffixes: role -> how it is spelled, the written way first."""

    id: str
    roles: Mapping[str, tuple[str, ...]]
    prefixes: tuple[str, ...] = ()  # only below these families of prefixes; empty: below any
    families: tuple[str, ...] = ()  # only in these model families; empty: in any
    named: bool = False  # only with module names of a Naming that lists the group


SUFFIXES: tuple[Suffixes, ...] = (
    Suffixes("up-down", {"down": ("lora_down.weight",), "up": ("lora_up.weight",), "mid": ("lora_mid.weight",)}),
    Suffixes(
        "A-B",
        {
            "down": ("lora_A.weight",),
            "up": ("lora_B.weight",),
            "up_bias": ("lora_B.bias",),
            "magnitude": ("lora_magnitude_vector", "lora_magnitude_vector.weight"),
        },
    ),
    Suffixes(
        "A-B-named",
        {
            "down": (f"lora_A.{NAME}.weight",),
            "up": (f"lora_B.{NAME}.weight",),
            "up_bias": (f"lora_B.{NAME}.bias",),
            "magnitude": (f"lora_magnitude_vector.{NAME}.weight", f"lora_magnitude_vector.{NAME}"),
        },
    ),
    Suffixes("A-B-bare", {"down": ("lora_A",), "up": ("lora_B",)}),
    Suffixes("lora.down", {"down": ("lora.down.weight",), "up": ("lora.up.weight",)}),
    Suffixes("lora_linear_layer", {"down": ("lora_linear_layer.down.weight",), "up": ("lora_linear_layer.up.weight",)}),
    Suffixes("processor", {"down": ("down.weight",), "up": ("up.weight",)}, named=True),
    Suffixes("custom-diffusion", {"value": ("weight",)}, named=True),
    Suffixes("positional", {"down": ("down",), "up": ("up",)}, prefixes=("positional",)),
    Suffixes(
        "control",
        {"down": ("down",), "up": ("up",), "value": ("weight",), "value_b": ("bias",)},
        families=("sdxl-controlnet",),
    ),
    Suffixes(
        "embedding",
        {
            "embedding_down": ("lora_embedding_A", f"lora_embedding_A.{NAME}"),
            "embedding_up": ("lora_embedding_B", f"lora_embedding_B.{NAME}"),
        },
    ),
    Suffixes(
        "peft",
        {
            "value": ("weight", f"modules_to_save.{NAME}.weight", "modules_to_save.weight"),
            "value_b": ("bias", f"modules_to_save.{NAME}.bias", "modules_to_save.bias"),
        },
        prefixes=("peft",),
    ),
    Suffixes("ia3", {"ia3": ("weight",), "on_input": ("on_input",)}, prefixes=("kohya",)),
    Suffixes("norm-scale", {"value": ("scale",)}, prefixes=("bare", "comfy")),
    Suffixes(
        COMMON,
        {
            "alpha": ("alpha",),
            "magnitude": ("dora_scale", "magnitude"),
            "scalar": ("scalar",),
            "diff": ("diff",),
            "diff_b": ("diff_b",),
            "diff_m": ("diff_m",),
            "w_norm": ("w_norm",),
            "b_norm": ("b_norm",),
            "value": ("set_weight",),
            "reshape": ("reshape_weight",),
            **{role: (role,) for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
            **{role: (role,) for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
            **{role: (role,) for role in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
            "oft_blocks": ("oft_blocks", f"oft_blocks.{BLOCK}"),
            "rescale": ("rescale",),
            "oft_R": ("oft_R.weight", f"oft_R.{NAME}.weight"),
            "scaled_oft": ("oft_R.scaled_oft",),
            "boft_R": ("boft_R", f"boft_R.{NAME}"),
            "boft_s": ("boft_s", f"boft_s.{NAME}"),
            "ia3_l": ("ia3_l", f"ia3_l.{NAME}"),
            **{role: (f"{role}.weight",) for role in ("a1", "a2", "b1", "b2")},
        },
    ),
)
PLAIN = frozenset({"weight", "bias", "scale", "down", "up"})  # what models' own parameters are called too
BIASES = frozenset({"diff_b", "b_norm", "up_bias", "value_b"})  # roles that change a module's bias
MODULATION = "diff_m"  # the role that changes the parameter `modulation` of the module it names
LONGEST = 3  # words in a suffix


@dataclass(frozen=True)
class Suffix:
    """The end of a key, read."""

    role: str
    group: Suffixes
    name: str = ""  # of a PEFT adapter
    block: int | None = None  # of a fused weight


def readings(key: str) -> Iterator[tuple[str, Suffix]]:
    """Yield every way to read a key's end: (what stands before it and its dot, the suffix), shortest suffix first."""
    end = len(key)
    for _ in range(LONGEST):
        end = key.rfind(".", 0, end)
        if end < 0:
            return
        for suffix in _read(key[end + 1 :]):
            yield key[:end], suffix


def spelled(group: str, role: str, name: str = "", block: int | None = None) -> str | None:
    """Return how a group of suffixes writes a role, or None where it has no word for it."""
    found = _groups()[group].roles.get(role) or _groups()[COMMON].roles.get(role)
    if found is None:
        return None
    text = next((way for way in found if (BLOCK in way) == (block is not None)), found[0])
    return text.replace(NAME, name).replace(BLOCK, str(block))


def looks_like_layer(key: str) -> bool:
    """Return whether a key ends as a layer's tensor does, whatever the module before it."""
    return any(key[len(stem) + 1 :] not in PLAIN for stem, _ in readings(key))


@lru_cache(maxsize=4096)
def _read(text: str) -> tuple[Suffix, ...]:
    return _literals().get(text) or tuple(_patterned(text))


def _patterned(text: str) -> Iterator[Suffix]:
    words = text.split(".")
    for group, role, pattern in _patterns():
        given = pattern.split(".")
        if len(given) == len(words):
            filled = {want: word for want, word in zip(given, words, strict=True) if want != word}
            if set(filled) == {NAME} and filled[NAME]:
                yield Suffix(role, group, name=filled[NAME])
            if set(filled) == {BLOCK} and filled[BLOCK].isdecimal():
                yield Suffix(role, group, block=int(filled[BLOCK]))


@lru_cache(maxsize=1)
def _groups() -> dict[str, Suffixes]:
    return {group.id: group for group in SUFFIXES}


@lru_cache(maxsize=1)
def _literals() -> dict[str, tuple[Suffix, ...]]:
    found: dict[str, tuple[Suffix, ...]] = {}
    for group in SUFFIXES:
        for role, ways in group.roles.items():
            for text in ways:
                if NAME not in text and BLOCK not in text:
                    found[text] = (*found.get(text, ()), Suffix(role, group))
    return found


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[Suffixes, str, str], ...]:
    return tuple(
        (group, role, text)
        for group in SUFFIXES
        for role, ways in group.roles.items()
        for text in ways
        if NAME in text or BLOCK in text
    )
