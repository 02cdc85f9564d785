"""What ComfyUI, A1111, Forge and Diffusers do with a LoRA file.

A host's verdict has two parts. Each layer is looked up in the host's facts; the first row that fits decides whether the
layer is read. Then the host's cautions are looked at, which concern the file as a whole and what the host makes of the
layers that it reads. Where several families fit a file alike, each is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora_core.adapter import Target
from .detect import Match, Shapes
from .host_facts import HOSTS
from .host_looks import Seen, header_alphas, seen
from .host_model import Caution, Fact, Host

__all__ = ["HOSTS", "header_alphas", "verdicts"]


def verdicts(
    match: Match, shapes: Shapes, metadata: Mapping[str, str], alphas: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any]]:
    """Return what each host does with a file: `{"comfyui": {"loads": bool, "why": str}, ...}`.

    `alphas` are the values of alpha tensors by key, where they were read.

    `loads` means that every layer takes effect; a wrong number, which leaves `loads` true, is said in `why`.
    """
    files = [seen(id, match, shapes, metadata, alphas or {}) for id in match.candidates]
    return {host.id: _joined({file.family: _verdict(host, match, file) for file in files}) for host in HOSTS}


def _joined(said: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the verdict on which all families agree, else that of those that load the file, and what differs."""
    fine = [family for family, verdict in said.items() if verdict["loads"]]
    first = said[fine[0] if fine else next(iter(said))]
    if len(fine) in (0, len(said)):
        return first
    other = next(family for family in said if family not in fine)
    why = f"{first['why']}, but only as {' or '.join(fine)}: as {other} it {said[other]['why']}"
    return {"loads": True, "why": why}


def _verdict(host: Host, match: Match, file: Seen) -> dict[str, Any]:
    if match.unplaced:
        return {"loads": False, "why": f"not judged: {len(match.unplaced)} keys of its layers are in no table here"}
    unread = {target: fact for target, look in file.looks.items() if not (fact := host.fact(look)).reads}
    cautions = {caution: _bearing(caution, file) for caution in host.cautions}
    if unread or _impatient(host, match, file, unread, cautions):
        return {"loads": False, "why": _refusal(host, match, file, unread, cautions)}
    refused = next((caution for caution, bearing in cautions.items() if bearing and not caution.loads), None)
    if refused:
        return {"loads": False, "why": refused.why}
    warnings = (caution.why.format(scale=file.scale) for caution, bearing in cautions.items() if bearing)
    return {"loads": True, "why": ", ".join([f"reads all {len(_modules(file.looks))} layers", *warnings])}


def _bearing(caution: Caution, file: Seen) -> int:
    """Count the layers that a caution is about; 1 for a mark of the file."""
    if caution.families and file.family not in caution.families:
        return 0
    return sum(caution.mark in look.marks for look in file.looks.values()) or int(caution.mark in file.marks)


def _missed(match: Match, file: Seen, unread: Mapping[Target, Fact], cautions: Mapping[Caution, int]) -> int:
    """Count the keys that a host does not know."""
    left = sum(bearing for caution, bearing in cautions.items() if caution.unread)
    return sum(len(file.layers[target]) for target in unread) + left + len(match.unknown) + len(match.riders)


def _impatient(
    host: Host, match: Match, file: Seen, unread: Mapping[Target, Fact], cautions: Mapping[Caution, int]
) -> bool:
    return host.patience is not None and _missed(match, file, unread, cautions) > host.patience


def _refusal(
    host: Host, match: Match, file: Seen, unread: Mapping[Target, Fact], cautions: Mapping[Caution, int]
) -> str:
    fatal = next((fact for fact in unread.values() if fact.fatal), None)
    if fatal:
        return f"reads nothing: {fatal.why}"
    reasons = Counter(fact.why for fact in unread.values())
    reasons.update({caution.why.removeprefix("but "): n for caution, n in cautions.items() if n and caution.unread})
    reason = reasons.most_common(1)[0][0] if reasons else "they belong to no layer"
    if _impatient(host, match, file, unread, cautions):
        known = f"as any with more than {host.patience} keys it does not know"
        return f"refuses the file, {known} ({_missed(match, file, unread, cautions)} here): {reason}"
    total, read = _modules(file.looks), _modules(target for target in file.looks if target not in unread)
    if not read:
        return f"reads none of its {len(total)} layers: {reason}"
    if read == total:
        halves = len(_modules(unread))
        return f"reads {halves} of {len(total)} layers only in part, which gives a wrong picture: {reason}"
    return f"reads only {len(read)} of {len(total)} layers, which gives a wrong picture: {reason}"


def _modules(targets: Iterable[Target]) -> set[tuple[str, str]]:
    """Return the modules that are changed: a weight and its bias are one layer, as are a fused weight's blocks."""
    return {(target.component, target.module) for target in targets}
