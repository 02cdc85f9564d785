"""What ComfyUI, A1111, Forge and Diffusers do with a LoRA file: rows of facts, seen in runs or read in the hosts' code.

A host's verdict has two parts. Each layer is looked up in the host's facts; the first row that fits decides whether the
layer is read. Then the host's cautions are looked at, which concern the file as a whole. Seen with ComfyUI 0.3 to 0.33,
A1111 1.10, Forge of June 2025 and Diffusers 0.42.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..lora_core.adapter import Target
from .algorithms import kind_of
from .architectures import architecture
from .detect import Match, Shapes
from .keymap import Spelling, keymap, prefix_for
from .scales import Scales

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
CLIP_MATRICES = (".q_proj", ".k_proj", ".v_proj", ".out_proj", ".mlp.fc1", ".mlp.fc2")
ROLE_MARKS = {"mid": "tucker", "diff": "full", "diff_b": "bias", "w_norm": "norm", "b_norm": "norm", "alpha": "alpha"}
JUDGED_FAMILIES = ("sd15", "sd21", "sdxl")  # what the facts below were seen with
JUDGED_KINDS = frozenset({"lora", "full", "norm"})
TEXT = ("clip_l", "clip_g", "clip_h")
KOHYA = ("kohya",)
DOTTED = ("diffusers", "comfy", "peft", "bare")


@dataclass(frozen=True)
class Look:
    """One layer as a host sees it."""

    family: str
    component: str
    module: str  # Diffusers name
    spelling: Spelling
    marks: frozenset[str]  # see `_marks`


@dataclass(frozen=True)
class Fact:
    """What a host does with layers that look like this; an empty field fits everything."""

    reads: bool
    why: str = ""
    prefixes: tuple[str, ...] = ()  # families of prefixes
    prefix: tuple[str, ...] = ()  # the very prefix
    namings: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # endings of the module's Diffusers name
    marks: tuple[str, ...] = ()  # any of them
    fatal: bool = False  # one such layer, and the host refuses the whole file

    def fits(self, look: Look) -> bool:
        """Return whether a layer looks like this row."""
        spelling = look.spelling
        pairs = (
            (self.prefixes, spelling.prefixes),
            (self.prefix, spelling.prefix),
            (self.namings, spelling.naming),
            (self.suffixes, spelling.suffixes),
            (self.components, look.component),
            (self.families, look.family),
        )
        return (
            all(not allowed or value in allowed for allowed, value in pairs)
            and (not self.modules or look.module.endswith(self.modules))
            and (not self.marks or not look.marks.isdisjoint(self.marks))
        )


@dataclass(frozen=True)
class Caution:
    """What a host does with files as a whole that bear a mark."""

    mark: str  # see `_file_marks`
    why: str
    loads: bool = True


@dataclass(frozen=True)
class Host:
    """A program that loads LoRA files."""

    id: str
    title: str
    facts: tuple[Fact, ...]
    cautions: tuple[Caution, ...] = ()
    patience: int | None = None  # with more unread keys than this it refuses the whole file


FLAT_CLIP = "it does not know text encoder names without 'text_model'"
STRANGE_PREFIX = "its keys begin with words it does not know"
POSITIONAL = Fact(False, "it cannot read layers that are only numbered", prefixes=("positional",))
WEAKER = Caution(
    "scale-in-header",
    "but at the wrong strength: it ignores the scale {scale:g} in the header (set the strength to {scale:g} there)",
)
HIDDEN = (
    "but takes it for an SD 1 LoRA and hides it with SDXL: its header lacks ss_base_model_version (convert writes it)"
)
ADAPTER_NAME = "it does not know an adapter's name inside keys (lora_A.NAME.weight)"
ZERO_MODULES = "it counts keys with dots (Diffusers, PEFT, ComfyUI) as loaded, with 0 modules and no effect"
INCOMPLETE = "some of its layers lack a part"
NOT_PROCESSOR = "of attention it knows only the old Diffusers names (attn1.processor.to_q), not attn1.to_q"

COMFY_UNET = (
    POSITIONAL,
    Fact(False, ADAPTER_NAME, marks=("named",)),
    Fact(True, prefix=("lora_unet",)),
    Fact(True, prefix=("lycoris",), namings=("diffusers", "same")),
    Fact(False, "after lycoris_ it knows only the Diffusers names", prefix=("lycoris",)),
    Fact(True, prefixes=("comfy",), components=("denoiser",), namings=("original", "same")),
    Fact(
        False, "below diffusion_model. it knows only the original names", prefixes=("comfy",), components=("denoiser",)
    ),
    Fact(
        False, "in text encoders it does not know the names to_q_lora ...", namings=("attn-processor",), components=TEXT
    ),
    Fact(True, prefixes=("diffusers", "bare"), namings=("attn-processor",)),
    Fact(
        False,
        NOT_PROCESSOR,
        prefixes=("diffusers", "bare"),
        namings=("diffusers",),
        components=("denoiser",),
        modules=ATTENTION,
    ),
    Fact(True, prefixes=("diffusers", "bare"), namings=("diffusers",), components=("denoiser",)),
    Fact(
        False,
        "it does not know the original names without diffusion_model. in front",
        components=("denoiser",),
        namings=("original",),
    ),
)
COMFY_TEXT = (
    Fact(False, FLAT_CLIP, namings=("flat-clip",)),
    Fact(True, prefixes=("kohya", "diffusers"), components=TEXT, modules=CLIP_MATRICES),
    Fact(True, prefix=("lora_te2",), modules=("text_projection",)),
    Fact(
        False,
        "of a text encoder it reads attention and mlp layers only",
        prefixes=("kohya", "diffusers"),
        components=TEXT,
    ),
)
PEFT_IN_COMFY = Fact(False, "it does not know base_model.model. in front of this family's names", prefixes=("peft",))

COMFYUI = Host(
    "comfyui",
    "ComfyUI",
    facts=(
        *COMFY_UNET,
        *COMFY_TEXT,
        Fact(True, prefixes=("comfy",), components=TEXT),
        PEFT_IN_COMFY,
        Fact(False, STRANGE_PREFIX),
    ),
    cautions=(
        WEAKER,
        Caution("embedding", "but leaves out the textual inversion bundled with it"),
        Caution("incomplete", f"but leaves out layers: {INCOMPLETE}"),
    ),
)
FORGE = Host(
    "forge",
    "Forge",
    facts=(
        Fact(False, ADAPTER_NAME, suffixes=("A-B-named",)),
        *COMFY_UNET,
        *COMFY_TEXT,
        Fact(
            False,
            "it does not know text_encoders. in front of the text encoder's names",
            prefixes=("comfy",),
            components=TEXT,
        ),
        PEFT_IN_COMFY,
        Fact(False, STRANGE_PREFIX),
    ),
    cautions=(
        WEAKER,
        Caution("untagged-sdxl-modelspec", HIDDEN),
        Caution("incomplete", f"but leaves out layers: {INCOMPLETE}"),
    ),
    patience=12,
)
A1111 = Host(
    "a1111",
    "A1111",
    facts=(
        POSITIONAL,
        Fact(False, ZERO_MODULES, prefixes=DOTTED),
        Fact(False, "a norm without its bias makes it reject the whole file", marks=("norm-alone",), fatal=True),
        Fact(True, prefix=("lora_unet",), namings=("original", "same")),
        Fact(
            False,
            "it does not know SDXL's add_embedding",
            prefix=("lora_unet",),
            modules=("add_embedding.linear_1", "add_embedding.linear_2"),
        ),
        Fact(
            False,
            "it takes SDXL's first upsampler for another module",
            prefix=("lora_unet",),
            families=("sdxl",),
            modules=("up_blocks.0.upsamplers.0.conv",),
        ),
        Fact(True, prefix=("lora_unet",)),
        Fact(False, "it does not know lycoris_ in front of a name", prefix=("lycoris",)),
        Fact(False, FLAT_CLIP, namings=("flat-clip",)),
        Fact(False, "it knows SD 2's text encoder only as lora_te_", prefix=("lora_te1",), families=("sd21",)),
        Fact(False, "it does not read the text encoder's projection", modules=("text_projection",)),
        Fact(True, components=TEXT),
        Fact(False, STRANGE_PREFIX),
    ),
    cautions=(
        Caution("untagged-sdxl", HIDDEN),
        Caution("incomplete", f"it rejects the whole file: {INCOMPLETE}", loads=False),
    ),
)
DIFFUSERS = Host(
    "diffusers",
    "Diffusers",
    facts=(
        Fact(False, "it cannot read layers that are only numbered", prefixes=("positional",), fatal=True),
        Fact(
            False,
            "it stops at the 2-D factors of a convolution with a size mismatch",
            marks=("flat-conv",),
            fatal=True,
        ),
        Fact(False, "it stops at a Tucker core (lora_mid)", marks=("tucker",), fatal=True),
        Fact(False, "it stops at norms and full differences", marks=("full", "norm", "bias"), fatal=True),
        Fact(
            False,
            "it stops at alpha keys beside Diffusers names",
            prefixes=("diffusers",),
            marks=("alpha",),
            fatal=True,
        ),
        Fact(False, ADAPTER_NAME, prefixes=("diffusers",), suffixes=("A-B-named",), fatal=True),
        Fact(
            False,
            "it stops at lora_down and lora_up below unet.",
            prefixes=("diffusers",),
            suffixes=("up-down",),
            fatal=True,
        ),
        Fact(
            False,
            "it stops at lora_linear_layer below unet., which it knows in text encoders only",
            prefixes=("diffusers",),
            suffixes=("lora_linear_layer",),
            components=("denoiser",),
            fatal=True,
        ),
        Fact(False, FLAT_CLIP + " in kohya keys", prefixes=KOHYA, namings=("flat-clip",)),
        Fact(True, prefix=("lora_unet",), families=("sdxl",)),
        Fact(
            False,
            "it knows the original block names (input_blocks) for SDXL only",
            prefix=("lora_unet",),
            namings=("original",),
        ),
        Fact(True, prefix=("lora_unet", "lora_te", "lora_te1", "lora_te2")),
        Fact(False, "it does not know lycoris_ in front of a name", prefixes=KOHYA, fatal=True),
        Fact(
            False,
            "below unet. it knows only its own names, not the original ones",
            prefixes=("diffusers",),
            namings=("original",),
        ),
        Fact(True, prefixes=("diffusers",)),
        Fact(
            False,
            "it wants 'unet.' in front of attention processors' names",
            prefixes=("bare",),
            namings=("attn-processor",),
        ),
        Fact(False, "it finds no 'unet.' or 'text_encoder.' in front of the names", prefixes=("bare", "peft", "comfy")),
        Fact(False, STRANGE_PREFIX),
    ),
    cautions=(
        Caution(
            "sgm-and-diffusers",
            "it drops all layers in the original names when there are Diffusers names too",
            loads=False,
        ),
        Caution(
            "mixed-attention-alphas",
            "but some layers at the wrong strength: of a kohya file it takes one alpha for all attention layers "
            "('convert --to diffusers' keeps each one's)",
        ),
        Caution("kohya-and-others", "it reads kohya keys only in files that hold no others", loads=False),
        Caution("stray-keys", "it rejects files with further keys, such as a bundled textual inversion's", loads=False),
        Caution("incomplete", f"it rejects the file: {INCOMPLETE}", loads=False),
    ),
)
HOSTS: tuple[Host, ...] = (COMFYUI, A1111, FORGE, DIFFUSERS)


def verdicts(
    match: Match, shapes: Shapes, metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Return what each host does with a file: `{"comfyui": {"loads": bool, "why": str}, ...}`.

    `alphas` are the values of alpha tensors by key, where they were read.

    `loads` means that every layer takes effect; a wrong strength, which leaves `loads` true, is said in `why`.
    """
    layers = match.layers
    strange = _unjudged(match)
    if strange:
        return {host.id: {"loads": False, "why": f"not judged: {strange}"} for host in HOSTS}
    looks = {target: _look(match, layers, target, shapes) for target in layers}
    keys = {target: len(roles) for target, roles in layers.items()}
    scale = _header_scale(match, shapes, metadata)
    marks = frozenset(_file_marks(match, looks, metadata, scale))
    if _mixed_attention_alphas(match, alphas or {}):
        marks |= {"mixed-attention-alphas"}
    return {host.id: _verdict(host, match, looks, keys, marks, scale) for host in HOSTS}


