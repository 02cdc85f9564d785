"""Times `info --json --fast` over 300 files in ten layouts, as a whole process, and each family's tables.

    python benchmarks/info.py [--files 300] [--rounds 3]

The files have the headers of ten listings in tests/keys and holes instead of weights, so they take no room. Medians of
seconds of processor time; what a process that imports torch alone takes is told apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkout import ROOT, alias_root

LAYOUTS = (
    *("kohya_sd15_lora_te", "kohya_sdxl_lora", "kohya_flux_lora_te", "aitoolkit_flux_lora"),
    *("diffusers_flux_dreambooth", "onetrainer_flux_diffusers", "lycoris_flux_lokr_f8"),
    *("musubi_wan21-14b-t2v_lora", "aitoolkit_qwen-image_lora", "diffusers_sdxl_dreambooth_te"),
)


def listings() -> list[Path]:
    """Return ten dumps with shapes: the named ones that are there, then others."""
    folder = ROOT / "tests" / "keys"
    named = [folder / f"{name}.json.gz" for name in LAYOUTS]
    others = [path for path in sorted(folder.glob("*.json.gz")) if path not in named]
    complete = (path for path in (*named, *others) if path.is_file() and None not in shapes(path).values())
    return [path for path, _ in zip(complete, range(10), strict=False)]


def shapes(listing: Path) -> dict[str, list[int] | None]:
    """Return the keys and shapes of a dump."""
    content: dict[str, list[int] | None] = json.loads(gzip.decompress(listing.read_bytes()))["keys"]
    return {key: shape and [16 if size == -1 else size for size in shape] for key, shape in content.items()}


def write(path: Path, listing: Path) -> None:
    """Write a listing's header and, instead of the weights, a hole."""
    table, end = {}, 0
    for key, shape in shapes(listing).items():
        count = 2
        for size in shape or ():
            count *= size
        table[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + count]}
        end += count
    text = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def seconds(command: list[str], rounds: int) -> float:
    """Return the median processor time of a process."""
    found = []
    for _ in range(rounds):
        before = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        found.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(found)


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=300)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ten = listings()
        paths = [Path(folder) / f"{number}.safetensors" for number in range(given.files)]
        for number, path in enumerate(paths):
            write(path, ten[number % len(ten)])
        start = seconds([sys.executable, "-c", "import torch"], given.rounds)
        whole = seconds([sys.executable, str(ROOT), "info", "--json", "--fast", *map(str, paths)], given.rounds)
    print(f"{', '.join(path.name.removesuffix('.json.gz') for path in ten)}")
    print(f"{given.files} files of {len(ten)} layouts: {whole:.2f} s, of which Python and torch {start:.2f} s")
    alias_root()
    from lorasmith.convert.architectures import ARCHITECTURES
    from lorasmith.convert.keymap import keymap

    times = {}
    for family in ARCHITECTURES:
        began = time.process_time()
        keymap(family.id).place("lora_unet_no_such_module.lora_down.weight")
        times[family.id] = time.process_time() - began
    slowest = max(times, key=lambda id: times[id])
    print(
        f"a family's tables: {statistics.median(times.values()):.3f} s; {slowest}, the slowest, {times[slowest]:.3f} s"
    )


if __name__ == "__main__":
    main()
