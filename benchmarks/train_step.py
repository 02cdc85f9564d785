"""Time and memory of one training step: this trainer against peft with accelerate, on one small SD 1.5 UNet.

    python benchmarks/train_step.py [--channels 64 | --full] [--side 16] [--batch 2] [--rank 4] [--rounds 15]

Both train the same layers (attention q, k, v, out) of UNets with the same weights, in float32 on one thread, from
latents and embeddings that are ready. Rounds alternate; what counts is process CPU time, and of the rounds' ratios the
median. Peak memory is what torch holds at most in one step, less what it held before, counted allocation by allocation.
`--algorithm` takes another kind of adapter for both.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

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
from lorasmith.lora_core.train.lean import lean  # noqa: E402
from lorasmith.lora_core.train.loop import train  # noqa: E402
from lorasmith.lora_core.train.objective import Objective  # noqa: E402
from lorasmith.lora_core.train.protocols import Schedule  # noqa: E402
from lorasmith.lora_core.train.targets import DENOISER, select  # noqa: E402

CONTEXT, CONTEXT_FULL = 64, 768  # width of the text embeddings
Step = Callable[[], float]  # takes one optimizer step and returns its loss


def unet(args: argparse.Namespace) -> Any:
    """Return the UNet that both variants train."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    if args.full:  # Stable Diffusion 1.5's own sizes
        return UNet2DConditionModel(cross_attention_dim=CONTEXT_FULL, attention_head_dim=8).requires_grad_(False)
    return UNet2DConditionModel(
        block_out_channels=(args.channels, args.channels, args.channels * 2, args.channels * 2),
        norm_num_groups=16,
        cross_attention_dim=CONTEXT,
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
    return latents, torch.randn(args.batch, 77, CONTEXT_FULL if args.full else CONTEXT, generator=generator)


def ours(args: argparse.Namespace, given: Any = None) -> Step:
    """Return this trainer's step, on a UNet that is given or made."""
    model = unet(args) if given is None else given

    class Denoiser:
        def modules(self) -> dict[Target, torch.nn.Module]:
            return {Target("denoiser", name): part for name, part in select(model, DENOISER["attention"]).items()}

        def __call__(self, noisy: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            return model(noisy, t, cond["context"], return_dict=False)[0]

    latents, context = inputs(args)
    weights = torch.full((args.batch,), 1 / args.batch)
    batch = Batch(latents, {"context": context}, weights, ["picture"] * args.batch)
    keys: dict[str, Any] = {"rank": args.rank, "alpha": float(args.rank), "algorithm": args.algorithm}
    config = TrainConfig("m", "d", "o", steps=10**6, scheduler="constant", **keys)
    objective = Objective(Schedule("epsilon", scheduler().alphas_cumprod), config)

    def losses() -> Iterator[float]:
        with lean(model):
            for step in train(Denoiser(), lambda _: [batch], objective, config):
                yield step.loss

    steps = losses()
    return lambda: next(steps)


def peft(args: argparse.Namespace) -> Step:
    """Return the step that a script over peft and accelerate takes, with clipping that clips."""
    import peft as library
    from accelerate import Accelerator

    model, accelerator, noising = unet(args), Accelerator(cpu=True), scheduler()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    kinds = {"loha": library.LoHaConfig, "lokr": library.LoKrConfig}
    if args.algorithm in kinds:
        settings = kinds[args.algorithm](r=args.rank, alpha=args.rank, target_modules=targets)
        library.inject_adapter_in_model(settings, model)
    else:
        more = {"lora_alpha": args.rank, "use_dora": args.algorithm == "dora"}
        model.add_adapter(library.LoraConfig(r=args.rank, target_modules=targets, **more))
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


def peak_memory(step: Step) -> float:
    """Return the most that torch holds in one step over what it held before it, MB."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    found: list[tuple[int, int]] = []
    events = list(profile.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(accumulate(size for _, size in sorted(found))) / 1e6


def main() -> None:
    """Measure both variants and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("channels", 64), ("side", 16), ("batch", 2), ("rank", 4), ("rounds", 15), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--full", action="store_true", help="the UNet in its real size: 7 GB and minutes")
    parser.add_argument("--algorithm", choices=("lora", "dora", "loha", "lokr"), default="lora")
    args = parser.parse_args()
    torch.set_num_threads(1)

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
    peaks = {name: peak_memory(step) for name, step in variants.items()}
    print("peak of a step: " + ", ".join(f"{name} {peak:.1f} MB" for name, peak in peaks.items()))
    print(f"ours / peft: {peaks['ours'] / peaks['peft']:.2f} of the memory")


if __name__ == "__main__":
    main()