def _unjudged(match: Match) -> str:
    """Return why no host's facts apply to a file, empty where they do."""
    family = match.candidates[0]
    if family not in JUDGED_FAMILIES:
        return f"what it does with {architecture(family).name} LoRAs is not in the tables here yet"
    kinds = {kind_of(roles) for roles in match.layers.values()} - JUDGED_KINDS
    return f"what it does with layers of {' and '.join(sorted(kinds))} is not in the tables here yet" if kinds else ""


def _verdict(
    host: Host,
    match: Match,
    looks: Mapping[Target, Look],
    keys: Mapping[Target, int],
    marks: frozenset[str],
    scale: float,
) -> dict[str, Any]:
    unread = {target: fact for target, look in looks.items() if not (fact := _fact(host, look)).reads}
    cautions = [caution for caution in host.cautions if caution.mark in marks]
    if match.unplaced:
        return {"loads": False, "why": f"not judged: {len(match.unplaced)} keys of its layers are in no table here"}
    if unread:
        return {"loads": False, "why": _refusal(host, match, unread, keys, _count(looks))}
    refused = next((caution for caution in cautions if not caution.loads), None)
    if refused:
        return {"loads": False, "why": refused.why}
    why = [f"reads all {_count(looks)} layers", *(caution.why.format(scale=scale) for caution in cautions)]
    return {"loads": True, "why": ", ".join(why)}


