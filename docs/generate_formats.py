"""Writes docs/formats.md from the tables in convert/: what is read and written, and how it is spelled.

python docs/generate_formats.py            writes the page
python docs/generate_formats.py --check    says whether the page is what the tables give; exit status 1 if not
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "formats.md"


def alias_root() -> None:
    """Make this checkout importable as `lorasmith`, whatever its folder is called."""
    if "lorasmith" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["lorasmith"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]


alias_root()

import torch  # noqa: E402

from lorasmith.convert.algorithms import ALGORITHMS  # noqa: E402
from lorasmith.convert.architectures import ARCHITECTURES  # noqa: E402
from lorasmith.convert.codec import encode  # noqa: E402
from lorasmith.convert.detect import POSITIONAL  # noqa: E402
from lorasmith.convert.expressible import KINDS  # noqa: E402
from lorasmith.convert.formats import FORMATS, NAMINGS, WRITABLE  # noqa: E402
from lorasmith.convert.keymap import JOINERS, Keymap, Spelling, keymap, prefix_for  # noqa: E402
from lorasmith.convert.positional import CLASSES  # noqa: E402
from lorasmith.convert.scales import DIFFUSERS_KEY, PEFT_KEY  # noqa: E402
from lorasmith.convert.suffixes import BLOCK, COMMON, NAME, SUFFIXES  # noqa: E402
from lorasmith.convert.words import BASE_MODELS, CARD, HEADER, TRIGGERS  # noqa: E402
from lorasmith.lora_core.adapter import Adapter, Target  # noqa: E402
from lorasmith.lora_core.errors import UnsupportedLayer  # noqa: E402
from lorasmith.lora_core.layers import LoRA  # noqa: E402
from lorasmith.lora_core.ops.provenance import STALE  # noqa: E402

if TYPE_CHECKING:
    from lorasmith.convert.model import Architecture, Component, Format, Naming
    from lorasmith.convert.suffixes import Suffixes

ALPHAS = {
    "tensor": "a tensor `.alpha` for each layer",
    "folded": "part of `up`, multiplied in",
    "config": "in `adapter_config.json`",
}
SHAPES = {  # role -> shape of its tensor for a linear layer, weight (out, in); `*kernel`, `*1`: of a convolution too
    "down": "(rank, in, *kernel)",
    "up": "(out, rank, *1)",
    "mid": "(rank, rank, *kernel)",
    "up_bias": "(out)",
    "alpha": "()",
    "scalar": "()",
    "magnitude": "(out, *1) or (1, in, *1)",
    "reshape": "(dimensions)",
    "embedding_down": "(rank, words)",
    "embedding_up": "(width, rank)",
    "hada_w1_a": "(out, rank)",
    "hada_w1_b": "(rank, in)",
    "hada_w2_a": "(out, rank)",
    "hada_w2_b": "(rank, in)",
    "hada_t1": "(rank, rank, *kernel)",
    "hada_t2": "(rank, rank, *kernel)",
    "lokr_w1": "(a, b)",
    "lokr_w1_a": "(a, rank)",
    "lokr_w1_b": "(rank, b)",
    "lokr_w2": "(c, d, *kernel)",
    "lokr_w2_a": "(c, rank)",
    "lokr_w2_b": "(rank, d)",
    "lokr_t2": "(rank, rank, *kernel)",
    "oft_blocks": "(blocks, size, size), BOFT (factors, blocks, size, size)",
    "rescale": "(out, *1)",
    "oft_R": "(blocks, size*(size-1)/2)",
    "scaled_oft": "()",
    "boft_R": "(factors, blocks, size, size)",
    "boft_s": "(out, 1)",
    "a1": "(in, rank)",
    "a2": "(rank, in)",
    "b1": "(out, rank)",
    "b2": "(rank, in, *kernel)",
    "ia3": "(out) or (in)",
    "on_input": "()",
    "ia3_l": "(out, 1) or (1, in)",
    "diff": "(out, in, *kernel)",
    "diff_b": "(out)",
    "diff_m": "the parameter's",
    "w_norm": "(channels)",
    "b_norm": "(channels)",
    "value": "(out, in, *kernel)",
    "value_b": "(out)",
}
DEEDS = {  # what an algorithm does with the weight W
    "lora": "W + alpha/rank * up @ down; with `mid` a convolution's Tucker form",
    "loha": "W + alpha/rank * (w1_a @ w1_b) * (w2_a @ w2_b)",
    "lokr": "W + alpha/rank * kron(w1, w2); either factor may be low-rank; a*c = out, b*d = in",
    "oft": "rotates blocks of W's rows (LyCORIS' OFT and BOFT, kohya's OFT); kohya's alpha is a limit and no scale",
    "oft_v2": "rotates blocks of W's columns (PEFT, OneTrainer); upper triangles are stored",
    "boft": "rotates W in several butterfly factors (PEFT)",
    "glora": "W + alpha/rank * (W @ a1 @ a2 + b1 @ b2)",
    "ia3": "multiplies W's rows or columns by 1 + w (LyCORIS), or by the factor itself (PEFT's `ia3_l`)",
    "full": "W + diff, bias + diff_b",
    "norm": "a norm's weight + w_norm, its bias + b_norm",
    "value": "W becomes the value",
}
TITLES = {"tucker": "LoRA with a Tucker core", "bias": "a bias beside LoRA (`lora_B.bias`)"}  # beside KINDS
HEADS = ("attn", "attention")  # example keys are of attention where a family has it


def page() -> str:
    """Return the whole page."""
    sections = (_intro, _dialects, _holds, _algorithms, _suffixes, _namings, _numbered, _header, _families)
    return "\n\n".join("\n".join(section()) for section in sections) + "\n"


def _intro() -> Iterator[str]:
    yield "# LoRA file formats: dialects, algorithms, model families"
    yield ""
    yield "<!-- Written by docs/generate_formats.py from the tables in convert/. Do not edit; run the script. -->"
    yield ""
    yield (
        f"Lorasmith reads {len(FORMATS)} dialects of LoRA keys and writes {len(WRITABLE)} of them, for "
        f"{len(ARCHITECTURES)} model families. This page is written from the tables that do it; "
        f"[how to add to them](adding-a-format.md)."
    )
    yield ""
    yield "A key is three words: where (a component's prefix), which module, which tensor. In kohya's dialect:"
    yield ""
    map = keymap("flux")
    target = _examples(map, "denoiser")[0]
    key = _written(map, target, "kohya")[0]
    yield f"`{key}` = `lora_unet_` + `{target.module}` with `_` for `.` + `.lora_down.weight`"
    yield ""
    yield (
        "A dialect chooses the prefixes, the module names (the original model's or Diffusers'), the tensors' names and "
        "where the scale is kept. `rank` is the inner size of a low-rank layer; the scale is alpha / rank."
    )


def _dialects() -> Iterator[str]:
    yield "## Dialects"
    yield ""
    yield "`--to ID` of `convert` takes those that can be written. Keys that no row explains are listed, never guessed."
    yield ""
    rows = [
        (f"`{row.id}`", row.title, ALPHAS[row.alpha] if row.writable else "read only", _code(_example(row)))
        for row in FORMATS
    ]
    yield from _table(("id", "what it is", "written with alpha as", "example"), rows)


def _holds() -> Iterator[str]:
    yield "## Which algorithm can be written in which dialect"
    yield ""
    yield (
        "Where a dialect cannot hold a layer, `convert` says so and names those that can; `--bake-to lora --rank N` "
        "approximates it and reports the error. Reading knows no such limits."
    )
    yield ""
    writable = [row for row in FORMATS if row.writable]
    titles = {**{word: title for _, word, title in KINDS}, **TITLES}
    words = dict.fromkeys(word for row in writable for word in row.kinds)
    rows = [(titles[word], *("yes" if word in row.kinds else "" for row in writable)) for word in words]
    yield from _table(("", *(f"`{row.id}`" for row in writable)), rows)


def _algorithms() -> Iterator[str]:
    yield "## Algorithms and their tensors"
    yield ""
    yield (
        "Shapes are those of a linear layer whose weight is (out, in). `*kernel` and `*1` are further dimensions of a "
        "convolution; with a core (`lora_mid`, `hada_t1`, `lokr_t2`) the kernel is there, and factors `_a` and `_b` "
        "of LoHa and LoKr lie the other way round. An additive layer with `dora_scale` beside it is DoRA."
    )
    yield ""
    rows = []
    for row in ALGORITHMS:
        roles = dict.fromkeys(role for needs in row.needs for role in sorted(needs))
        tensors = [*roles, *sorted(row.may)]
        listed = "; ".join(f"{_code(_ways(role)[0])} {SHAPES[role]}" for role in tensors)
        rows.append((f"`{row.id}`", DEEDS[row.id], listed))
    yield from _table(("algorithm", "effect", "tensors and shapes"), rows)


def _suffixes() -> Iterator[str]:
    yield "## How tensors are named"
    yield ""
    yield "The last words of a key. Where a tensor has several names the first is written. `NAME` is an adapter's name."
    yield ""
    rows = []
    for group in SUFFIXES:
        limits = [*(f"`{kind}` prefixes" for kind in group.prefixes), *(f"`{family}`" for family in group.families)]
        where = ", ".join(limits) or ("some module names" if group.named else "any")
        spelled = "; ".join(f"{role}: {', '.join(map(_code, map(_plain, ways)))}" for role, ways in group.roles.items())
        rows.append((f"`{group.id}`" if group.id != COMMON else "every dialect", where, spelled))
    yield from _table(("group", "with", "tensor: names"), rows)


def _namings() -> Iterator[str]:
    yield "## Module names that differ in a few words"
    yield ""
    yield "Beside the original and the Diffusers names of a family, these are read:"
    yield ""
    rows = [("all", *_naming(naming)) for naming in NAMINGS]
    found: dict[tuple[str, str, str], list[str]] = {}
    for family in ARCHITECTURES:
        for naming in family.namings:
            found.setdefault(_naming(naming), []).append(f"`{family.id}`")
    rows += [(", ".join(ids), *said) for said, ids in found.items()]
    yield from _table(("families", "naming", "instead of", "it says"), rows)


def _naming(naming: Naming) -> tuple[str, str, str]:
    changes = [*((naming.beginning,) if naming.beginning else ()), *naming.endings]
    shown = changes[:3]
    before, after = (", ".join(_code(pair[side]) or "(nothing)" for pair in shown) for side in (0, 1))
    more = f" and {len(changes) - len(shown)} more" if len(changes) > len(shown) else ""
    return f"`{naming.id}`", before + more, after + more


def _numbered() -> Iterator[str]:
    yield "## Files that number their layers"
    yield ""
    yield (
        "A bare list of tensors (`lora.pt`: up, down, up, down ...), safeloras (`unet:0:up`) and Stable Cascade's own "
        "trainer (`weights.0.lora_up`) name no module. They are read when the sizes of all layers, in order, are those "
        "of one model; anything else is refused. Known are:"
    )
    yield ""
    rows = []
    for family in ARCHITECTURES:
        for part in family.components:
            orders = {keymap(family.id).counted(part.id, classes): classes for classes in reversed(CLASSES)}
            for order, classes in sorted(orders.items(), key=lambda item: len(item[0])):
                if order and prefix_for(part, "positional"):
                    rows.append((f"`{family.id}`", f"`{part.id}`", _listed(sorted(classes)), str(len(order))))
    yield from _table(("family", "component", "layers in modules of class", "how many"), rows)
    yield ""
    yield (
        "Stable Cascade's trainer counts each attention's output and its fused query, key and value: 128 layers in the "
        "file, the latter split in three here. `lora.text_encoder.pt` is a file of its own; merge the two. A `.ti.pt` "
        "holds textual inversions and is no LoRA. Textual inversions inside a LoRA (`bundle_emb.`, `<s1>`, `clip_l`, "
        "`clip_g`, `emb_params`, `string_to_param.`) are carried through as they are."
    )


def _header() -> Iterator[str]:
    yield "## Header entries"
    yield ""
    rows: list[tuple[str, str, str]] = [
        (f"`{DIFFUSERS_KEY}`", "read", "ranks, alphas and patterns of Diffusers; without them the strength is another"),
        (f"`{PEFT_KEY}`", "read", "PEFT's configuration, from the file beside the weights"),
        (_listed(POSITIONAL), "read, written", "classes that a file with numbered layers counts"),
        (_listed(STALE), "dropped", "hold for one file alone; what still has a meaning is made anew"),
        ("`format`, `ss_output_name`", "written", "`pt`, and the file's name"),
    ]
    for title, sources in (("trigger words", TRIGGERS), ("base model", BASE_MODELS)):
        keys = dict.fromkeys(source.path[0] for source in sources if source.sidecar == HEADER)
        sidecars = dict.fromkeys(_beside(source.sidecar) for source in sources if source.sidecar != HEADER)
        rows.append((_listed(keys), "read", f"{title}; also from {', '.join(sidecars)}"))
    hints = dict.fromkeys(key for family in ARCHITECTURES for key in family.hints)
    rows.append((_listed(hints), "read", "which family, where names and shapes leave it open"))
    written = dict.fromkeys(key for family in ARCHITECTURES for key in family.metadata)
    rows.append((_listed(written), "written", "the family, see below; hosts sort their lists by it"))
    yield from _table(("entry", "", "what for"), rows)


def _families() -> Iterator[str]:
    yield "## Model families"
    yield ""
    yield (
        "The `down` tensor of one layer in the dialects that can be written; those that spell it alike share a line. "
        "Of a fused weight Diffusers names the parts, here the first. Then the other components with their prefixes."
    )
    for families in _alike():
        family, map = families[0], keymap(families[0].id)
        yield ""
        yield f"### {'; '.join(f'{one.name} `{one.id}`' for one in families)}"
        for key, dialects in _spellings(map, _examples(map, "denoiser")[0]).items():
            yield f"- {', '.join(dialects)}: `{key}`"
        for part in family.components:
            if part.id != "denoiser":
                yield f"- `{part.id}`: {_prefixes(part)}"
        written = "; ".join(
            f"`{key}` {_listed(dict.fromkeys(one.metadata[key] for one in families if key in one.metadata))}"
            for key in family.metadata
            if key != "ss_v2"
        )
        if written:
            yield f"- header: {written}"


def _alike() -> list[list[Architecture]]:
    """Return the families, those together whose keys begin alike."""
    groups: dict[tuple[object, ...], list[Architecture]] = {}
    for family in ARCHITECTURES:
        map = keymap(family.id)
        parts = tuple((part.id, _prefixes(part)) for part in family.components if part.id != "denoiser")
        keys = tuple((key, *who) for key, who in _spellings(map, _examples(map, "denoiser")[0]).items())
        groups.setdefault((parts, keys), []).append(family)
    return list(groups.values())


def _prefixes(part: Component) -> str:
    """Say how a component's keys begin: in three dialects what is written, then what is read beside it."""
    named = [kind for kind in ("kohya", "diffusers", "comfy") if part.prefixes.get(kind)]
    firsts = [_beginning(kind, part.prefixes[kind][0]) for kind in named]
    every = dict.fromkeys(_beginning(kind, text) for kind, texts in part.prefixes.items() for text in texts)
    others = [text for text in every if text and text not in firsts]
    said = ", ".join(f"`{text}` ({kind})" for text, kind in zip(firsts, named, strict=True))
    return said + (f"; also read: {_listed(others)}" if others else "")


