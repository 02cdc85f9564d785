"""Stable Diffusion models in diffusers' classes: from a pipeline folder, a hub id, or one checkpoint file, offline."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from .. import store
from ..errors import BadConfig, FileProblem, WrongArchitecture
from .tokenizers import tokenizer_for

CONFIGS = Path(__file__).parent / "sd_configs"  # what a checkpoint file does not tell: layer counts, head sizes, betas
FAMILIES = "Stable Diffusion 1.x, 2.x and SDXL"


@dataclass(frozen=True, eq=False)
class Parts:
    """A model in pieces, on the CPU, in the precision it was stored in."""

    architecture: str  # "sd15" | "sd21" | "sdxl"
    unet: Any
    vae: Any
    text_encoders: Mapping[str, Any]  # component -> text model
    tokenizers: Mapping[str, Any]
    scheduler: Any  # DDPMScheduler: the betas and the prediction type


def load(model: str, tokenizer: str | None = None) -> Parts:
    """Load a model; raises FileProblem, WrongArchitecture, or BadConfig when diffusers is missing."""
    libraries()
    path = Path(model)
    if path.is_file():
        return _from_file(path, tokenizer)
    if path.is_dir() or model.count("/") == 1:
        with _explained(model):
            return _from_pipeline(model, tokenizer)
    raise FileProblem(f"{model}: not found; give a diffusers folder, a checkpoint file or a hub id", file=model)


def libraries() -> tuple[Any, Any]:
    """Return the modules diffusers and transformers; raises BadConfig when one is not installed."""
    try:
        return importlib.import_module("diffusers"), importlib.import_module("transformers")
    except ImportError as error:
        command = f"{Path(sys.executable).name} -m pip install diffusers transformers accelerate"
        way = f"run '{command}', or use the .venv that 'python install.py --demo' makes"
        text = f"training from files needs diffusers and transformers in {sys.executable} ({error}); {way}"
        raise BadConfig(text) from error


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the family of a diffusers UNet config; widths do not count, so small models of a family belong to it.

    Raises WrongArchitecture for UNets that take more than noisy latents (inpainting, upscaling).
    """
    if config["in_channels"] != config["out_channels"]:
        raise WrongArchitecture(
            f"the UNet takes {config['in_channels']} channels; inpainting models are not trained here"
        )
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd21" if config.get("use_linear_projection") else "sd15"


def components(architecture: str) -> tuple[str, ...]:
    """Return the text encoders' component names, in order."""
    return {"sd15": ("clip_l",), "sd21": ("clip_h",), "sdxl": ("clip_l", "clip_g")}[architecture]