def _refusal(host: Host, match: Match, unread: Mapping[Target, Fact], keys: Mapping[Target, int], total: int) -> str:
    fatal = next((fact for fact in unread.values() if fact.fatal), None)
    if fatal:
        return f"reads nothing: {fatal.why}"
    reason = Counter(fact.why for fact in unread.values()).most_common(1)[0][0]
    missed = sum(keys[target] for target in unread) + len(match.unknown) + len(match.riders)
    if host.patience is not None and missed > host.patience:
        known = f"as any with more than {host.patience} keys it does not know ({missed} here)"
        return f"refuses the file, {known}: {reason}"
    left = total - _count(unread)
    if left == 0:
        return f"reads none of its {total} layers: {reason}"
    return f"reads only {left} of {total} layers, which gives a wrong picture: {reason}"


def _count(targets: Iterable[Target]) -> int:
    """Count modules: a weight and its bias are one layer."""
    return len({(target.component, target.module) for target in targets})


def _fact(host: Host, look: Look) -> Fact:
    return next(fact for fact in host.facts if fact.fits(look))


def _look(match: Match, layers: Mapping[Target, Mapping[str, str]], target: Target, shapes: Shapes) -> Look:
    map = keymap(match.candidates[0])
    places = [match.places[key] for key in layers[target].values()]
    spelling = next((place.spelling for place in places if place.spelling.suffixes), places[0].spelling)
    marks = frozenset(_marks(layers, target, shapes, map.shape(target), spelling))
    return Look(map.family.id, target.component, map.name(target, "diffusers") or "", spelling, marks)