def _beginning(kind: str, text: str) -> str:
    return f"{text}{JOINERS.get(kind, '.')}" if text else ""


def _spellings(map: Keymap, target: Target) -> dict[str, list[str]]:
    """Return key -> the dialects that write it, of one layer's `down`."""
    found: dict[str, list[str]] = {}
    for id in WRITABLE:
        for key in _written(map, target, id)[:1]:
            found.setdefault(key, []).append(f"`{id}`")
    return found


def _written(map: Keymap, target: Target, format: str) -> list[str]:
    """Return the `down` keys that a dialect writes for a LoRA on one module; none where it cannot say it."""
    out, *rest = map.shape(target) or ()
    layer = LoRA(torch.zeros(1).expand(1, *rest), torch.zeros(1).expand(out, 1, *[1] * (len(rest) - 1)), alpha=1.0)
    try:
        keys = encode(Adapter(map.family.id, {target: layer}), format)
    except UnsupportedLayer:
        return []
    return [key for key in keys if (place := map.place(key)) and place.role == "down"]


def _examples(map: Keymap, component: str) -> list[Target]:
    """Return a component's matrices, attention in repeated blocks first."""
    targets = [Target(component, name) for name, module in map.modules(component).items() if len(module.shape) > 1]
    return sorted(targets, key=lambda target: -_fitness(target.module))