@contextmanager
def _explained(model: str, way: str = f"this trainer knows {FAMILIES}") -> Iterator[None]:
    """Turn what the libraries raise for missing or broken files into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileProblem(f"{model}: cannot be loaded ({first}); {way}", file=model) from error


def _from_pipeline(model: str, tokenizer: str | None) -> Parts:
    diffusers, transformers = libraries()
    folder = Path(model)
    if folder.is_dir() and not (folder / "unet").is_dir():
        raise FileProblem(f"{model}: has no 'unet' folder; this trainer knows {FAMILIES}", file=model)
    half = any(folder.glob("unet/*.fp16.safetensors")) and not any(folder.glob("unet/*_model.safetensors"))
    which = {"variant": "fp16"} if half else {}
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet", **which)
    architecture = architecture_of(unet.config)
    names = components(architecture)
    places = dict(zip(names, ("", "_2"), strict=False))
    text_models = {"": transformers.CLIPTextModel, "_2": transformers.CLIPTextModelWithProjection}
    return Parts(
        architecture,
        unet,
        diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae", **which),
        {
            name: text_models[place].from_pretrained(model, subfolder=f"text_encoder{place}", **which)
            for name, place in places.items()
        },
        {name: tokenizer_for(tokenizer or model, f"tokenizer{place}") for name, place in places.items()},
        diffusers.DDPMScheduler.from_pretrained(model, subfolder="scheduler"),
    )


def _from_file(path: Path, tokenizer: str | None, configs: Path = CONFIGS) -> Parts:
    diffusers, transformers = libraries()
    tensors = dict(store.load(path).tensors)
    architecture = _family_of(path, tensors)
    folder, component = configs / architecture, components(architecture)[0]
    text_config = transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder", local_files_only=True)
    text_encoder = transformers.CLIPTextModel(text_config)
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if architecture == "sd21" and _predicts_v(tensors):
        scheduler.register_to_config(prediction_type="v_prediction")
    offline = {"config": str(folder), "local_files_only": True}
    with _explained(str(path)):
        load_text_encoder(text_encoder, tensors, path)
        unet = diffusers.UNet2DConditionModel.from_single_file(dict(tensors), subfolder="unet", **offline)
        vae = diffusers.AutoencoderKL.from_single_file(dict(tensors), subfolder="vae", **offline)
    with _explained(tokenizer or str(path), "set 'tokenizer' to a folder with CLIP's vocab.json and merges.txt"):
        vocabulary = tokenizer_for(tokenizer, "tokenizer", beside=path)
    if architecture == "sd21":
        vocabulary.pad_token = "!"  # 2.x fills captions up with token 0, 1.x with the end mark
    return Parts(architecture, unet, vae, {component: text_encoder}, {component: vocabulary}, scheduler)


_MARKS = {  # a key that tells the family -> the family
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "sd15",
    "cond_stage_model.model.positional_embedding": "sd21",
}
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"


def _family_of(path: Path, tensors: Mapping[str, Tensor]) -> str:
    known = [family for key, family in _MARKS.items() if key in tensors]
    if "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight" in tensors:
        way = "train SDXL from a diffusers folder"
        raise WrongArchitecture(f"{path}: an SDXL checkpoint file; {way}", file=path)
    if not known or _FIRST not in tensors:
        raise WrongArchitecture(f"{path}: no Stable Diffusion 1.x or 2.x checkpoint with its text encoder", file=path)
    if tensors[_FIRST].shape[1] != 4:
        raise WrongArchitecture(f"{path}: an inpainting or depth checkpoint; choose a plain one", file=path)
    return known[0]


def _predicts_v(tensors: Mapping[str, Tensor]) -> bool:
    """Guess a 2.x checkpoint's prediction type as ComfyUI does: this norm's bias spreads wider in v models."""
    bias = tensors.get("model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias")
    return "v_pred" in tensors or (bias is not None and float(bias.float().std(unbiased=False)) > 0.09)


_OPEN_CLIP = (  # (in the checkpoint, in transformers) for the parts of a residual block
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def load_text_encoder(model: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Fill a CLIPTextModel from a checkpoint's `cond_stage_model` tensors; raises FileProblem when some are missing."""
    plain = "cond_stage_model.transformer.text_model."
    found = {key[len(plain) :]: value for key, value in tensors.items() if key.startswith(plain)}
    if not found:
        found = _from_open_clip(tensors, model.config.num_hidden_layers)
    lead = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    result = model.load_state_dict({lead + key: value for key, value in found.items()}, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("position_ids")]
    if missing:
        raise FileProblem(f"{path}: its text encoder lacks {missing[0]!r}; the file is incomplete", file=path)


def _from_open_clip(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return OpenCLIP's text tensors under transformers' names; the fused `in_proj` is cut into q, k and v."""
    lead = "cond_stage_model.model."
    found = {
        "embeddings.token_embedding.weight": tensors[lead + "token_embedding.weight"],
        "embeddings.position_embedding.weight": tensors[lead + "positional_embedding"],
        **{f"final_layer_norm.{kind}": tensors[f"{lead}ln_final.{kind}"] for kind in ("weight", "bias")},
    }
    for layer in range(layers):
        theirs, ours = f"{lead}transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            found.update({f"{ours}{b}.{kind}": tensors[f"{theirs}{a}.{kind}"] for a, b in _OPEN_CLIP})
            cut = tensors[f"{theirs}attn.in_proj_{kind}"].chunk(3)
            found.update({f"{ours}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", cut, strict=True)})
    return found
