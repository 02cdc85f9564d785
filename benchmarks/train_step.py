"""Time and memory of one training step: this trainer against peft with accelerate, on one small SD 1.5 UNet.

    python benchmarks/train_step.py [--channels 64] [--side 16] [--batch 2] [--rank 4] [--rounds 15] [--steps 4]

Both train the same layers (attention q, k, v, out) of UNets with the same weights, in float32 on one thread, from
latents and embeddings that are ready. Rounds alternate; what counts is process CPU time, and of the rounds' ratios the
median. Peak memory is measured in a process of its own for each: highest resident size less the size before training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[1]
if "lorasmith" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "lorasmith", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["lorasmith"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["lorasmith"])

from lorasmith.lora_core.adapter import Target  # noqa: E402
from lorasmith.lora_core.train.cache import Batch  # noqa: E402
from lorasmith.lora_core.train.config import TrainConfig  # noqa: E402
from lorasmith.lora_core.train.loop import train  # noqa: E402
from lorasmith.lora_core.train.objective import Objective  # noqa: E402
from lorasmith.lora_core.train.targets import DENOISER, select  # noqa: E402

Step = Callable[[], float]  # takes one optimizer step and returns its loss


def unet(args: argparse.Namespace) -> Any:
    """Return the UNet that both variants train."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(args.channels, args.channels, args.channels * 2, args.channels * 2),
        norm_num_groups=16,
        cross_attention_dim=64,
        attention_head_dim=4,
    ).requires_grad_(False)


def scheduler() -> Any:
    """Return Stable Diffusion's noise schedule."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def inputs(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents and text embeddings of one batch."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(args.batch, 4, args.side, args.side, generator=generator)
    return latents, torch.randn(args.batch, 77, 64, generator=generator)


def ours(args: argparse.Namespace) -> Step:
    """Return this trainer's step."""
    model = unet(args)

    class Denoiser:
        def modules(self) -> dict[Target, torch.nn.Module]:
            return {Target("denoiser", name): part for name, part in select(model, DENOISER["attention"]).items()}

        def __call__(self, noisy: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            return model(noisy, t, cond["context"], return_dict=False)[0]

    latents, context = inputs(args)
    weights = torch.full((args.batch,), 1 / args.batch)
    batch = Batch(latents, {"context": context}, weights, ["picture"] * args.batch)
    objective = Objective(scheduler().alphas_cumprod, "epsilon")
    config = TrainConfig("m", "d", "o", steps=10**6, rank=args.rank, alpha=float(args.rank), scheduler="constant")
    steps: Iterator[Any] = train(Denoiser(), lambda _: [batch], objective, config)
    return lambda: next(steps).loss


def peft(args: argparse.Namespace) -> Step:
    """Return the step that a script over peft and accelerate takes, with clipping that clips."""
    from accelerate import Accelerator
    from peft import LoraConfig

    model, accelerator, noising = unet(args), Accelerator(cpu=True), scheduler()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)  # as ours, so that the layers are compared
    model, optimizer = accelerator.prepare(model, optimizer)
    latents, context = inputs(args)

    def step() -> float:
        noise = torch.randn_like(latents)
        t = torch.randint(0, 1000, (args.batch,))
        predicted = model(noising.add_noise(latents, noise, t), t, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


VARIANTS = {"ours": ours, "peft": peft}


def cpu_seconds(step: Step, count: int) -> float:
    """Return the process's CPU seconds per step."""
    began = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - began) / count


def peak_memory(args: argparse.Namespace, name: str) -> float:
    """Return one variant's peak over its size before training, MB, from a process of its own."""
    command = [sys.executable, __file__, "--only", name]
    for key in ("channels", "side", "batch", "rank"):
        command += [f"--{key}", str(getattr(args, key))]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["peak"])


def measure_alone(args: argparse.Namespace) -> None:
    """Print the peak of a few steps of one variant."""
    step = VARIANTS[args.only](args)
    before = psutil.Process().memory_info().rss
    for _ in range(4):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"peak": max(0, peak - before) / 1e6}))


def main() -> None:
    """Measure both variants and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("channels", 64), ("side", 16), ("batch", 2), ("rank", 4), ("rounds", 15), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.only:
        return measure_alone(args)

    variants = {name: make(args) for name, make in VARIANTS.items()}
    for step in variants.values():
        step()  # warm up
    rounds = []
    for number in range(args.rounds):
        order = list(variants) if number % 2 else list(reversed(variants))
        rounds.append({name: cpu_seconds(variants[name], args.steps) for name in order})
    for name in variants:
        times = [found[name] for found in rounds]
        print(f"{name}: {min(times):.4f} s CPU a step at best, median {statistics.median(times):.4f}")
    ratio = statistics.median(found["ours"] / found["peft"] for found in rounds)
    print(f"ours / peft: {ratio:.2f} of the time (median of {args.rounds} rounds)")
    peaks = {name: peak_memory(args, name) for name in variants}
    print("peak over the loaded model: " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items()))


if __name__ == "__main__":
    main()