def _fitness(module: str) -> int:
    repeated = any(word.isdecimal() for word in module.split("."))
    return 2 * any(head in module for head in HEADS) * repeated + repeated


def _example(row: Format) -> str:
    """Return a key of a dialect, of the first family that has one."""
    if row.kinds and "lora" not in row.kinds:
        return _oft(row)
    for family in ARCHITECTURES:
        map = keymap(family.id)
        for target in _examples(map, "denoiser"):
            keys = _written(map, target, row.id) if row.writable else list(_spelled(row, map, target))
            if keys:
                return keys[0]
            if row.writable:
                break  # what it cannot say of one module, it can of no other
    return ""


def _spelled(row: Format, map: Keymap, target: Target) -> Iterator[str]:
    """Yield the keys of one module in a dialect that is only read, the dialect's own names first."""
    part = map.family.component(target.component)
    own = [naming for naming in row.namings if naming in map.namings]
    for kind in row.prefixes:
        prefix = prefix_for(part, kind) if part else None
        for naming in (own or row.namings) if prefix is not None else ():
            if naming not in (*map.namings, "original", "diffusers", "positional"):
                continue
            for group in row.suffixes:
                role = "down" if "down" in _groups()[group].roles else "value"
                spelling = Spelling(kind, prefix or "", JOINERS.get(kind, "."), naming, group)
                if (key := map.spell(target, role, spelling)) and map.place(key):
                    yield key


def _groups() -> dict[str, Suffixes]:
    return {group.id: group for group in SUFFIXES}


def _oft(row: Format) -> str:
    """Return a key of a dialect that holds rotations alone."""
    map = keymap(ARCHITECTURES[0].id)
    target = _examples(map, "denoiser")[0]
    part = map.family.component(target.component)
    prefix = prefix_for(part, row.prefixes[0]) if part else None
    spelling = Spelling(row.prefixes[0], prefix or "", JOINERS[row.prefixes[0]], map.family.kohya_naming)
    return map.spell(target, "oft_blocks", spelling) or ""


def _ways(role: str) -> Sequence[str]:
    return next(group.roles[role] for group in SUFFIXES if role in group.roles)


def _plain(text: str) -> str:
    return text.replace(NAME, "NAME").replace(BLOCK, "N")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _beside(sidecar: str) -> str:
    return f"`{sidecar}`" if sidecar == CARD else f"`NAME{sidecar}`"


def _listed(words: Iterable[str] | Mapping[str, object]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> int:
    """Write the page, or compare it; return the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/formats.md from the tables in convert/.")
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 when the page differs")
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write("docs/formats.md differs from the tables: run python docs/generate_formats.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
