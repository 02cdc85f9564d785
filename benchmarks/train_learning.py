"""What a LoRA has learnt, and what it has spoilt: this trainer against diffusers' own script, on the tiny model.

    DIFFUSERS_PATH=... python benchmarks/train_learning.py [--steps 200] [--rank 16] [--rate 1e-3] [--seeds 5]

Both train from the same folder of pictures with the same steps, batch size, rank, learning rate, cosine schedule and
layers (attention q, k, v, out); everything else is each one's own default. The script runs as it is shipped. Each
result is loaded into the same model and measured in the same way, by this trainer's validation loss on six unseen
pictures of the subject (fixed noise and timesteps), and by how far it moves the model's predictions for captions that
have nothing to do with the subject (mean squared change; latents that the untouched model drew for them, fixed noise).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from checkout import ROOT, alias_root
from torch import Tensor
from training_peers import as_imagefolder, run_script, script

BATCH, DRAWS = 8, 24  # pictures a step; noisy latents per unrelated caption
MODEL, SUBJECT, UNSEEN = (ROOT / "examples" / name for name in ("tiny-sd", "subject", "subject_validation"))
WAYS: Mapping[str, Mapping[str, Any]] = {  # this trainer's settings beside the common ones
    "ours": {},
    "ours, ema 0.98": {"ema": 0.98},
    "ours, prior_from_base": {"prior_from_base": True, "class_prompt": "a photo"},
}


def common(args: argparse.Namespace, out: Path, seed: int) -> dict[str, Any]:
    """Return the settings that both share."""
    return {
        **{"model": str(MODEL), "data": str(SUBJECT), "out": str(out), "resolution": 64, "batch_size": BATCH},
        **{"steps": args.steps, "rank": args.rank, "alpha": args.rank, "learning_rate": args.rate, "seed": seed},
        **{"format": "diffusers", "checkpoint_every": 0, "device": "cpu", "name": "lora"},
    }


def ours(args: argparse.Namespace, out: Path, seed: int, more: Mapping[str, Any]) -> Path:
    """Train with this trainer and return the file."""
    from lorasmith.convert.training import train
    from lorasmith.lora_core.train.config import TrainConfig

    for _ in train(TrainConfig.from_json({**common(args, out, seed), **more})):
        pass
    return out / "lora.safetensors"


def theirs(args: argparse.Namespace, out: Path, seed: int, data: Path) -> Path:
    """Train with diffusers' script and return the file."""
    flags: dict[str, Any] = {"resolution": 64, "train_batch_size": BATCH, "max_train_steps": args.steps}
    flags |= {"rank": args.rank, "learning_rate": args.rate, "seed": seed, "checkpointing_steps": 10**9}
    run_script(out, MODEL, data, **flags, lr_scheduler="cosine", lr_warmup_steps=0, center_crop=True)
    return out / "pytorch_lora_weights.safetensors"


class Measure:
    """The model, unseen pictures of the subject, and latents of unrelated captions."""

    def __init__(self, args: argparse.Namespace, work: Path):
        from lorasmith.convert.training import diffusers_names
        from lorasmith.lora_core.train.cache import open_cache
        from lorasmith.lora_core.train.config import TrainConfig
        from lorasmith.lora_core.train.data import unseen
        from lorasmith.lora_core.train.diffusers_backend import open_backend
        from lorasmith.lora_core.train.objective import Objective
        from lorasmith.lora_core.train.validation import Validation

        config = TrainConfig.from_json({**common(args, work / "measured", 0), "validation_data": str(UNSEEN)})
        self.backend = open_backend(config, diffusers_names)
        self.objective = Objective(self.backend.schedule, config)
        cache = open_cache(config, self.backend)
        self.validation = Validation(unseen(config), cache, self.backend.denoiser, self.objective, config)
        self.seen = list(self._unrelated())
        self.before = self._predictions()

    def _unrelated(self) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """Yield noisy latents, timesteps and conditioning of each unrelated caption."""
        from lorasmith.examples.demo import UNRELATED, pipeline

        pipe, generator = pipeline(), torch.Generator().manual_seed(7)
        for caption in UNRELATED:
            size: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 20, "generator": generator}
            made = pipe([caption] * DRAWS, guidance_scale=5.0, output_type="latent", **size).images
            noise = torch.randn(made.shape, generator=generator)
            t = torch.linspace(20, 980, DRAWS).long()
            cond = {name: value.expand(DRAWS, *value.shape[1:]) for name, value in self._text(caption).items()}
            yield self.objective.noisy(made, noise, t), t, cond

    def _text(self, caption: str) -> Mapping[str, Tensor]:
        return self.backend.encode_text(caption)

    def _predictions(self) -> list[Tensor]:
        with torch.no_grad():
            return [self.backend(noisy, t, cond) for noisy, t, cond in self.seen]

    @contextmanager
    def loaded(self, file: Path) -> Iterator[None]:
        """Let the model compute with a LoRA of diffusers' form."""
        unet = self.backend.parts.denoiser
        unet.load_lora_adapter(str(file.parent), weight_name=file.name, prefix="unet")
        try:
            yield
        finally:
            unet.unload_lora()

    def loss(self) -> float:
        """Return the loss on unseen pictures of the subject."""
        return self.validation.loss(torch.device("cpu"))

    def moved(self) -> float:
        """Return the mean squared change of the predictions for unrelated captions."""
        pairs = zip(self._predictions(), self.before, strict=True)
        return statistics.mean(float((now - then).square().mean()) for now, then in pairs)


def main() -> None:
    """Train, measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 200), ("rank", 16), ("seeds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--only-defaults", action="store_true", help="leave the rows with further settings out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    alias_root()
    ways = {name: more for name, more in WAYS.items() if not more or not args.only_defaults}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data, measure = as_imagefolder(SUBJECT, work / "data"), Measure(args, work)
        found: dict[str, list[tuple[float, float]]] = {}
        print(f"untouched model: loss on unseen pictures {measure.loss():.4f}", flush=True)
        for seed in range(1, args.seeds + 1):
            files = {name: ours(args, work / f"{name}{seed}", seed, more) for name, more in ways.items()}
            if script() is not None:
                files["diffusers' script"] = theirs(args, work / f"script{seed}", seed, data)
            for name, file in files.items():
                with measure.loaded(file):
                    found.setdefault(name, []).append((measure.loss(), measure.moved()))
                print(f"seed {seed} {name}: {found[name][-1][0]:.4f} {found[name][-1][1]:.5f}", flush=True)
    print(f"{'':24} loss on unseen pictures    unrelated captions moved")
    for name, rows in found.items():
        (loss, moved), spread = map(statistics.mean, zip(*rows, strict=True)), [row[0] for row in rows]
        print(f"{name:24} {loss:.4f} ({min(spread):.4f} to {max(spread):.4f})  {moved:.5f}")


if __name__ == "__main__":
    main()
