"""One checkpoint file, in the layout that models were published in, to diffusers' classes: no network, no guessing.

What such a file does not tell (layer counts, head sizes, betas) lies in `sd_configs`; its text encoders are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import store
from ..errors import FileProblem, WrongArchitecture
from .diffusers_load import explained, libraries
from .families import Parts, family_of
from .tokenizers import tokenizer_for

CONFIGS = Path(__file__).parent / "sd_configs"

_TOKENS = "text_model.embeddings.position_embedding.weight"
_MARKS = {  # a key that tells the family -> the family
    f"conditioner.embedders.0.transformer.{_TOKENS}": "sdxl",
    f"cond_stage_model.transformer.{_TOKENS}": "sd15",
    "cond_stage_model.model.positional_embedding": "sd21",
}
_TEXT = {  # family -> component -> where its text encoder lies
    "sd15": {"clip_l": "cond_stage_model.transformer.text_model."},
    "sd21": {"clip_h": "cond_stage_model.model."},
    "sdxl": {"clip_l": "conditioner.embedders.0.transformer.text_model.", "clip_g": "conditioner.embedders.1.model."},
}
_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_OTHERS = {  # a part of a key -> whose denoiser it is, which files hold without its text encoders
    "double_blocks.0.img_attn": "FLUX",
    "distilled_guidance_layer.": "Chroma",
    "joint_blocks.0.context_block": "Stable Diffusion 3",
    "transformer_blocks.0.img_mod": "Qwen-Image",
    "cap_embedder.": "Z-Image or Lumina 2",
    "blocks.0.cross_attn.": "Wan",
    "y_embedder.y_embedding": "PixArt or Sana",
}


def load_file(
    path: Path,
    tokenizer: str | None = None,
    dtype: torch.dtype | None = None,
    asked: str | None = None,
    configs: Path = CONFIGS,
) -> Parts:
    """Load a Stable Diffusion 1.x, 2.x or XL checkpoint; raises FileProblem and WrongArchitecture."""
    diffusers, transformers = libraries()
    tensors = dict(store.load(path).tensors)
    folder = configs / _family_of(path, tensors)
    offline = {"config": str(folder), "local_files_only": True, **({"torch_dtype": dtype} if dtype else {})}
    with explained(str(path), "the file is incomplete or of another family"):
        encoders = {
            component: _text_encoder(transformers, folder, place, tensors, lead, path)
            for place, (component, lead) in enumerate(_TEXT[folder.name].items())
        }
        unet = diffusers.UNet2DConditionModel.from_single_file(dict(tensors), subfolder="unet", **offline)
        vae = diffusers.AutoencoderKL.from_single_file(
            dict(tensors), subfolder="vae", config=str(folder), local_files_only=True
        )
    family, architecture = family_of({**unet.config, "_class_name": type(unet).__name__}, asked)
    vocabularies = {component: _vocabulary(path, tokenizer, component) for component in encoders}
    return Parts(architecture, family, unet, vae, encoders, vocabularies, _scheduler(diffusers, folder, tensors))


def _family_of(path: Path, tensors: Mapping[str, Tensor]) -> str:
    found = next((family for key, family in _MARKS.items() if key in tensors), None)
    if found is None or _FIRST not in tensors:
        raise WrongArchitecture(f"{path}: {_instead(tensors)}", file=path)
    if tensors[_FIRST].shape[1] != 4:
        raise WrongArchitecture(f"{path}: an inpainting or depth checkpoint; choose a plain one", file=path)
    return found


def _instead(tensors: Mapping[str, Tensor]) -> str:
    """Return what to do about a file that is no Stable Diffusion checkpoint."""
    whose = next((name for part, name in _OTHERS.items() if any(part in key for key in tensors)), None)
    if whose is None:
        return "no Stable Diffusion 1.x, 2.x or XL checkpoint with its text encoder; give a diffusers folder"
    return f"a {whose} denoiser; give the model's diffusers folder or hub id, which has its text encoders too"


def _scheduler(diffusers: Any, folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if _predicts_v(folder.name, tensors):
        scheduler.register_to_config(prediction_type="v_prediction")
    return scheduler


def _predicts_v(family: str, tensors: Mapping[str, Tensor]) -> bool:
    """Tell v models: by a key that trainers put there; 2.x as ComfyUI does, by a norm's bias that spreads wider."""
    bias = tensors.get("model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias")
    wide = bias is not None and float(bias.float().std(unbiased=False)) > 0.09
    return "v_pred" in tensors or (family == "sd21" and wide)


def _vocabulary(path: Path, tokenizer: str | None, component: str) -> Any:
    with explained(tokenizer or str(path), "set 'tokenizer' to a folder with CLIP's vocab.json and merges.txt"):
        vocabulary = tokenizer_for(tokenizer, "tokenizer", beside=path)
    if component != "clip_l":
        vocabulary.pad_token = "!"  # OpenCLIP's models fill captions up with token 0, OpenAI's with the end mark
    return vocabulary


_OPEN_CLIP = (  # (in the checkpoint, in transformers) for the parts of a residual block
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def _text_encoder(
    transformers: Any, folder: Path, place: int, tensors: Mapping[str, Tensor], lead: str, path: Path
) -> Any:
    """Return a CLIP filled from a checkpoint's tensors below `lead`; raises FileProblem when some are missing."""
    ending = "" if place == 0 else f"_{place + 1}"
    config = transformers.CLIPTextConfig.from_pretrained(folder / f"text_encoder{ending}", local_files_only=True)
    projected = bool(config.architectures) and config.architectures[0].endswith("WithProjection")
    model = (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)
    found = {key[len(lead) :]: value for key, value in tensors.items() if key.startswith(lead)}
    if "positional_embedding" in found:
        found = _from_open_clip(found, config.num_hidden_layers)
    inner = "text_model." if any(key.startswith("text_model.") for key in model.state_dict()) else ""
    named = {key if key.startswith("text_projection") else inner + key: value for key, value in found.items()}
    result = model.load_state_dict(named, strict=False)
    missing = [key for key in result.missing_keys if not key.endswith("position_ids")]
    if missing:
        raise FileProblem(f"{path}: its text encoder lacks {missing[0]!r}; the file is incomplete", file=path)
    return model


def _from_open_clip(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return OpenCLIP's text tensors under transformers' names; the fused `in_proj` is cut into q, k and v."""
    found = {
        "embeddings.token_embedding.weight": tensors["token_embedding.weight"],
        "embeddings.position_embedding.weight": tensors["positional_embedding"],
        **{f"final_layer_norm.{kind}": tensors[f"ln_final.{kind}"] for kind in ("weight", "bias")},
    }
    if "text_projection" in tensors:
        found["text_projection.weight"] = tensors["text_projection"].t()
    for layer in range(layers):
        theirs, ours = f"transformer.resblocks.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            found.update({f"{ours}{b}.{kind}": tensors[f"{theirs}{a}.{kind}"] for a, b in _OPEN_CLIP})
            cut = tensors[f"{theirs}attn.in_proj_{kind}"].chunk(3)
            found.update({f"{ours}self_attn.{n}_proj.{kind}": t for n, t in zip("qkv", cut, strict=True)})
    return found
