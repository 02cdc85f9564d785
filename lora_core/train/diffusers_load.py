"""Models in diffusers' classes: from a pipeline folder, a hub id, or one checkpoint file, offline."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..errors import BadConfig, FileProblem, WrongArchitecture
from .families import Encoder, Family, Parts, family_of, known
from .tokenizers import tokenizer_for

FOLDERS = ("unet", "transformer")  # where a pipeline keeps its denoiser


def load(
    model: str,
    tokenizer: str | None = None,
    dtype: torch.dtype | None = None,
    family: str | None = None,
    revision: str | None = None,
) -> Parts:
    """Load a model on the CPU, the denoiser in `dtype` or as it is stored.

    `tokenizer` is a folder with CLIP's vocabulary, `family` an id among those that the model may be, `revision`
    a branch, tag or commit on the hub. Raises FileProblem, WrongArchitecture, or BadConfig when diffusers is missing.
    """
    libraries()
    path = Path(model)
    if revision is not None and path.exists():
        raise BadConfig(
            f"config: 'revision' is for models of the hub, and {model} is here; leave it out", key="revision"
        )
    if path.is_file():
        from .checkpoint_file import load_file

        return load_file(path, tokenizer, dtype, family)
    if path.is_dir():
        return _from_pipeline(path, tokenizer, dtype, family)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _from_pipeline(_from_hub(model, revision), tokenizer, dtype, family)
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


@contextmanager
def explained(model: str, way: str) -> Iterator[None]:
    """Turn what the libraries raise for missing or broken files into one line."""
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileProblem(f"{model}: cannot be loaded ({first}); {way}", file=model) from error


def class_of(module: Any, name: str) -> Any:
    """Return a library's class; raises BadConfig when the library is too old to have it."""
    found = getattr(module, name, None)
    if found is None:
        have = f"{module.__name__} {module.__version__}"
        raise BadConfig(f"this model needs {name}, which {have} does not have; run 'pip install -U {module.__name__}'")
    return found


def _from_hub(model: str, revision: str | None) -> Path:
    """Return the folder of a downloaded pipeline; without a network, of one that was downloaded before."""
    diffusers, _ = libraries()
    connection = importlib.import_module("httpx").HTTPError if _has_httpx() else OSError
    way = "check the id and the network, or give a folder"
    try:
        with explained(model, way):
            return Path(diffusers.DiffusionPipeline.download(model, revision=revision))
    except connection as error:
        raise FileProblem(f"{model}: cannot be fetched ({error}); {way}", file=model) from error


def _has_httpx() -> bool:
    return importlib.util.find_spec("httpx") is not None


def _from_pipeline(folder: Path, tokenizer: str | None, dtype: torch.dtype | None, asked: str | None) -> Parts:
    diffusers, _ = libraries()
    place = next((name for name in FOLDERS if (folder / name / "config.json").is_file()), None)
    if place is None:
        text = f"{folder}: has no 'unet' or 'transformer' folder; this trainer knows {known()}"
        raise FileProblem(text, file=folder)
    if (folder / "transformer_2" / "config.json").is_file():
        what = f"{folder}: has two denoisers, for much and for little noise, which need an adapter each"
        way = "give a folder with one of them as 'transformer' alone, and set 'min_timestep' or 'max_timestep'"
        raise WrongArchitecture(f"{what}; {way}", file=folder)
    with explained(str(folder), f"this trainer knows {known()}"):
        family, architecture = family_of(_json(folder / place / "config.json"), asked)
        there = [e for e in family.encoders if not e.optional or (folder / e.folder / "config.json").is_file()]
        return Parts(
            architecture,
            family,
            _model(diffusers, family.denoiser, folder, place, torch_dtype=dtype),
            _model(diffusers, family.vae, folder, "vae"),
            {encoder.component: _text_encoder(encoder, folder) for encoder in there},
            {encoder.component: _tokenizer(encoder, folder, tokenizer) for encoder in there},
            _scheduler(family, folder),
            _settings(folder),
        )


def _model(module: Any, kind: str, folder: Path, place: str, **options: Any) -> Any:
    """Load one model of a pipeline; the half precision files only where there are no others."""
    given = {key: value for key, value in options.items() if value is not None}
    half = any((folder / place).glob("*.fp16*.safetensors"))
    whole = any(".fp16" not in file.name for file in (folder / place).glob("*.safetensors"))
    which = {"variant": "fp16"} if half and not whole else {}
    return class_of(module, kind).from_pretrained(folder, subfolder=place, local_files_only=True, **which, **given)


def _text_encoder(encoder: Encoder, folder: Path) -> Any:
    return _model(libraries()[1], encoder.model, folder, encoder.folder)


def _tokenizer(encoder: Encoder, folder: Path, named: str | None) -> Any:
    if encoder.clip:
        return tokenizer_for(named or str(folder), encoder.tokenizer)
    kind = libraries()[1].AutoTokenizer
    return kind.from_pretrained(folder / encoder.tokenizer, local_files_only=True)


def _scheduler(family: Family, folder: Path) -> Any:
    """Return the model's scheduler; discrete ones as DDPM, which has the betas and says what is predicted."""
    diffusers, _ = libraries()
    config = _json(folder / "scheduler" / "scheduler_config.json")
    kind = config["_class_name"] if family.flow else "DDPMScheduler"
    return class_of(diffusers, kind).from_config(config)


def _settings(folder: Path) -> dict[str, Any]:
    """Return what a pipeline says of itself beside its parts: numbers and switches."""
    index = folder / "model_index.json"
    found = _json(index) if index.is_file() else {}
    return {key: value for key, value in found.items() if not key.startswith("_") and not isinstance(value, list)}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
