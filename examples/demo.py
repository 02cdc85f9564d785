"""The demo: train a LoRA of something that a tiny model cannot draw, convert it with a proof, merge it, look at it.

Everything comes along with the project: the model (`tiny-sd/`), the pictures (`subject/`, `subject_two/`). Every figure
that is printed is measured in this run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..lora_core.errors import FileProblem

HERE = Path(__file__).resolve().parent
MODEL = HERE / "tiny-sd"
STEPS_SAMPLED, GUIDANCE = 20, 5.0
STRENGTHS = (0.0, 0.5, 1.0)
SUBJECT = tuple(f"a sks mushroom on a {colour} background" for colour in ("blue", "yellow", "green"))
SECOND = ("an ohwx house on a green background",)
UNRELATED = (
    "a large red circle on a blue background",
    "a small green star on a white background",
    "a large yellow square on a gray background",
)
SETTINGS = {
    "model": str(MODEL),
    "name": "mushroom",
    "resolution": 64,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "rank": 16,
    "alpha": 16,
    "targets": "linear",
    "checkpoint_every": 0,
    "warmup": 10,
    "device": "cpu",
}


@dataclass(frozen=True)
class Run:
    """A finished training run."""

    path: Path
    losses: Sequence[float]
    before: float  # loss on unseen pictures of the subject
    after: float
    seconds: float


def run(out: str | None = None, say: Callable[[str], None] = print, steps: tuple[int, int] = (600, 350)) -> Path:
    """Run the whole demo on the CPU and return its folder, with `before_after.png` and `loss.png` in it.

    Args:
        out: the folder; None takes the first free of `lorasmith-demo`, `lorasmith-demo-2`, ...
        say: gets each line of the report.
        steps: training steps of the first and the second LoRA.

    Raises:
        FileProblem: the folder is already there and not empty.
    """
    import torch

    began, threads = time.perf_counter(), torch.get_num_threads()
    folder = _free_folder(out)
    _quiet_libraries()
    torch.set_num_threads(1)  # so small a model loses more by sharing its work than it gains
    try:
        _run(folder, say, steps)
    finally:
        torch.set_num_threads(threads)
    say(f"look at {folder / 'before_after.png'} (and loss.png); done in {time.perf_counter() - began:.0f} s")
    return folder


def _run(folder: Path, say: Callable[[str], None], steps: tuple[int, int]) -> None:
    first = train(folder / "mushroom", "subject", steps[0], say, validation_data=str(HERE / "subject_validation"))
    say(
        f"loss on 6 unseen pictures of the subject: {first.before:.4f} before, {first.after:.4f} after "
        f"({1 - first.after / first.before:.0%} less)"
    )
    second = train(folder / "house", "subject_two", steps[1], say, name="house")
    diffusers_file = convert_proved(first.path, folder / "mushroom_diffusers.safetensors", say)
    merged = merge_both(first.path, second.path, folder / "merged.safetensors", say)
    rows = pictures_of(diffusers_file, merged, say)
    contact_sheet(rows, folder / "before_after.png")
    loss_plot({"mushroom": first.losses, "house": second.losses}, folder / "loss.png")


def train(out: Path, data: str, steps: int, say: Callable[[str], None], **settings: Any) -> Run:
    """Train a LoRA on one of the picture folders that come along."""
    from ..convert.training import train as trained
    from ..lora_core.train.config import TrainConfig

    config = TrainConfig.from_json({**SETTINGS, "data": str(HERE / data), "out": str(out), "steps": steps, **settings})
    losses: list[float] = []
    last: dict[str, Any] = {}
    for event in trained(config):
        last = event.data()
        if event.event == "start":
            sizes = f"{last['pictures']} pictures, {last['layers']} layers, {last['parameters']} parameters"
            say(f"training {config.name}: {sizes}")
        if event.event == "step":
            losses.append(last["loss"])
            if event.step % 50 == 0:
                say(f"  step {event.step} of {steps}, loss {sum(losses[-50:]) / 50:.4f}, {last['eta']:.0f} s to go")
    path = out / f"{config.name}.safetensors"
    say(f"trained {config.name} in {last['seconds']:.0f} s: {path}")
    return Run(path, losses, last.get("validation_loss_before", 0.0), last.get("validation_loss", 0.0), last["seconds"])


def convert_proved(source: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Convert kohya to Diffusers and back, and say how far the weight changes are apart."""
    from .. import convert
    from ..convert.proof import write_proved
    from ..lora_core.ops.report import difference

    original = convert.load(source)
    proof = write_proved(original.adapter, out, "diffusers")
    back = write_proved(proof.adapter, out.with_name("mushroom_back.safetensors"), "kohya")
    whole_way = difference(back.adapter, original.adapter)
    say(
        f"converted {original.match.format} -> {proof.match.format}: {len(proof.adapter.layers)} layers, "
        f"relative error {proof.report.relative_error:.1e}; and back to kohya: {whole_way.relative_error:.1e}"
    )
    return out


