"""The result on the hub: the file, its previews, and a model card that names the base model and the trigger."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadConfig, FileProblem
from .config import TrainConfig, last_part

SHOWN = 4  # previews in the card


def check(config: TrainConfig) -> None:
    """Raise BadConfig, before a run begins, where its result could not be uploaded at its end."""
    if config.push_to_hub is None:
        return
    hub = _library()
    try:
        hub.utils.validate_repo_id(config.push_to_hub)
    except hub.errors.HFValidationError as error:
        line = f"config: 'push_to_hub' is {config.push_to_hub!r}: {str(error).splitlines()[0]}"
        raise BadConfig(f"{line}; write it as 'name/repository'", key="push_to_hub") from error
    if hub.get_token() is None:
        line = "config: 'push_to_hub' needs a login: run 'hf auth login', or set HF_TOKEN"
        raise BadConfig(line, key="push_to_hub")


def push(config: TrainConfig, result: Path, facts: Mapping[str, Any], samples: Sequence[Path]) -> str:
    """Upload the result with its card and return the repository's address.

    Args:
        config: the run's; 'push_to_hub' is the repository's id, which is made when it is not there.
        result: the adapter file.
        facts: what the run's start event told: architecture and so on.
        samples: the newest previews.

    Raises:
        FileProblem: the upload failed; the result stays where it is.
    """
    hub, files = _library(), samples[-SHOWN:]
    name = config.push_to_hub or ""
    text = card(config, facts, [f"samples/{path.name}" for path in files])
    try:
        api = hub.HfApi()
        address = str(api.create_repo(name, exist_ok=True))
        api.upload_file(path_or_fileobj=str(result), path_in_repo=result.name, repo_id=name)
        for path in files:
            api.upload_file(path_or_fileobj=str(path), path_in_repo=f"samples/{path.name}", repo_id=name)
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=name)
    except (OSError, hub.errors.HfHubHTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        way = f"the result is {result}; upload it by hand, or look at the network and the token"
        raise FileProblem(f"{name}: could not be uploaded ({reason}); {way}", file=result) from error
    return address


def card(config: TrainConfig, facts: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """Return a model card: a head that the hub and `info` read, and how to use the file.

    >>> card(TrainConfig("a/sd15", "cats", "run", name="cats"), {}).splitlines()[1]
    'base_model: a/sd15'
    """
    word = config.trigger_word or config.instance_prompt
    prompts = config.prompts
    widget = [
        f"- text: {json.dumps(prompts[n % len(prompts)])}\n  output:\n    url: {name}"
        for n, name in enumerate(pictures)
        if prompts
    ]
    head = [
        f"base_model: {last_part(config.model)}",
        "tags:\n- lora\n- text-to-image\n- diffusers\n- lorasmith",
        *([f"instance_prompt: {json.dumps(word, ensure_ascii=False)}"] if word else []),
        *(["widget:\n" + "\n".join(widget)] if widget else []),
    ]
    family = facts.get("architecture")
    lines = [
        f"# {config.name}",
        f"A LoRA{f' for {family}' if family else ''}, trained on `{last_part(config.model)}`"
        f" with rank {config.rank} for {config.steps} steps.",
        *([f"Write `{word}` in the prompt."] if word else []),
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{last_part(config.model)}")\n'
        f'pipe.load_lora_weights("{config.push_to_hub or config.out}", weight_name="{config.name}.safetensors")\n```',
        *(f"![preview]({name})" for name in pictures),
    ]
    return "---\n" + "\n".join(head) + "\n---\n\n" + "\n\n".join(lines) + "\n"


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        command = f"{Path(sys.executable).name} -m pip install huggingface_hub"
        line = (
            f"config: 'push_to_hub' needs huggingface_hub, which is not installed in {sys.executable}; run '{command}'"
        )
        raise BadConfig(line, key="push_to_hub") from error
