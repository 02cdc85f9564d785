"""Trains the tiny model's autoencoder: 64x64 pictures to 8x8 latents of 4 channels and back."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from doodles import doodle
from ema import Average
from pictures import draw_scene, random_scene
from torch import Tensor, nn

PICTURES = 16_000
SCENES = 0.4  # share of the pictures; the others are doodles
KL_WEIGHT = 2e-4


@dataclass(frozen=True)
class Round:
    """One stretch of training, with its own one-cycle learning rate schedule."""

    steps: int
    batch: int
    rate: float  # at the peak
    noise: float = 0.0  # added to the latents, in units of their spread: the decoder learns to overlook small errors


ROUNDS = (Round(1_500, 8, 2e-3), Round(6_000, 4, 1.5e-3))
REFINEMENT = Round(3_000, 4, 1e-3, noise=0.05)  # the decoder alone, the latents fixed


def build() -> AutoencoderKL:
    """An untrained autoencoder of the kind that Stable Diffusion uses, eight times smaller on each side."""
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


def batches(pictures: Tensor, plan: Round, seed: int) -> Iterator[Tensor]:
    """Random batches, every other one mirrored."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(plan.steps):
        batch = to_unit(pictures[torch.randint(len(pictures), (plan.batch,), generator=generator)])
        yield batch.flip(3) if step % 2 else batch


def loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared error, and the absolute error of the differences between neighbours (sharp edges)."""
    error = made.float() - wanted
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train(pictures: Tensor, seed: int = 0) -> AutoencoderKL:
    """Trains from scratch and returns the averaged weights, `scaling_factor` set from the measured latents."""
    torch.manual_seed(seed)
    model = build()
    for number, plan in enumerate(ROUNDS):
        fit(model, pictures, model, plan, seed + number)
    model.register_to_config(scaling_factor=round(1 / encode(model, pictures[:2000]).std().item(), 5))
    return model


def refine(model: AutoencoderKL, pictures: Tensor, seed: int = 10) -> None:
    """Trains the decoder on, in place; the latents stay what they are."""
    model.encoder.requires_grad_(False)
    model.quant_conv.requires_grad_(False)
    fit(model, pictures, nn.ModuleList([model.post_quant_conv, model.decoder]), REFINEMENT, seed)


def fit(model: AutoencoderKL, pictures: Tensor, trained: nn.Module, plan: Round, seed: int) -> None:
    """Trains the part `trained` of the model in place and leaves its averaged weights there."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(trained.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=plan.steps, pct_start=0.03)
    average = Average(trained, 0.998)
    noise = plan.noise / model.config.scaling_factor
    for step, batch in enumerate(batches(pictures, plan, seed)):
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
            print(f"autoencoder {step:5d}/{plan.steps}  loss {total.item():.4f}", flush=True)
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
