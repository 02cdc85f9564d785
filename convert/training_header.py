"""The header of a trained file, under sd-scripts' and modelspec's names.

Sources of the names: sd-scripts' `train_network.py`, LyCORIS' network arguments, and the Stability AI metadata standard
(modelspec 1.0.0). Only what is known for certain is written, and no folder of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..lora_core import store
from ..lora_core.train.config import TrainConfig, last_part

OPTIMIZERS = {  # as sd-scripts writes them
    "adamw": "torch.optim.adamw.AdamW",
    "adafactor": "torch.optim._adafactor.Adafactor",
    "muon": "torch.optim._muon.Muon",
    "sgd": "torch.optim.sgd.SGD",
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # modelspec has no word for flow matching


def metadata(
    config: TrainConfig, prediction: str, facts: Mapping[str, str], base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the header of a run's result.

    Args:
        config: the run's.
        prediction: what the model predicts.
        facts: the engine's `lorasmith.*` entries.
        base: hashes of the model's file, as `base_hashes` gives them.
    """
    own = dict(facts)
    folders = json.loads(own.pop("lorasmith.folders", "{}"))
    tags = json.loads(own.pop("lorasmith.tags"))
    asked: Mapping[str, Any] = json.loads(own["lorasmith.config"])  # with the steps that 'epochs' have made
    found = {
        **_network(config),
        **_course(config, asked, own),
        **_pictures(config, folders or {Path(config.data).name: {"tags": tags}}),
        **_loss(config),
        "ss_sd_model_name": last_part(config.model),
        **(base or {}),
        **_modelspec(config, prediction),
    }
    return {**{key: _text(value) for key, value in found.items() if value is not None}, **own}


def base_hashes(model: str) -> dict[str, str]:
    """Return the hashes by which the field knows a model that is one file: AUTOMATIC1111's old one, and its SHA-256."""
    path = Path(model)
    if not path.is_file():
        return {}
    return {"ss_sd_model_hash": _old_hash(path), "ss_new_sd_model_hash": store.sha256(path)}


def _old_hash(path: Path) -> str:
    """Return 8 digits of the SHA-256 of 64 KiB at 1 MiB, as sd-scripts' `model_hash`."""
    from hashlib import sha256

    with path.open("rb") as file:
        file.seek(0x100000)
        return sha256(file.read(0x10000)).hexdigest()[:8]


def _network(config: TrainConfig) -> dict[str, Any]:
    """Return module, size and arguments of the network, as the trainers that made these algorithms name them."""
    conv = {"conv_dim": config.conv_rank, "conv_alpha": config.conv_alpha}
    arguments = {
        **{key: str(value) for key, value in conv.items() if value is not None},
        **{key: str(value) for key, value in _drops(config).items() if value},
        **({"rs_lora": "True"} if config.rank_stabilized else {}),
        **({"loraplus_lr_ratio": str(config.lora_plus_ratio)} if config.lora_plus_ratio != 1 else {}),
    }
    plain = config.algorithm == "lora" and not config.rank_stabilized
    if config.algorithm == "dora":
        arguments |= {"algo": "lora", "dora_wd": "True"}
    elif not plain:
        arguments |= {"algo": config.algorithm}
    if config.algorithm == "lokr":
        arguments |= {"factor": str(config.factor)}
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.alpha,
        "ss_network_dropout": config.dropout or None,
        "ss_network_args": json.dumps(arguments) if arguments else None,
        "ss_scale_weight_norms": config.max_weight_norm,
    }


def _drops(config: TrainConfig) -> dict[str, float]:
    return {"rank_dropout": config.rank_dropout, "module_dropout": config.module_dropout}


