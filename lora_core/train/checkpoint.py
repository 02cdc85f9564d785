"""The state to resume from: `OUT/state/000500/` with state.safetensors and state.json, written as one unit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import store
from ..errors import BadConfig, FileProblem
from .config import TrainConfig
from .state import State

# What may differ between a run and its continuation: it changes no weight, or the model's and the data's hashes tell.
FREE = frozenset(
    "model data out tokenizer revision epochs start_from masks image_column caption_column max_pictures "
    "instance_prompt class_data class_prompt class_pictures device gradient_checkpointing swap_blocks cache "
    "offload_encoders "
    "deterministic on_out_of_memory checkpoint_every keep validation_prompt negative_prompt sample_every sample_steps "
    "sample_guidance sample_count validation_data validation_every format report_to push_to_hub".split()
)


@dataclass(frozen=True)
class Identity:
    """What a run is: two runs with equal identities take the same steps."""

    config: TrainConfig
    model: str  # fingerprint
    data: str  # digest of pictures and captions

    def to_json(self) -> dict[str, Any]:
        """Return the identity as it is written into state.json."""
        return {"config": self.config.to_json(), "model": self.model, "data": self.data}

    def refuse_other(self, saved: Mapping[str, Any], folder: Path) -> None:
        """Raise BadConfig when a saved run is another one than this, naming what differs."""
        if saved["model"] != self.model:
            raise BadConfig(f"{folder}: was trained on another model; resume with that one, or train to another 'out'")
        if saved["data"] != self.data:
            text = "pictures or captions have changed; put them back, or train to another 'out'"
            raise BadConfig(f"{folder}: {text}")
        ours, theirs = self.config.to_json(), saved["config"]
        for key, value in ours.items():
            if _matters(key, self.config) and theirs.get(key) != value:
                way = f"set {key!r} back, or train to another 'out'"
                raise BadConfig(f"{folder}: {key!r} was {theirs.get(key)!r} and is now {value!r}; {way}", key=key)


def _matters(key: str, config: TrainConfig) -> bool:
    """Say whether a key decides how the run goes on; `steps` does unless the rate is constant."""
    if key == "class_prompt" and config.prior_from_base:  # then no picture's caption tells it
        return True
    return key not in FREE and not (key == "steps" and config.scheduler == "constant")


def save(folder: Path, state: State, identity: Identity, facts: Mapping[str, Any], keep: int) -> Path:
    """Write the state of a step into its own subfolder, all or nothing, and drop all but the newest `keep` (0 = all).

    Raises FileProblem when the folder cannot be written.
    """
    final, draft, aside = (folder / f"{lead}{state.step:06d}" for lead in ("", ".new-", ".old-"))
    described = {**identity.to_json(), **state.facts(), "facts": dict(facts)}
    try:
        for leftover in (draft, aside):
            shutil.rmtree(leftover, ignore_errors=True)
        draft.mkdir(parents=True)
        store.save(draft / "state.safetensors", state.tensors())
        with (draft / "state.json").open("w", encoding="utf-8") as stream:
            json.dump(described, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        if final.exists():
            final.rename(aside)
        draft.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        text = f"{folder}: cannot be written ({error.strerror}); free some space or choose another 'out'"
        raise FileProblem(text, file=folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # there only where it could not be finished
    for old in steps(folder)[:-keep] if keep else []:
        shutil.rmtree(folder / f"{old:06d}", ignore_errors=True)
    return final


def steps(folder: Path) -> list[int]:
    """Return the saved steps, ascending."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(int(path.name) for path in found if path.name.isdigit() and (path / "state.json").is_file())


def restore(folder: Path, state: State, identity: Identity) -> dict[str, Any]:
    """Bring the newest saved state into `state` and return its facts.

    Raises FileProblem when there is none or it cannot be read, and BadConfig when it belongs to another run.
    """
    _put_back(folder)
    if not steps(folder):
        raise FileProblem(f"{folder}: holds no state to resume from; train without resuming first", file=folder)
    source = folder / f"{steps(folder)[-1]:06d}"
    try:
        saved = _described(source / "state.json")
        tensors = store.load(source / "state.safetensors").tensors
        identity.refuse_other(saved, source)
        state.restore(tensors, saved)
    except (OSError, ValueError, RecursionError, FileProblem) as error:
        text = f"{source}: cannot be read ({error}); remove this folder to resume from the one before"
        raise FileProblem(text, file=source) from error
    facts: dict[str, Any] = saved["facts"]
    return facts


def drop_after(folder: Path, step: int) -> None:
    """Remove the states of later steps, which a run that went back no longer stands for."""
    for later in steps(folder):
        if later > step:
            shutil.rmtree(folder / f"{later:06d}", ignore_errors=True)


def _put_back(folder: Path) -> None:
    """Give a state its name again that was moved aside for a new one of the same step, which then never came."""
    for aside in folder.glob(".old-*"):
        final = folder / aside.name.removeprefix(".old-")
        if not final.exists():
            aside.rename(final)


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **{"config": dict, "model": str, "data": str, "facts": dict},
    **{"step": int, "scale": (int, float), "calm": int},
}


def _described(file: Path) -> dict[str, Any]:
    """Return what state.json holds; raises ValueError when a key is missing or of another kind."""
    saved: Any = json.loads(file.read_text(encoding="utf-8"))
    for key, kind in _KINDS.items():
        if not isinstance(saved, dict) or not isinstance(saved.get(key), kind):
            raise ValueError(f"state.json lacks {key!r}")
    return dict(saved)
