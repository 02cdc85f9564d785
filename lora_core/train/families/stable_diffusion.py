"""Stable Diffusion 1.x, 2.x and XL: a UNet, and one or two CLIPs that may be trained with it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import WrongArchitecture
from ..protocols import Cond
from .latents import scaled
from .model import Config, Encoder, Family, Input, Parts, Preview
from .texts import clip_tokens, two_clips


def _architecture(config: Config) -> str:
    """Return the family of a UNet; widths do not count, so small models of a family belong to it."""
    if config["in_channels"] != config["out_channels"]:
        taken = config["in_channels"]
        raise WrongArchitecture(f"the UNet takes {taken} channels; inpainting models are not trained here")
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd21" if config.get("use_linear_projection") else "sd15"


def _one(id: str) -> Any:
    return lambda config: id if _architecture(config) == id else None


def _clip(parts: Parts, cond: Cond) -> Cond:
    """Return CLIP's last layer, normalized."""
    (model,) = parts.text_encoders.values()
    return {"context": model(cond["tokens"][:, 0].to(model.device)).last_hidden_state}


def _clips(parts: Parts, cond: Cond) -> Cond:
    """Return both CLIPs' last but one layers, and the second's projection (SDXL, arXiv 2307.01952, section 2.1)."""
    context, projected = two_clips(parts, cond)
    return {"context": context, "pooled": projected[1]}


def _predict(unet: Any, given: Input) -> Tensor:
    found: Tensor = unet(given.noisy, given.t, given.cond["context"], return_dict=False)[0]
    return found


def _predict_xl(unet: Any, given: Input) -> Tensor:
    more = {"text_embeds": given.cond["pooled"], "time_ids": given.cond["time_ids"].float()}
    context = given.cond["context"]
    found: Tensor = unet(given.noisy, given.t, context, added_cond_kwargs=more, return_dict=False)[0]
    return found


def sampler(diffusers: Any, scheduler: Any) -> Any:
    """Return DPM-Solver++ (arXiv 2211.01095) on Karras sigmas (arXiv 2206.00364)."""
    solver = diffusers.DPMSolverMultistepScheduler
    options = {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++", "steps_offset": 1}
    return solver.from_config(scheduler.config, **options)


_UNET: dict[str, Any] = {
    "denoiser": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "folder": "unet",
    "flow": False,
    "timesteps": "uniform",
    "patch": 1,
    "latents": scaled,
    "blocks": ("down_blocks", "mid_block", "up_blocks"),
    "edges": (".proj_in", ".proj_out"),
    "prepare": clip_tokens,
}
_PREVIEW: dict[str, Any] = {"guidance": 7.5, "scheduler": sampler}
_CONTEXT = {"context": "prompt_embeds"}


def _first(id: str, name: str, component: str) -> Family:
    return Family(
        name=name,
        ids=(id,),
        encoders=(Encoder(component, "CLIPTextModel", clip=True),),
        preview=Preview("StableDiffusionPipeline", embeddings=_CONTEXT, **_PREVIEW),
        recognize=_one(id),
        embed=_clip,
        predict=_predict,
        **_UNET,
    )


SD15 = _first("sd15", "Stable Diffusion 1.x", "clip_l")
SD21 = _first("sd21", "Stable Diffusion 2.x", "clip_h")
SDXL = Family(
    name="SDXL",
    ids=("sdxl",),
    encoders=(
        Encoder("clip_l", "CLIPTextModel", clip=True),
        Encoder("clip_g", "CLIPTextModelWithProjection", "text_encoder_2", clip=True),
    ),
    preview=Preview("StableDiffusionXLPipeline", embeddings={**_CONTEXT, "pooled": "pooled_prompt_embeds"}, **_PREVIEW),
    recognize=_one("sdxl"),
    embed=_clips,
    predict=_predict_xl,
    **_UNET,
)
