"""Trains the tiny model's autoencoder: 64x64 pictures to 8x8 latents of 4 channels and back."""

from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from doodles import doodle
from ema import Average
from pictures import draw_scene, random_scene

PICTURES = 16_000
SCENES = 0.4  # share of the pictures; the others are doodles
STEPS = 1_500  # encoder and decoder together
REFINE_STEPS = 4_000  # then the decoder alone, the latents fixed
BATCH = 8
RATE = 2e-3
KL_WEIGHT = 2e-4
NOISE = 0.05  # in units of the latents' spread


def build() -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=64,
    )
    start_near_identity(model)
    return model


@torch.no_grad()
def start_near_identity(model: AutoencoderKL) -> None:
    """Lets colours pass through the untrained network, in place; it then learns several times faster.

    Residual branches begin at zero (Zhang et al. 2019, "Fixup"); the other convolutions copy their input's channels.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or name.endswith(("conv1", "conv_out")):
            continue
        if name.endswith("conv2"):
            layer.weight.zero_()
            continue
        noise = 0.5 * layer.weight
        nn.init.dirac_(layer.weight)
        layer.weight += noise


def draw(count: int, seed: int) -> Tensor:
    """`count` pictures, uint8 (count, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    pictures = [draw_scene(random_scene(rng), rng) if rng.random() < SCENES else doodle(rng) for _ in range(count)]
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 to float -1..1."""
    return pixels.float() / 127.5 - 1


def batches(pictures: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    """Random batches, half of them mirrored."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = to_unit(pictures[torch.randint(len(pictures), (BATCH,), generator=generator)])
        yield batch.flip(3) if step % 2 else batch


def loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the differences between neighbours (sharp edges)."""
    error = made.float() - wanted
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train(pictures: Tensor, steps: int = STEPS, seed: int = 0) -> AutoencoderKL:
    """Trains from scratch and returns the averaged weights, `scaling_factor` set from the measured latents."""
    torch.manual_seed(seed)
    model = build()
    fit(model, pictures, model, steps, seed, noise=0.0)
    model.register_to_config(scaling_factor=round(1 / encode(model, pictures[:2000]).std().item(), 5))
    return model


def refine(model: AutoencoderKL, pictures: Tensor, steps: int = REFINE_STEPS, seed: int = 1) -> None:
    """Trains the decoder on, in place; the latents stay what they are."""
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    fit(model, pictures, nn.ModuleList([model.post_quant_conv, model.decoder]), steps, seed, NOISE / model.config.scaling_factor)


def fit(model: AutoencoderKL, pictures: Tensor, trained: nn.Module, steps: int, seed: int, noise: float) -> None:
    """Trains the part `trained` of the model in place and leaves its averaged weights there.

    `noise` is added to the latents: the decoder learns to overlook a sampler's small errors.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(trained.parameters(), RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.03)
    average = Average(trained, 0.998)
    for step, batch in enumerate(batches(pictures, steps, seed)):
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(batch).latent_dist
            drawn = latents.sample()
            made = model.decode(drawn + noise * torch.randn_like(drawn)).sample
        total = loss(made, batch) + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()
        total.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update(trained)
        if step % 100 == 0:
            print(f"autoencoder {step:5d}/{steps}  loss {total.item():.4f}  spread {latents.mean.std().item():.2f}", flush=True)
    average.copy_to(trained)


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The mean latents of uint8 pictures, unscaled (count, 4, 8, 8)."""
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([model.encode(to_unit(p)).latent_dist.mean.float() for p in pictures.split(100)])


@torch.no_grad()
def decode(model: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures of unscaled latents, uint8 (count, 3, 64, 64)."""
    made = torch.cat([model.decode(part).sample for part in latents.split(100)])
    return ((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