def merge_both(first: Path, second: Path, out: Path, say: Callable[[str], None]) -> Path:
    """Merge the two LoRAs exactly and by SVD, and say each one's error against the stack."""
    from .. import convert
    from ..convert.proof import write_proved
    from ..lora_core.ops.merge import Weighted, merge
    from ..lora_core.ops.report import relative_error

    parts = [Weighted(convert.read(path), 1.0, source=path.name) for path in (first, second)]
    exact = write_proved(merge(parts), out, "diffusers")
    small = merge(parts, "svd", rank=16)
    say(
        f"merged both: exact, rank 32, relative error {relative_error(exact.adapter, parts).relative_error:.1e}; "
        f"by SVD at rank 16 it would be {relative_error(small, parts).relative_error:.2f}"
    )
    return out


def pictures_of(lora: Path, merged: Path, say: Callable[[str], None]) -> list[tuple[str, list[Any]]]:
    """Draw every prompt at each strength, and with the merged LoRA; say how much the unrelated ones changed."""
    prompts = (*SUBJECT, *SECOND, *UNRELATED)
    pipe = pipeline()
    columns = [drawn(pipe, prompts)]
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    for strength in STRENGTHS[1:]:
        pipe.set_adapters(pipe.get_active_adapters(), adapter_weights=strength)
        columns.append(drawn(pipe, prompts))
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(merged.parent), weight_name=merged.name)
    columns.append(drawn(pipe, prompts))
    count = len(UNRELATED)
    say(
        f"mean change of pictures, of 255: the subject's {_change(columns[0][:3], columns[2][:3]):.1f}, "
        f"unrelated prompts {_change(columns[0][-count:], columns[2][-count:]):.1f}"
    )
    return list(zip(prompts, map(list, zip(*columns, strict=True)), strict=True))


def pipeline() -> Any:
    """Load the tiny model with DPM-Solver multistep on Karras sigmas."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(MODEL), local_files_only=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any, prompts: Sequence[str]) -> list[Any]:
    """Draw one picture per prompt, each from the same noise every time."""
    import torch

    generators = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    size = {"height": 64, "width": 64}
    made = pipe(list(prompts), num_inference_steps=STEPS_SAMPLED, guidance_scale=GUIDANCE, generator=generators, **size)
    pictures: list[Any] = made.images
    return pictures


def contact_sheet(rows: Sequence[tuple[str, list[Any]]], path: Path) -> None:
    """Put the training pictures and every row of pictures on one sheet, four times as large, with what they are."""
    from PIL import Image, ImageDraw, ImageFont

    side, left, top, gap = 128, 300, 46, 6
    training = [Image.open(file).convert("RGB") for file in sorted((HERE / "subject").glob("*.png"))[:7]]
    heads = [*(f"strength {strength:g}" for strength in STRENGTHS), "merged with house"]
    width = left + 4 * (side + gap) + gap
    height = top + side // 2 + 30 + (len(rows)) * (side + gap) + 30
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((gap, 14), "what it was trained on:", "black", font)
    for number, picture in enumerate(training):
        sheet.paste(picture, (left + number * 70, 4))
    for column, head in enumerate(heads):
        draw.text((left + column * (side + gap), top + 30), head, "black", font)
    for number, (prompt, pictures) in enumerate(rows):
        y = top + 54 + number * (side + gap)
        draw.text((gap, y + side // 2 - 8), prompt, "black", font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left + column * (side + gap), y))
    sheet.save(path)


def loss_plot(runs: dict[str, Sequence[float]], path: Path) -> None:
    """Plot each run's loss, averaged over 20 steps, with the axes' ends labelled."""
    from PIL import Image, ImageDraw, ImageFont

    width, height, margin = 640, 360, 50
    smooth = {name: [sum(part) / len(part) for part in _windows(losses, 20)] for name, losses in runs.items()}
    top, steps = max(map(max, smooth.values())), max(map(len, smooth.values()))
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.line([(margin, margin // 2), (margin, height - margin), (width - 10, height - margin)], "black")
    draw.text((4, margin // 2 - 6), f"{top:.3f}", "black", font)
    draw.text((20, height - margin - 8), "0", "black", font)
    draw.text((width - 90, height - margin + 8), f"step {steps}", "black", font)
    draw.text((margin, 2), "training loss, mean of the last 20 steps", "black", font)
    for colour, (name, losses) in zip(("crimson", "royalblue"), smooth.items(), strict=True):
        points = [
            (margin + n / steps * (width - margin - 10), height - margin - loss / top * (height - 1.5 * margin))
            for n, loss in enumerate(losses)
        ]
        draw.line(points, colour, 2)
        draw.text((points[-1][0] - 70, points[-1][1] - 22), name, colour, font)
    sheet.save(path)


def _quiet_libraries() -> None:
    """Keep the libraries' bars and notes out of the report."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _windows(values: Sequence[float], size: int) -> Iterable[Sequence[float]]:
    return (values[max(0, end - size) : end] for end in range(1, len(values) + 1))


def _change(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Return the mean absolute difference of two lists of pictures, in levels of 255."""
    import numpy as np

    pairs = zip(before, after, strict=True)
    return float(np.mean([np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() for a, b in pairs]))


def _free_folder(out: str | None) -> Path:
    if out is None:
        names = itertools.chain(["lorasmith-demo"], (f"lorasmith-demo-{number}" for number in itertools.count(2)))
        return next(Path(name) for name in names if not Path(name).exists())
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileProblem(f"{folder}: is there already; choose another --out", file=folder)
    return folder