def _marks(
    layers: Mapping[Target, Mapping[str, str]],
    target: Target,
    shapes: Shapes,
    weight: tuple[int, ...] | None,
    spelling: Spelling,
) -> Iterator[str]:
    """Yield what is special about a layer: words that the facts ask for."""
    roles = layers[target]
    yield from (mark for role, mark in ROLE_MARKS.items() if role in roles)
    if "w_norm" in roles and replace(target, parameter="bias") not in layers:
        yield "norm-alone"
    down = shapes.get(roles.get("down", ""))
    if down is not None and weight is not None and len(down) == 2 and len(weight) == 4:
        yield "flat-conv"
    if spelling.name not in ("", "default"):
        yield "named"


def _file_marks(match: Match, looks: Mapping[Target, Look], metadata: Mapping[str, str], scale: float) -> Iterator[str]:
    spellings = {look.spelling for look in looks.values()}
    prefixes = {spelling.prefixes for spelling in spellings}
    block_names = {spelling.naming for spelling in spellings if spelling.prefix == "lora_unet"}
    if {"original", "diffusers"} <= block_names:
        yield "sgm-and-diffusers"
    if {"kohya"} < prefixes:
        yield "kohya-and-others"
    strays = (*match.unknown, *match.riders)
    if strays and ("kohya" in prefixes or any("lora" not in key for key in strays)):
        yield "stray-keys"
    if any(key.startswith("bundle_emb.") for key in match.riders):
        yield "embedding"
    if match.incomplete:
        yield "incomplete"
    if scale != 1:
        yield "scale-in-header"
    if match.architecture == "sdxl" and metadata and not metadata.get("ss_base_model_version", "").startswith("sdxl_"):
        yield "untagged-sdxl"
        if metadata.get("modelspec.architecture") != architecture("sdxl").metadata["modelspec.architecture"]:
            yield "untagged-sdxl-modelspec"


