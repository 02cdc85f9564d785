"""Qwen-Image: packed latents of a video autoencoder, and Qwen2.5-VL's last layer after a fixed instruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..protocols import Cond
from .latents import picture_of_video
from .model import Encoder, Family, Input, Parts, Preview, unchanged
from .packing import packed, unpacked

TOKENS = 1024
TEMPLATE = (  # the instruction that the model was trained with (Qwen-Image, arXiv 2508.02324, section 2)
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
INSTRUCTION = 34  # tokens before the caption, which the network does not see


def _prepare(parts: Parts, caption: str) -> Cond:
    (model,), (tokenizer,) = parts.text_encoders.values(), parts.tokenizers.values()
    text = TEMPLATE.format(caption)
    read = tokenizer([text], truncation=True, max_length=TOKENS + INSTRUCTION, return_tensors="pt").to(model.device)
    found = model(input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True)
    context = found.hidden_states[-1][:, INSTRUCTION:]
    return {"context": context, "mask": torch.ones(context.shape[:2], dtype=torch.bool)}


def _predict(transformer: Any, given: Input) -> Tensor:
    noisy, mask = given.noisy, given.cond["mask"]
    batch, _, height, width = noisy.shape
    found = transformer(
        packed(noisy),
        encoder_hidden_states=given.cond["context"],
        encoder_hidden_states_mask=mask if batch > 1 else None,  # one text has no padding
        timestep=given.t / 1000,
        img_shapes=[[(1, height // 2, width // 2)]] * batch,
        return_dict=False,
    )[0]
    return unpacked(found, noisy)


QWEN_IMAGE = Family(
    name="Qwen-Image",
    ids=("qwen-image",),
    denoiser="QwenImageTransformer2DModel",
    vae="AutoencoderKLQwenImage",
    encoders=(Encoder("qwen25_7b", "Qwen2_5_VLForConditionalGeneration", tokens=TOKENS),),
    preview=Preview(
        "QwenImagePipeline",
        guidance=4.0,
        scale="true_cfg_scale",
        embeddings={"context": "prompt_embeds", "mask": "prompt_embeds_mask"},
    ),
    recognize=lambda config: "qwen-image",
    prepare=_prepare,
    embed=unchanged,
    predict=_predict,
    latents=picture_of_video,
    attention=(
        *(".to_q", ".to_k", ".to_v", ".to_out.0"),
        *(".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"),
    ),
    feed_forward=(".img_mlp.net.0.proj", ".img_mlp.net.2", ".txt_mlp.net.0.proj", ".txt_mlp.net.2"),
)
