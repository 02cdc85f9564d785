"""LoRA files for the small checkpoint, random and reproducible, spelled by hand: no code of the project makes them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

BLOCKS = [f"down_blocks_{i}_attentions_{j}" for i in range(3) for j in range(2)] + ["mid_block_attentions_0"]
BLOCKS += [f"up_blocks_{i}_attentions_{j}" for i in (1, 2, 3) for j in range(3)]
LAYERS = {  # module below an attention block -> (out, in)
    "proj_in": (320, 320),
    "proj_out": (320, 320),
    **{f"transformer_blocks_0_attn1_to_{part}": (320, 320) for part in ("q", "k", "v", "out_0")},
    "transformer_blocks_0_attn2_to_q": (320, 320),
    "transformer_blocks_0_attn2_to_k": (320, 768),
    "transformer_blocks_0_attn2_to_v": (320, 768),
    "transformer_blocks_0_ff_net_0_proj": (2560, 320),
    "transformer_blocks_0_ff_net_2": (320, 1280),
}
CLIP = {f"self_attn_{part}": (768, 768) for part in ("q_proj", "k_proj", "v_proj", "out_proj")}


def kohya(seed: int, rank: int = 4, alpha: float | None = 2.0, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return a LoRA of all attention blocks and the text encoder, with 1x1 and 3x3 convolutions, as kohya writes it."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def add(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> None:
        for part, shape in (("lora_down", down), ("lora_up", up)):
            tensors[f"{name}.{part}.weight"] = (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha).to(dtype)

    for block in BLOCKS:
        for layer, (out, inner) in LAYERS.items():
            ones = (1, 1) if layer.startswith("proj_") else ()
            add(f"lora_unet_{block}_{layer}", (rank, inner, *ones), (out, rank, *ones))
    for layer in range(12):
        for name, (out, inner) in CLIP.items():
            add(f"lora_te_text_model_encoder_layers_{layer}_{name}", (rank, inner), (out, rank))
    add("lora_unet_mid_block_resnets_0_conv1", (rank, 320, 3, 3), (320, rank, 1, 1))
    return tensors


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a few of those layers under ComfyUI's own names."""
    names = {
        "lora_unet_mid_block_attentions_0_proj_in": "diffusion_model.middle_block.1.proj_in",
        "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k":
            "diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k",
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj":
            "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj",
    }  # fmt: skip
    return {
        key.replace(old, new, 1): tensor
        for old, new in names.items()
        for key, tensor in tensors.items()
        if key.startswith(f"{old}.")
    }


def dense(seed: int) -> dict[str, Tensor]:
    """Return full differences and a norm's change, as extraction and LyCORIS write them."""
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
    shapes = {
        f"{name}_attn1_to_q.diff": (320, 320),
        f"{name}_attn1_to_out_0.diff": (320, 320),
        f"{name}_attn1_to_out_0.diff_b": (320,),
        f"{name}_norm1.w_norm": (320,),
        f"{name}_norm1.b_norm": (320,),
    }
    return {key: (torch.randn(shape, generator=generator) * 0.01).half() for key, shape in shapes.items()}


def native(seed: int) -> dict[str, Tensor]:
    """Return a convolution whose kernel is stored flat, and a bias, as ComfyUI's own trainer writes them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"lora_down.weight": (4, 320 * 9), "lora_up.weight": (320, 4), "diff_b": (320,)}
    name = "diffusion_model.input_blocks.1.0.in_layers.2"
    return {f"{name}.{part}": torch.randn(shape, generator=generator) * 0.01 for part, shape in shapes.items()}


def sdxl() -> dict[str, Tensor]:
    """Return a layer that only SDXL has."""
    name = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    return {f"{name}.lora_down.weight": torch.zeros(4, 640), f"{name}.lora_up.weight": torch.zeros(640, 4)}


def write(folder: Path) -> None:
    """Write all of them."""
    wide = {key: torch.cat([tensor] * 2, 1) if "to_k.lora_down" in key else tensor for key, tensor in kohya(9).items()}
    files = {
        "first": kohya(1),
        "second": kohya(2, rank=2, alpha=None),
        "bf16": kohya(3, dtype=torch.bfloat16),
        "comfy-names": renamed(kohya(4)),
        "dense": dense(5),
        "native": native(6),
        "sdxl": sdxl(),
        "wide": wide,
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json")
