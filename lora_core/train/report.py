"""What a run was, as one self-contained page: settings, curves, previews, and the pictures with their captions.

Everything is read from the run's folder, so the page can be drawn anew at any time, also of a run that was cut off.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import TrainConfig
from .data import Picture
from .pictures import Source, load

THUMBNAIL = 160  # pixels
SHOWN = 120  # pictures of the data set
WIDTH, HEIGHT, LEFT, BOTTOM = 860, 300, 64, 44  # of a curve's drawing, in pixels
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td { padding: .1em 1em .1em 0; vertical-align: top } td:first-child { color: #666 }
figure { display: inline-block; margin: 0 .6em .8em 0; width: 164px; vertical-align: top }
figure.wide { width: auto; display: block } figure.wide img { max-width: 100% }
figcaption { font-size: 12px; color: #555; overflow-wrap: anywhere }
svg text { font: 12px system-ui, sans-serif; fill: #555 }
"""


@dataclass(frozen=True)
class Curve:
    """A line of a drawing."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]  # (step, value)
    faint: bool = False


@dataclass(frozen=True, eq=False)
class Report:
    """A run's report, which may be written again and again; thumbnails are made once."""

    out: Path  # the run's folder, with log.jsonl and samples/
    config: TrainConfig
    pictures: Sequence[Picture]  # the data set
    thumbnails: dict[Path, str] = field(default_factory=dict)

    def write(self) -> Path:
        """Write `OUT/report.html` and `OUT/loss.svg` from the run's log, and return the page's path.

        Raises OSError where the disk refuses, BadDataset for a picture that has gone.
        """
        events = list(read_log(self.out / "log.jsonl"))
        drawing = svg(loss_curves(events), "loss")
        _write(self.out / "loss.svg", drawing)
        return _write(self.out / "report.html", page(events, drawing, self.config, self.pictures, self.thumbnails))


