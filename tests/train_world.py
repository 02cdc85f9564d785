"""One process of a run of several, told its place by the environment: FOLDER OUT STOP_AT RESUME BATCH."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: E402, F401  makes this checkout importable
import torch  # noqa: E402
from train_models import TinyBackend, config, write_plain  # noqa: E402

from lorasmith.lora_core.train.engine import run  # noqa: E402
from lorasmith.lora_core.train.world import world  # noqa: E402


def main(folder: str, out: str, stop_at: str, resume: str, batch: str) -> None:
    """Train, and print this process's rank, the world's size and the last event."""
    torch.set_num_threads(1)
    place, done = world(), [0]
    keys = {"batch_size": int(batch) * place.size, "accumulate": 2, "random_flip": True, "ema": 0.9}
    settings = config(Path(folder), **keys, out=str(Path(folder) / out), checkpoint_every=2)
    events = run(settings, TinyBackend(), write_plain, resume == "1", lambda: done[0] == int(stop_at), world=place)
    for event in events:
        done[0] = event.step
    sys.stdout.write(f"{place.rank} {place.size} {event.event} {event.step}\n")
    place.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
