"""A small checkpoint in Stable Diffusion 1.5's own layout, random and reproducible, that ComfyUI loads as SD 1.5.

What ComfyUI's detection fixes stays as it is: 320 channels, a context of 768, a CLIP-L of full size. Everything else is
reduced: every block of the UNet is there but none is wider than the first, and the autoencoder is a TAESD whose weights
are set by hand, so that encoding is an average over 8 x 8 pixels and decoding repeats a pixel 8 x 8 times.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
CHANNELS, CONTEXT, TIME = 320, 768, 1280
CLIP_WIDTH, CLIP_LAYERS, CLIP_WORDS, CLIP_LENGTH = 768, 12, 49408, 77
SD15_LATENT_SCALE = 0.18215


def _affine(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _residual(name: str, inward: int) -> Iterator[tuple[str, Shape]]:
    yield from _affine(f"{name}.in_layers.0", inward)
    yield from _affine(f"{name}.in_layers.2", CHANNELS, inward, 3, 3)
    yield from _affine(f"{name}.emb_layers.1", CHANNELS, TIME)
    yield from _affine(f"{name}.out_layers.0", CHANNELS)
    yield from _affine(f"{name}.out_layers.3", CHANNELS, CHANNELS, 3, 3)
    if inward != CHANNELS:
        yield from _affine(f"{name}.skip_connection", CHANNELS, inward, 1, 1)


def _transformer(name: str) -> Iterator[tuple[str, Shape]]:
    yield from _affine(f"{name}.norm", CHANNELS)
    yield from _affine(f"{name}.proj_in", CHANNELS, CHANNELS, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", CHANNELS), ("attn2", CONTEXT)):
        yield f"{block}.{attention}.to_q.weight", (CHANNELS, CHANNELS)
        yield f"{block}.{attention}.to_k.weight", (CHANNELS, width)
        yield f"{block}.{attention}.to_v.weight", (CHANNELS, width)
        yield from _affine(f"{block}.{attention}.to_out.0", CHANNELS, CHANNELS)
    yield from _affine(f"{block}.ff.net.0.proj", 8 * CHANNELS, CHANNELS)
    yield from _affine(f"{block}.ff.net.2", CHANNELS, 4 * CHANNELS)
    for norm in ("norm1", "norm2", "norm3"):
        yield from _affine(f"{block}.{norm}", CHANNELS)
    yield from _affine(f"{name}.proj_out", CHANNELS, CHANNELS, 1, 1)


def unet_shapes() -> Iterator[tuple[str, Shape]]:
    """Yield the UNet's parameters: every block of the original, numbered as there, all of them 320 channels wide."""
    yield from _affine("time_embed.0", TIME, CHANNELS)
    yield from _affine("time_embed.2", TIME, TIME)
    yield from _affine("input_blocks.0.0", CHANNELS, 4, 3, 3)
    for stage in range(1, 12):
        yield from _input_block(stage)
    yield from _residual("middle_block.0", CHANNELS)
    yield from _transformer("middle_block.1")
    yield from _residual("middle_block.2", CHANNELS)
    for stage in range(12):
        yield from _output_block(stage)
    yield from _affine("out.0", CHANNELS)
    yield from _affine("out.2", 4, CHANNELS, 3, 3)


def _input_block(stage: int) -> Iterator[tuple[str, Shape]]:
    if stage % 3 == 0:
        yield from _affine(f"input_blocks.{stage}.0.op", CHANNELS, CHANNELS, 3, 3)
        return
    yield from _residual(f"input_blocks.{stage}.0", CHANNELS)
    if stage < 9:
        yield from _transformer(f"input_blocks.{stage}.1")


def _output_block(stage: int) -> Iterator[tuple[str, Shape]]:
    yield from _residual(f"output_blocks.{stage}.0", 2 * CHANNELS)
    if stage > 2:
        yield from _transformer(f"output_blocks.{stage}.1")
    if stage in (2, 5, 8):
        yield from _affine(f"output_blocks.{stage}.{1 if stage == 2 else 2}.conv", CHANNELS, CHANNELS, 3, 3)