def page(
    events: Sequence[Mapping[str, Any]],
    drawing: str,
    config: TrainConfig,
    pictures: Sequence[Picture],
    thumbnails: dict[Path, str],
) -> str:
    """Return the page; pictures that are not among the thumbnails yet are added to them."""
    for picture in pictures[:SHOWN]:
        if picture.path not in thumbnails:
            thumbnails[picture.path] = _embedded(picture.source, THUMBNAIL)
    parts = [
        f"<h1>{html.escape(config.name)}</h1>",
        f"<p>{html.escape(_summary(events, config))}</p>",
        "<h2>Loss</h2>",
        drawing,
        "<h2>Learning rate</h2>",
        svg([Curve("learning rate", "#8a5a00", _points(events, "lr"))], "learning rate"),
        *_samples(events),
        "<h2>Settings</h2>",
        _table(config.to_public_json()),
        f"<h2>Pictures ({len(pictures)})</h2>",
        *(_figure(picture, thumbnails[picture.path]) for picture in pictures[:SHOWN]),
        f"<p>and {len(pictures) - SHOWN} more</p>" if len(pictures) > SHOWN else "",
    ]
    title = html.escape(f"{config.name}: training report")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f"{head}</head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's log; a line that a crash cut short is left out."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def loss_curves(events: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return the loss of each step, its running mean, and the loss on unseen pictures where it was measured."""
    steps = _points(events, "loss")
    curves = [Curve("each step", "#9db7d5", _thinned(steps), faint=True)]
    curves.append(Curve("running mean", "#1f5fa8", _thinned(smoothed(steps))))
    unseen = _points(events, "validation_loss")
    if unseen:
        before = next(event["validation_loss_before"] for event in events if "validation_loss_before" in event)
        curves.append(Curve("unseen pictures", "#b3261e", [(0, before), *unseen]))
    return curves


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.05) -> list[tuple[float, float]]:
    """Return the exponential running mean over about that share of all points.

    >>> smoothed([(1, 2.0), (2, 2.0)])
    [(1, 2.0), (2, 2.0)]
    """
    keep = 1 - 1 / max(1.0, share * len(points))
    mean, weight, result = 0.0, 0.0, []
    for step, value in points:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        result.append((step, mean / weight if weight else value))
    return result


def svg(curves: Iterable[Curve], label: str) -> str:
    """Return a drawing of curves over steps, as SVG; empty axes where there is none yet."""
    curves = [curve for curve in curves if curve.points] or [Curve("no steps yet", "#999999", [(0, 1.0)])]
    last = max(step for curve in curves for step, _ in curve.points)
    values = sorted(value for curve in curves for _, value in curve.points)
    top = values[min(len(values) - 1, int(0.995 * len(values)))] * 1.05 or 1.0  # a few outliers may leave the drawing
    right, base = WIDTH - 12, HEIGHT - BOTTOM

    def place(step: float, value: float) -> str:
        y = base - min(1.0, max(0.0, value / top)) * (base - 12)
        return f"{LEFT + step / max(1, last) * (right - LEFT):.1f},{y:.1f}"

    lines = []
    for quarter in range(5):
        y, x = base - quarter / 4 * (base - 12), LEFT + quarter / 4 * (right - LEFT)
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * quarter / 4:.3g}</text>')
        lines.append(f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{last * quarter / 4:.0f}</text>')
    for number, curve in enumerate(curves):
        points = " ".join(place(step, value) for step, value in curve.points)
        look = f'stroke="{curve.color}" stroke-width="{1 if curve.faint else 2}" fill="none"'
        lines.append(f'<polyline points="{points}" {look}/>')
        key = f'<tspan fill="{curve.color}">&#9473;&#9473; </tspan>{html.escape(curve.name)}'
        lines.append(f'<text x="{LEFT + 14 + 150 * number}" y="{HEIGHT - 6}">{key}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    title = f"<title>{html.escape(label)} over steps</title>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{title}{"".join(lines)}</svg>'


def _points(events: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (step, value), one per step: a step that was taken again after a resume counts once, as it was last."""
    found = {int(event["step"]): float(event[key]) for event in events if isinstance(event.get(key), (int, float))}
    return sorted(found.items())


def _thinned(points: Sequence[tuple[float, float]], most: int = 1500) -> Sequence[tuple[float, float]]:
    return points[:: max(1, len(points) // most)]


def _summary(events: Sequence[Mapping[str, Any]], config: TrainConfig) -> str:
    done = max((int(event["step"]) for event in events if event.get("event") == "step"), default=0)
    start: Mapping[str, Any] = next((event for event in events if event.get("event") == "start"), {})
    words = [f"{done} of {config.steps} steps"]
    words += [f"{start[key]} {key}" for key in ("pictures", "layers", "parameters") if key in start]
    words += [str(start[key]) for key in ("architecture", "objective", "device", "precision") if key in start]
    return ", ".join(words)


def _samples(events: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    files = {event["step"]: Path(event["path"]) for event in events if event.get("event") == "sample"}
    shown = [(step, path) for step, path in sorted(files.items()) if path.is_file()]
    if shown:
        yield "<h2>Previews</h2>"
    for step, path in shown:
        yield f'<figure class="wide"><img src="{_embedded(path, 1200)}"><figcaption>step {step}</figcaption></figure>'


def _figure(picture: Picture, address: str) -> str:
    text = html.escape(f"{picture.path.name}: {picture.caption}")
    return f'<figure><img src="{address}" alt=""><figcaption>{text}</figcaption></figure>'


def _embedded(source: Source, side: int) -> str:
    """Return a picture as a data address, at most `side` pixels long."""
    image = load(source)
    image.thumbnail((side, side))
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()


def _table(values: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_shown(value))}</td></tr>" for key, value in values.items()
    )
    return f"<table>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _write(path: Path, content: str) -> Path:
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(content, encoding="utf-8")
    os.replace(draft, path)
    return path
