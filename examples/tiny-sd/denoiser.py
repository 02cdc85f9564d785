"""Trains the tiny model's UNet and text encoder together, on the latents of captioned scenes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from doodles import doodle
from ema import Average
from pictures import Scene, caption, draw_scene, random_scene
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 64  # of the text encoder, and of the UNet's cross attention
SCENES = 10_000
DOODLES = 3_300  # captioned with one word; having seen them, the UNet learns a new subject sooner
DOODLE_CAPTION = "art"
BATCH = 32
ROUNDS = ((2_400, 1.5e-3), (2_600, 1.2e-3), (1_800, 1e-3))  # steps and peak learning rate of each one-cycle schedule


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything of the pipeline but the autoencoder."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler

    def trained(self) -> nn.ModuleList:
        """The two models that learn here, as one."""
        return nn.ModuleList([self.unet, self.text_encoder])


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step learns from."""

    latents: Tensor  # (batch, 4, 8, 8), scaled
    tokens: Tensor  # (batch, 77)


def build(tokenizer: CLIPTokenizer, seed: int = 2) -> Parts:
    """Untrained parts with the module names of Stable Diffusion 1.5."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 64, 64, 32),
        layers_per_block=2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return Parts(unet.to(memory_format=torch.channels_last), CLIPTextModel(text), tokenizer, scheduler)


def draw(seed: int) -> tuple[list[Scene | None], Tensor]:
    """All scenes, None for each doodle, and the pictures, uint8 (count, 3, 64, 64)."""
    rng = np.random.default_rng(seed)
    scenes = [*(random_scene(rng) for _ in range(SCENES)), *[None] * DOODLES]
    pictures = np.stack([np.asarray(draw_scene(scene, rng) if scene else doodle(rng)) for scene in scenes])
    return scenes, torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


def batches(
    scenes: list[Scene | None], latents: Tensor, tokenizer: CLIPTokenizer, steps: int, seed: int
) -> Iterator[Batch]:
    """Random batches, each picture with a new caption."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = rng.integers(0, len(scenes), BATCH)
        captions = [_caption(scenes[i], rng) for i in chosen]
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        yield Batch(latents[torch.from_numpy(chosen)], tokens)


def _caption(scene: Scene | None, rng: np.random.Generator) -> str:
    if scene is None:
        return DOODLE_CAPTION if rng.random() < 0.7 else ""
    return caption(scene, rng)


def loss(parts: Parts, batch: Batch) -> Tensor:
    """The squared error of the predicted noise (Ho et al. 2020, equation 14)."""
    noise = torch.randn_like(batch.latents)
    times = torch.randint(0, parts.scheduler.config.num_train_timesteps, (len(noise),))
    noisy = parts.scheduler.add_noise(batch.latents, noise, times)
    states = parts.text_encoder(batch.tokens).last_hidden_state
    return nn.functional.mse_loss(parts.unet(noisy, times, states).sample, noise)


def train(parts: Parts, scenes: list[Scene | None], latents: Tensor, seed: int = 3) -> None:
    """Trains UNet and text encoder in place."""
    for number, (steps, rate) in enumerate(ROUNDS):
        fit(parts, batches(scenes, latents, parts.tokenizer, steps, seed + number), steps, rate, seed + number)


def fit(parts: Parts, data: Iterator[Batch], steps: int, rate: float, seed: int) -> None:
    """One round of training; leaves the averaged weights in place."""
    torch.manual_seed(seed)
    trained = parts.trained()
    optimizer = torch.optim.AdamW(trained.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    average = Average(trained, 0.998)
    recent = 1.0
    for step, batch in enumerate(data):
        total = loss(parts, batch)
        total.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update(trained)
        recent += (total.item() - recent) * max(0.02, 1 / (step + 1))
        if step % 100 == 0:
            print(f"denoiser {step:5d}/{steps}  loss {recent:.4f}", flush=True)
    average.copy_to(trained)
