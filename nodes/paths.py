"""Names that people type into nodes, kept inside the folders they are meant for."""

from __future__ import annotations

import glob
import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from ..lora_core.errors import BadConfig

DEEPEST = 3  # levels of subfolders that are offered
FORBIDDEN = '<>:"|?*'
PORTS = tuple(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")
DEVICES = frozenset(("con", "prn", "aux", "nul", "conin$", "conout$", *PORTS))  # Windows', whatever follows after a dot


def below(folder: Path, name: str) -> Path:
    """Return `folder/name`, where `name` may hold subfolders but must not lead out of the folder.

    Raises:
        BadConfig: the name is empty, absolute, contains "..", a character or word that some system forbids, or a link
            that leads out.
    """
    parts = name.strip().replace("\\", "/").split("/")
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or PureWindowsPath(name).root
    if absolute or not all(_plain(part) for part in parts):
        raise BadConfig(f"{name!r}: give a name below {folder.name}, such as 'styles/my-lora', without '..' or a drive")
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, *parts))
    if os.path.commonpath([root, path]) != root or path == root:
        raise BadConfig(f"{name!r}: leads out of {folder.name} through a link; choose another name")
    return Path(path)


def free_name(path: Path, suffix: str) -> Path:
    """Return `path` with the suffix, numbered `_00001` and so on when that file is already there."""
    stem = path.name[: -len(suffix)] if suffix and path.name.lower().endswith(suffix) else path.name
    candidate, number = path.with_name(stem + suffix), 0
    while os.path.exists(candidate):  # unlike a Path's own, no error for a name that is too long
        number += 1
        candidate = path.with_name(f"{stem}_{number:05d}{suffix}")
    return candidate


def free_folder(path: Path) -> Path:
    """Return `path`, numbered `_00001` and so on when it is already there."""
    return free_name(path, "")


def last_folder(path: Path) -> Path:
    """Return the newest of the folders that `free_folder` gave out for `path`; `path` itself when there is none."""
    following = free_folder(path)
    numbered = [path, *path.parent.glob(f"{glob.escape(path.name)}_[0-9][0-9][0-9][0-9][0-9]")]
    there = sorted(folder for folder in numbered if os.path.isdir(folder) and folder != following)
    return there[-1] if there else path


def picture_folders(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the folders below one that hold pictures, as relative names with forward slashes; none that are hidden."""
    found: list[str] = []
    for place, names, files in os.walk(folder):
        inside = Path(place).relative_to(folder)
        names[:] = [name for name in names if not name.startswith(".")] if len(inside.parts) < DEEPEST else []
        if inside.parts and any(name.lower().endswith(suffixes) for name in files):
            found.append(inside.as_posix())
    return sorted(found)


def _plain(part: str) -> bool:
    """Tell whether a name is one that every system takes for a single file or folder."""
    control = any(ord(letter) < 32 or letter in FORBIDDEN for letter in part)
    device = part.split(".")[0].rstrip().lower() in DEVICES
    return bool(part) and part == part.strip().rstrip(".") and not control and not device
