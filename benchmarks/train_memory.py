"""Whether Stable Diffusion 1.5 trains at 512 pixels, batch 1, in 11 GB without 8-bit tricks, by this trainer's plan.

    python benchmarks/train_memory.py [--side 64] [--rank 16] [--memory 11]

The UNet has its real size and random weights. Its steps are taken on the CPU in float32, with and without gradient
checkpointing; the peak of a step's allocations is counted one by one and halved, since a GPU computes in half
precision. Weights are counted at two bytes, the adapter with its gradients and optimizer state in float32, and text
encoder and autoencoder as moved away while training, which is the default.
"""

from __future__ import annotations

import argparse
import time
from argparse import Namespace

import torch
from checkout import alias_root

GB = 1e9
RESERVE = 0.08  # of the device's memory, as the plan leaves out


def main() -> None:
    """Take the steps and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("side", 64), ("rank", 16), ("memory", 11)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    alias_root()
    import train_step

    sizes = {"full": True, "side": args.side, "batch": 1, "rank": args.rank, "algorithm": "lora"}
    model = train_step.unet(Namespace(**sizes))
    step = train_step.ours(Namespace(**sizes), model)
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()
        began = time.perf_counter()
        activations = train_step.peak_memory(step) * 1e6 / 2
        frozen = 2 * sum(parameter.numel() for parameter in model.parameters())
        trained = args.rank * sum(
            part.in_features + part.out_features
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        )
        needed = frozen + 16 * trained + activations
        verdict = "fits" if needed <= args.memory * GB * (1 - RESERVE) else "does not fit"
        print(f"gradient checkpointing {'on' if checkpointing else 'off'}:")
        print(f"  weights {frozen / GB:.2f} GB, adapter and optimizer {16 * trained / GB:.2f} GB, ", end="")
        print(f"activations {activations / GB:.2f} GB; together {needed / GB:.2f} GB: {verdict} in {args.memory} GB")
        print(f"  ({time.perf_counter() - began:.0f} s for two steps on this CPU)", flush=True)


if __name__ == "__main__":
    main()
