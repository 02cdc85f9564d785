"""The names of a model's own tensors, and what each of them holds, for every family and in all layouts.

Names are generated from the families' tables. Where a layout cuts a weight into parts, puts several into one, exchanges
halves or transposes, the table says so: `Held`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..lora_core.adapter import Target
from ..lora_core.errors import FileProblem
from .architectures import ARCHITECTURES, architecture
from .keymap import keymap, layout_of
from .model import Architecture, Component

WEIGHTS = ("*.safetensors", "*.bin")  # in a component's folder
SHARD = re.compile(r"-\d{5}-of-\d{5}")

PARAMETERS = ((".weight", "weight"), (".bias", "bias"), (".scale", "weight"), ("", "weight"))  # ending -> what it is

# OpenCLIP, as SD 2.x and SDXL checkpoints hold it: (its name, what it is in transformers' CLIP, one below another)
OPENCLIP_LAYER = (
    ("attn.in_proj_", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("attn.out_proj.", ("self_attn.out_proj",)),
    ("mlp.c_fc.", ("mlp.fc1",)),
    ("mlp.c_proj.", ("mlp.fc2",)),
    ("ln_1.", ("layer_norm1",)),
    ("ln_2.", ("layer_norm2",)),
)
OPENCLIP_ENDS = (  # whole names, with the parameter's
    ("token_embedding.weight", "text_model.embeddings.token_embedding"),
    ("positional_embedding", "text_model.embeddings.position_embedding"),
    ("ln_final.weight", "text_model.final_layer_norm"),
    ("text_projection", "text_projection"),
)
TRANSPOSED = ("text_projection",)  # OpenCLIP multiplies from the left with it


@dataclass(frozen=True)
class Held:
    """What one stored tensor holds: parameters of equal height one below another, most often a single one."""

    targets: tuple[Target, ...]
    swapped: bool = False  # the halves of the rows are the other way round than in the original layout
    transposed: bool = False

    def shapes(self, shape: Sequence[int]) -> dict[Target, tuple[int, ...]]:
        """Return the parameters' shapes in the original layout, given the stored tensor's."""
        if self.transposed:
            shape = tuple(reversed(shape))
        return {target: (shape[0] // len(self.targets), *shape[1:]) if shape else () for target in self.targets}


@cache
def parameters(id: str) -> Mapping[str, Held]:
    """Return every tensor name of a family's model, in all layouts, with what it holds."""
    family, map = architecture(id), keymap(id)
    names: dict[str, Held] = {}
    for part in family.components:
        for prefix, naming in _layouts(part):
            turned = layout_of(family, naming) == "diffusers"
            for name, target in map.targets(part.id, naming).items():
                module = map.module(target)
                swapped = turned and module is not None and module.swapped
                for ending, parameter in PARAMETERS:
                    names.setdefault(f"{prefix}{name}{ending}", Held((replace(target, parameter=parameter),), swapped))
        if part.id != "denoiser":
            for prefix in part.checkpoint:
                names.update({f"{prefix}.{name}": held for name, held in _openclip(family, part.id)})
    return names


def block_heights(blocks: Sequence[int], rows: int) -> tuple[int, ...]:
    """Return the heights of a fused weight's row blocks: the table's, in proportion where the model is another size.

    None at all where they would not be whole numbers.

    >>> block_heights((3072, 3072, 12288), 36)
    (6, 6, 24)
    """
    total = sum(blocks)
    whole = all(height * rows % total == 0 for height in blocks)
    return tuple(height * rows // total for height in blocks) if whole else ()


def model_files(path: Path) -> list[tuple[Path, str]]:
    """Return a model's weight files, each with what to put before its keys: a Diffusers folder's components.

    Raises FileProblem for a folder without any.
    """
    if not path.is_dir():
        return [(path, "")]
    parts = sorted({part.folder for family in ARCHITECTURES for part in family.components} - {""} | {"transformer"})
    found = [(file, f"{part}.") for part in parts for file in weight_files(path / part)]
    found = found or [(file, "") for file in weight_files(path)]
    if not found:
        raise FileProblem(
            f"{path}: no model in this folder. Name a checkpoint, or a Diffusers folder with unet/", file=path
        )
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder's model: all shards, of its variants (fp16, ema) the first, plain ones first.

    Safetensors files make pickles beside them superfluous.
    """
    for pattern in WEIGHTS:
        files = sorted(folder.glob(pattern))
        if files:
            first = min(map(_variant, files))
            return [file for file in files if _variant(file) == first]
    return []


def _variant(file: Path) -> str:
    """Return the word by which a file differs from the plain one: "fp16" of "model.fp16-00001-of-00002.safetensors"."""
    return SHARD.sub("", file.stem).partition(".")[2]


def _layouts(part: Component) -> Iterator[tuple[str, str]]:
    """Yield (prefix, naming) of each layout that models of a component come in."""
    live = [prefix.removeprefix("text_encoders.") for prefix in part.prefixes.get("comfy", ())]
    for prefix in (*part.checkpoint, *live):
        yield f"{prefix}.", "original"
        yield f"{prefix}.", "flat-clip"
    yield f"{part.folder}.", "diffusers"
    yield f"{part.folder}.", "flat-clip"
    for bare in part.prefixes.get("bare", ()):
        for naming in ("original", "diffusers"):
            yield (f"{bare}." if bare else ""), naming


def _openclip(family: Architecture, component: str) -> Iterator[tuple[str, Held]]:
    known = keymap(family.id).targets(component, "original")
    layers = {module.split(".")[3] for module in known if module.startswith("text_model.encoder.layers.")}
    for layer in sorted(layers, key=int):
        for name, modules in OPENCLIP_LAYER:
            targets = [known[f"text_model.encoder.layers.{layer}.{module}"] for module in modules]
            for parameter in ("weight", "bias"):
                yield (
                    f"transformer.resblocks.{layer}.{name}{parameter}",
                    Held(tuple(replace(t, parameter=parameter) for t in targets)),
                )
    for name, module in OPENCLIP_ENDS:
        if module in known:
            yield name, Held((known[module],), transposed=name in TRANSPOSED)
