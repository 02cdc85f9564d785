"""Writes docs/training-options.md from the training configuration's comments; --check tells whether it is current."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "lora_core" / "train" / "config.py"
PAGE = ROOT / "docs" / "training-options.md"
FIELD = re.compile(r"    (\w+): [^=#]+?(?: = (.+?))?(?:  # (.+))?")
HEADING = re.compile(r"    # (.+)")
DEFAULT = re.compile(r"\w+\(\s*([^,()]*|\(\)|\{\})\s*[,)].*")
HEAD = """# Training options

The entries of `config.json`, made from the comments in `lora_core/train/config.py` by `docs/generate_options.py`. Three
are needed: `model`, `data` and `out`. An unknown entry is refused, with the nearest known one.
"""


def page() -> str:
    """Return the page."""
    body = SOURCE.read_text(encoding="utf-8").partition("class TrainConfig:")[2].partition("def __post_init__")[0]
    lines = [HEAD]
    for line in body.splitlines():
        heading, found = HEADING.fullmatch(line), FIELD.fullmatch(line)
        if heading:
            title = heading.group(1)
            lines.append(f"\n## {title[0].upper()}{title[1:]}\n\n| entry | default | |\n| --- | --- | --- |")
        elif found:
            name, made, comment = found.groups()
            words = re.findall(r'"(\w+)"', made) if made and made.startswith("choice") else []
            told = "; ".join(filter(None, (", ".join(words), comment)))
            lines.append(f"| `{name}` | {default(made)} | {told.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def default(made: str | None) -> str:
    """Return a field's default as JSON has it.

    >>> default('count(1, 1)'), default('maybe_text()'), default(None)
    ('`1`', '`null`', 'needed')
    """
    if made is None:
        return "needed"
    found = DEFAULT.fullmatch(made)
    first = found.group(1) if found else ""
    if made.startswith("maybe_text"):
        first = "None"
    if made.startswith("flag") and not first:
        first = "False"
    words = {"None": "null", "False": "false", "True": "true", "()": "[]"}
    return f"`{words.get(first, first)}`"


def main() -> int:
    """Write the page, or with --check say whether it is the one that would be written."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