def _course(config: TrainConfig, asked: Mapping[str, Any], own: Mapping[str, str]) -> dict[str, Any]:
    """Return how the run went: rates, optimizer, length, machine."""
    arguments = {"weight_decay": config.weight_decay, **config.optimizer_args}
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    name = OPTIMIZERS.get(config.optimizer.lower(), config.optimizer)
    return {
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": config.text_encoder_learning_rate,
        "ss_lr_scheduler": config.scheduler,
        "ss_lr_warmup_steps": config.warmup,
        "ss_optimizer": f"{name}({listed})",
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_steps": own["lorasmith.step"],
        "ss_max_train_steps": asked["steps"],
        "ss_num_epochs": config.epochs or None,
        "ss_total_batch_size": asked["batch_size"] * config.accumulate,
        "ss_gradient_accumulation_steps": config.accumulate,
        "ss_gradient_checkpointing": config.gradient_checkpointing in (True, "on") or None,
        "ss_mixed_precision": {"fp32": "no"}.get(config.precision, config.precision),
        "ss_seed": config.seed,
    }


def _pictures(config: TrainConfig, folders: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was trained on, and how it was looked at."""
    counted = {
        name: {"n_repeats": folder["n_repeats"], "img_count": folder["n_images"]}
        for name, folder in folders.items()
        if "n_images" in folder
    }
    side = config.resolution
    return {
        "ss_num_train_images": sum(one["n_repeats"] * one["img_count"] for one in counted.values()),
        "ss_dataset_dirs": json.dumps(counted) if counted else None,
        "ss_tag_frequency": json.dumps({name: folder["tags"] for name, folder in folders.items()}),
        "ss_resolution": str((side, side)),
        "ss_enable_bucket": config.buckets,
        **(
            {"ss_min_bucket_reso": config.bucket_min, "ss_max_bucket_reso": config.bucket_max} if config.buckets else {}
        ),
        "ss_bucket_no_upscale": (not config.bucket_upscale) if config.buckets else None,
        "ss_random_crop": not config.center_crop and not config.buckets,
        "ss_flip_aug": config.random_flip,
        "ss_shuffle_caption": config.shuffle_captions,
        "ss_keep_tokens": config.keep_tokens,
        "ss_caption_dropout_rate": config.caption_dropout or None,
        "ss_caption_tag_dropout_rate": config.tag_dropout or None,
        "ss_masked_loss": True if config.masks else None,
        "ss_prior_loss_weight": config.prior_weight if config.class_data or config.prior_from_base else None,
        "ss_cache_latents": True,
    }


def _loss(config: TrainConfig) -> dict[str, Any]:
    """Return the loss, its weights and the noise, as far as they are not the plain ones."""
    mse = config.loss == "mse"
    return {
        "ss_loss_type": {"mse": "l2"}.get(config.loss, config.loss),
        "ss_huber_c": None if mse else config.huber_c,
        "ss_huber_schedule": None if mse else config.huber_schedule,
        "ss_min_snr_gamma": config.min_snr_gamma,
        "ss_debiased_estimation": True if config.weighting == "debiased" else None,
        "ss_noise_offset": config.noise_offset or None,
        "ss_noise_offset_random_strength": True if config.noise_offset_random else None,
        "ss_multires_noise_iterations": config.pyramid_noise or None,
        "ss_multires_noise_discount": config.pyramid_discount if config.pyramid_noise else None,
        "ss_ip_noise_gamma": config.input_perturbation or None,
        "ss_zero_terminal_snr": config.zero_terminal_snr or None,
    }


def _modelspec(config: TrainConfig, prediction: str) -> dict[str, Any]:
    ranged = (config.min_timestep, config.max_timestep) != (0.0, 1.0)
    steps = f"{int(config.min_timestep * 1000)},{int(config.max_timestep * 1000)}"
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": config.name,
        "modelspec.trigger_phrase": config.trigger_word or config.instance_prompt,
        "modelspec.prediction_type": PREDICTIONS.get(prediction),
        "modelspec.resolution": f"{config.resolution}x{config.resolution}",
        "modelspec.timestep_range": steps if ranged else None,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