def clip_shapes() -> Iterator[tuple[str, Shape]]:
    """Yield the parameters of CLIP-L's text model."""
    yield "embeddings.token_embedding.weight", (CLIP_WORDS, CLIP_WIDTH)
    yield "embeddings.position_embedding.weight", (CLIP_LENGTH, CLIP_WIDTH)
    for index in range(CLIP_LAYERS):
        layer = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _affine(f"{layer}.self_attn.{projection}", CLIP_WIDTH, CLIP_WIDTH)
        yield from _affine(f"{layer}.layer_norm1", CLIP_WIDTH)
        yield from _affine(f"{layer}.layer_norm2", CLIP_WIDTH)
        yield from _affine(f"{layer}.mlp.fc1", 4 * CLIP_WIDTH, CLIP_WIDTH)
        yield from _affine(f"{layer}.mlp.fc2", CLIP_WIDTH, 4 * CLIP_WIDTH)
    yield from _affine("final_layer_norm", CLIP_WIDTH)


def _fill(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith(".weight") else torch.zeros(shape)
    gain = 0.02 if "embedding" in name else 1 / sqrt(prod(shape[1:]))
    return torch.randn(shape, generator=generator) * gain


def _pick(outward: int, inward: int, rows: dict[int, dict[int, float]], taps: slice) -> Tensor:
    weight = torch.zeros(outward, inward, 3, 3)
    for row, columns in rows.items():
        for column, value in columns.items():
            weight[row, column, taps, taps] = value
    return weight


def _taesd_blocks(half: str, indices: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    for index in indices:
        for conv in (0, 2, 4):
            yield f"{half}.{index}.conv.{conv}.weight", torch.zeros(64, 64, 3, 3)
            yield f"{half}.{index}.conv.{conv}.bias", torch.zeros(64)


def vae_tensors() -> dict[str, Tensor]:
    """Return a TAESD whose latent is the picture itself at an eighth of its size: (red, green, blue, their mean)."""
    centre, corner = slice(1, 2), slice(1, 3)
    colours = {channel: {channel: 1.0} for channel in range(3)}
    quarter = {channel: {channel: 0.25} for channel in range(3)}
    to_latent = {channel: {channel: 2.0} for channel in range(3)} | {3: dict.fromkeys(range(3), 2 / 3)}
    from_latent = {channel: {channel: 0.5} for channel in range(3)}
    encoder, decoder = "taesd_encoder", "taesd_decoder"
    tensors = {
        f"{encoder}.0.weight": _pick(64, 3, colours, centre),
        f"{encoder}.0.bias": torch.zeros(64),
        **{f"{encoder}.{index}.weight": _pick(64, 64, quarter, corner) for index in (2, 6, 10)},
        f"{encoder}.14.weight": _pick(4, 64, to_latent, centre),
        f"{encoder}.14.bias": torch.full((4,), -1.0),
        f"{decoder}.1.weight": _pick(64, 4, from_latent, centre),
        f"{decoder}.1.bias": torch.tensor([0.5, 0.5, 0.5] + [0.0] * 61),
        **{f"{decoder}.{index}.weight": _pick(64, 64, colours, centre) for index in (7, 12, 17)},
        f"{decoder}.19.weight": _pick(3, 64, colours, centre),
        f"{decoder}.19.bias": torch.zeros(3),
        "vae_scale": torch.tensor(SD15_LATENT_SCALE),
        "vae_shift": torch.tensor(0.0),
    }
    tensors |= dict(_taesd_blocks(encoder, (1, 3, 4, 5, 7, 8, 9, 11, 12, 13)))
    tensors |= dict(_taesd_blocks(decoder, (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)))
    return tensors


def mini_sd15(seed: int = 0) -> dict[str, Tensor]:
    """Return the whole checkpoint, float16, keys as in `v1-5-pruned`."""
    generator = torch.Generator().manual_seed(seed)
    parts = {"model.diffusion_model": unet_shapes(), "cond_stage_model.transformer.text_model": clip_shapes()}
    tensors = {
        f"{prefix}.{name}": _fill(name, shape, generator) for prefix, shapes in parts.items() for name, shape in shapes
    }
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae_tensors().items()}
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def write(path: Path) -> Path:
    """Save the checkpoint at `path` and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(mini_sd15(), path, metadata={"format": "pt"})
    return path
