"""Training from files: the configuration's model through diffusers, the result in the configured key format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..lora_core.adapter import Adapter, Target
from ..lora_core.errors import BadConfig
from ..lora_core.train.config import TrainConfig, last_part
from ..lora_core.train.diffusers_backend import open_backend
from ..lora_core.train.engine import Event, Stop, Write, never, run
from .files import write
from .formats import WRITABLE
from .keymap import names


def train(config: TrainConfig, resume: bool = False, stop: Stop = never) -> Iterator[Event]:
    """Train as configured and yield events (see `lora_core.train.engine.run`).

    Raises LorasmithError: BadConfig for a format that cannot be written, before anything is loaded.
    """
    if config.format not in WRITABLE:
        raise BadConfig(f"config: 'format' is {config.format!r}; choose one of {', '.join(WRITABLE)}", key="format")
    backend = open_backend(config, diffusers_names)
    yield from run(config, backend, writer(config, backend.prediction), resume, stop, cuts=backend.cuts)


def diffusers_names(architecture: str, component: str) -> Mapping[str, Target]:
    """Return a component's targets by the names that diffusers and transformers give its modules."""
    return names(architecture, component, "diffusers")


def writer(config: TrainConfig, prediction: str) -> Write:
    """Return the function that writes an adapter with the header that hosts and collectors look for."""

    def write_adapter(adapter: Adapter, path: Path, facts: Mapping[str, str]) -> Path:
        described = replace(adapter, metadata={**adapter.metadata, **metadata(config, prediction, facts)})
        return write(described, path, config.format, overwrite=True)

    return write_adapter


def metadata(config: TrainConfig, prediction: str, facts: Mapping[str, str]) -> dict[str, str]:
    """Return a trained file's header: what is known for certain, under sd-scripts' and modelspec's names.

    `facts` are the engine's `lorasmith.*` entries. Sources of the names: sd-scripts' `train_network.py`, and the
    Stability AI metadata standard (modelspec 1.0.0).
    """
    own = dict(facts)
    tags = json.loads(own.pop("lorasmith.tags"))
    found = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
        "ss_learning_rate": str(config.learning_rate),
        "ss_text_encoder_lr": str(config.text_encoder_learning_rate) if config.text_encoder_learning_rate else None,
        "ss_lr_scheduler": config.scheduler,
        "ss_lr_warmup_steps": str(config.warmup),
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_steps": own["lorasmith.step"],
        "ss_max_train_steps": str(config.steps),
        "ss_total_batch_size": str(config.batch_size * config.accumulate),
        "ss_gradient_accumulation_steps": str(config.accumulate),
        "ss_max_grad_norm": str(config.max_grad_norm),
        "ss_min_snr_gamma": str(config.min_snr_gamma) if config.min_snr_gamma else None,
        "ss_noise_offset": str(config.noise_offset) if config.noise_offset else None,
        "ss_num_train_images": own["lorasmith.pictures"],
        "ss_seed": str(config.seed),
        "ss_resolution": str((config.resolution, config.resolution)),
        "ss_sd_model_name": last_part(config.model),
        "ss_tag_frequency": json.dumps({Path(config.data).name: tags}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": config.name,
        "modelspec.trigger_phrase": config.instance_prompt,
        "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}[prediction],
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
    }
    return {**{key: value for key, value in found.items() if value is not None}, **own}
