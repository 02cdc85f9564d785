"""Writes the tiny model's tokenizer: CLIP's byte-level BPE, in which each of the words below is one token."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from pictures import BACKGROUND_COLOURS, SHAPES, SIZES

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # tokens in a prompt, as in Stable Diffusion 1

USED = ["a", "on", "background", ",", "art", *SIZES, *BACKGROUND_COLOURS, *SHAPES]
RARE = ["sks", "ohwx", "zwx", "xyz", "qwv", "shs", "bnha", "zkz"]  # for personalisation
SPARE = """
an the of in at with and or no not by to for from over under behind near next left right top bottom centre center middle
photo picture drawing painting image sketch style icon logo art cartoon pixel sticker portrait close up
mushroom house face tree robot cat dog bird fish flower leaf apple car boat ship moon sun cloud heart person man woman
girl boy child toy ball box cup book key hat eye mouth smile smiling roof door window wall stem cap dot dots stripe
orange pink brown cream grey cyan gold silver dark light bright pale plain big tiny little huge medium round
one two three four five six seven eight nine ten zero . : ; ! ? ( ) - _ ' "
""".split()


def byte_letters() -> list[str]:
    """The 256 printable letters that stand for the 256 bytes in byte-level BPE, as in GPT-2 and CLIP."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (chr(256 + n) for n in range(256 - len(plain)))
    return [chr(b) if b in plain else next(others) for b in range(256)]


def merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte pair encoding: joins the most frequent pair until every word is one token.

    >>> merges(["on", "one"])
    [('n', 'e</w>'), ('o', 'n</w>'), ('o', 'ne</w>')]
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    found: list[tuple[str, str]] = []
    while counts := Counter(pair for parts in spelled for pair in pairwise(parts)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        spelled = [_join(parts, best) for parts in spelled]
    return found


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def write(folder: Path) -> None:
    """Writes vocab.json, merges.txt and the two configuration files."""
    pairs = merges(list(dict.fromkeys([*USED, *RARE, *SPARE])))
    letters = byte_letters()
    names = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in pairs), START, END]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(f"{first} {second}" for first, second in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, content in (("vocab", vocabulary), ("special_tokens_map", special), ("tokenizer_config", config)):
        text = json.dumps(content, ensure_ascii=False, indent=None if name == "vocab" else 2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
