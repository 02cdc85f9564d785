"""Time of a training step: this trainer from folders and pictures, against diffusers' own script as it is shipped.

    DIFFUSERS_PATH=... python benchmarks/train_script.py [--divide 4] [--side 256] [--rounds 3] [--steps 5]

Both train the same pipeline of random weights from the same folder of pictures, in float32 on one thread: Stable
Diffusion 1.5 with the width of every part (UNet, autoencoder, text encoder) divided by `--divide`; 1 is the real size.
Divided, attention over pixels keeps a larger share of the work than in the real model: only 1 tells its ratio. Rounds
take turns; what counts is process CPU time between two optimizer steps, and of the rounds' ratios the median.
This trainer encodes pictures and captions once, before its first step; the script does
so at every step. That once is told too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkout import alias_root
from PIL import Image
from training_peers import as_imagefolder, run_script

PICTURES, RANK = 4, 4


def write_pipeline(folder: Path, divide: int) -> Path:
    """Write Stable Diffusion 1.5 with every width divided, random weights, a vocabulary of letters."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from lorasmith.lora_core.train.tokenizers import write_vocabulary

    torch.manual_seed(0)
    width = 768 // divide
    channels = tuple(count // divide for count in (320, 640, 1280, 1280))
    UNet2DConditionModel(
        block_out_channels=channels, cross_attention_dim=width, attention_head_dim=8, norm_num_groups=8
    ).save_pretrained(folder / "unet")
    encoder, decoder = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    AutoencoderKL(
        block_out_channels=tuple(count // divide for count in (128, 256, 512, 512)),
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=encoder,
        up_block_types=decoder,
    ).save_pretrained(folder / "vae")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 12, "num_attention_heads": 12}
    words = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 1}
    CLIPTextModel(CLIPTextConfig(**sizes, **words)).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    write_vocabulary(folder / "tokenizer", [])
    (folder / "tokenizer/tokenizer_config.json").write_text('{"model_max_length": 77}', encoding="utf-8")
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDPMScheduler(**betas, clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def write_pictures(folder: Path, side: int) -> Path:
    """Write a few pictures of noise with captions."""
    folder.mkdir()
    for number in range(PICTURES):
        noise = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}", encoding="utf-8")
    return folder


def ours(model: Path, data: Path, out: Path, side: int) -> Iterator[float]:
    """Train with this trainer and yield the process's CPU seconds after encoding, then after each step."""
    from lorasmith.convert.training import train
    from lorasmith.lora_core.train.config import TrainConfig

    keys: dict[str, Any] = {"steps": 10**6, "rank": RANK, "alpha": RANK, "resolution": side, "checkpoint_every": 0}
    config = TrainConfig.from_json({"model": str(model), "data": str(data), "out": str(out), "device": "cpu", **keys})
    began = time.process_time()
    for event in train(config):
        if event.event in ("start", "step"):
            yield time.process_time() - (began if event.event == "start" else 0.0)


def steps_of(times: list[float]) -> float:
    """Return the median time between two steps; the first one warms up."""
    return statistics.median(after - before for before, after in zip(times[1:], times[2:], strict=False))


def main() -> None:
    """Measure both and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("divide", 4), ("side", 256), ("rounds", 3), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    alias_root()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, data = write_pipeline(work / "model", args.divide), write_pictures(work / "pictures", args.side)
        captioned = as_imagefolder(data, work / "captioned")
        flags: dict[str, Any] = {"resolution": args.side, "train_batch_size": 1, "rank": RANK, "seed": 1}
        flags |= {"max_train_steps": args.steps + 2, "checkpointing_steps": 10**9}
        events = ours(model, data, work / "run", args.side)
        once = next(events)
        for number in range(args.rounds):
            own = steps_of([next(events) for _ in range(args.steps + 2)])
            found.append((own, steps_of(run_script(work / f"script{number}", model, captioned, **flags))))
        events.close()  # type: ignore[attr-defined]
    for place, name in enumerate(("ours", "diffusers' script")):
        print(f"{name}: {statistics.median(pair[place] for pair in found):.3f} s CPU a step (median of rounds)")
    print(f"loading, and encoding {PICTURES} pictures, once: {once:.1f} s CPU")
    ratio = statistics.median(theirs / own for own, theirs in found)
    print(f"the script takes {ratio:.2f} times as long a step (median of {args.rounds} rounds)")


if __name__ == "__main__":
    main()
