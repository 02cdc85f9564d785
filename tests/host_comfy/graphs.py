"""Graphs in ComfyUI's API form, built from small pieces."""

from __future__ import annotations

from typing import Any

from comfy_server import CHECKPOINT

Piece = dict[str, Any]
MODEL, CLIP, VAE = (["checkpoint", index] for index in range(3))


def node(kind: str, **inputs: Any) -> Piece:
    """Return one node; an input that is a list [node id, output index] is a wire."""
    return {"class_type": kind, "inputs": inputs}


def loader() -> dict[str, Piece]:
    """Return the checkpoint loader that MODEL, CLIP and VAE come from."""
    return {"checkpoint": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)}


def sampled(model: Any, clip: Any, name: str) -> dict[str, Piece]:
    """Return two steps of sampling at 64 x 64 and a picture saved under a name."""
    return {
        f"{name} text": node("CLIPTextEncode", text="a red square", clip=clip),
        f"{name} none": node("CLIPTextEncode", text="", clip=clip),
        f"{name} empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{name} sampler": node(
            "KSampler",
            model=model,
            positive=[f"{name} text", 0],
            negative=[f"{name} none", 0],
            latent_image=[f"{name} empty", 0],
            seed=7,
            steps=2,
            cfg=2.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        f"{name} decoded": node("VAEDecode", samples=[f"{name} sampler", 0], vae=VAE),
        f"{name} saved": node("SaveImage", images=[f"{name} decoded", 0], filename_prefix=name),
    }


def train(**changed: Any) -> Piece:
    """Return a training node with settings for two quick steps."""
    settings: Piece = {
        "pictures": "squares",
        "name": "trained",
        "instance_prompt": "",
        "steps": 2,
        "learning_rate": 1e-3,
        "rank": 4,
        "alpha": 4.0,
        "batch_size": 1,
        "resolution": 64,
        "targets": "attention",
        "text_encoder": False,
        "seed": 1,
        "scheduler": "constant",
        "warmup": 0,
        "accumulate": 1,
        "min_snr_gamma": 0.0,
        "random_flip": False,
        "checkpoint_every": 0,
        "resume": False,
    }
    return node("LorasmithTrainLora", model=MODEL, clip=CLIP, vae=VAE, **{**settings, **changed})