def _mixed_attention_alphas(match: Match, alphas: Mapping[str, float]) -> bool:
    """Tell whether an attention layer of a kohya file has another alpha than most layers of its component."""
    map = keymap(match.candidates[0])
    kohya = {
        place.target: alphas[key]
        for key, place in match.places.items()
        if key in alphas and place.role == "alpha" and place.spelling.prefixes == "kohya"
    }
    counts: dict[str, Counter[float]] = {}
    for target, alpha in kohya.items():
        counts.setdefault(target.component, Counter())[alpha] += 1
    common = {component: count.most_common(1)[0][0] for component, count in counts.items()}
    return any(
        alpha != common[target.component] and map.name(target, "attn-processor") is not None
        for target, alpha in kohya.items()
    )


def _header_scale(match: Match, shapes: Shapes, metadata: Mapping[str, str]) -> float:
    """Return the scale that most layers have from the header alone, 1 where none has one."""
    alphas = header_alphas(match, shapes, metadata)
    scales = Counter(alpha / rank for alpha, rank in alphas.values() if alpha != rank)
    return scales.most_common(1)[0][0] if scales else 1.0


def header_alphas(match: Match, shapes: Shapes, metadata: Mapping[str, str]) -> dict[Target, tuple[float, int]]:
    """Return (alpha, rank) of the layers without an alpha tensor: what the header says, else alpha = rank."""
    map = keymap(match.candidates[0])
    scales = Scales.read(metadata)
    found: dict[Target, tuple[float, int]] = {}
    for target, roles in match.layers.items():
        down = shapes.get(roles.get("down", ""))
        rank = down[0] if down else None
        if rank and "alpha" not in roles:
            part = map.family.component(target.component)
            prefix = (prefix_for(part, "diffusers") if part else None) or ""
            found[target] = (scales.alpha(prefix, map.name(target, "diffusers") or "", rank), rank)
    return found
