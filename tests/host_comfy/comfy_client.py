"""ComfyUI's HTTP interface, as much of it as the tests need."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Graph = Mapping[str, Mapping[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}


class Refused(Exception):
    """The host did not accept or did not finish a graph; `message` is what a person would see."""

    def __init__(self, message: str, details: Any = None):
        super().__init__(message)
        self.message = message
        self.details = details


class Interrupted(Refused):
    """The graph was cancelled."""


@dataclass(frozen=True)
class Comfy:
    """A running server."""

    port: int

    def call(self, path: str, body: Any = None, timeout: float = 60) -> Any:
        """GET a path, or POST `body` as JSON to it, and return the decoded answer."""
        text = self.text(path, body, timeout)
        return json.loads(text) if text else None

    def text(self, path: str, body: Any = None, timeout: float = 60) -> str:
        """Do the same and return the answer as it is."""
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            problem = json.loads(error.read() or b"{}")
            raise Refused(_problems(problem), problem) from error

    def submit(self, graph: Graph) -> str:
        """Queue a graph and return its id."""
        answer: dict[str, Any] = self.call("/prompt", {"prompt": graph})
        return str(answer["prompt_id"])

    def running(self) -> bool:
        """Tell whether a graph is being worked on."""
        return bool(self.call("/queue")["queue_running"])

    def result(self, job: str, timeout: float = 120) -> dict[str, Any]:
        """Wait for a job and return its outputs by node id; raises Refused or Interrupted."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.call(f"/history/{job}").get(job)
            if entry and entry["status"]["completed"]:
                return dict(entry["outputs"])
            if entry:
                raise _failure(entry["status"]["messages"])
            time.sleep(0.05)
        raise TimeoutError(f"{job} was not done after {timeout} s")

    def run(self, graph: Graph, timeout: float = 120) -> dict[str, Any]:
        """Queue a graph, wait for it, and return its outputs by node id."""
        return self.result(self.submit(graph), timeout)


def _failure(messages: Any) -> Refused:
    for name, data in messages:
        if name == "execution_error":
            return Refused(data["exception_message"].strip(), data)
        if name == "execution_interrupted":
            return Interrupted("interrupted", data)
    return Refused("the job ended without a result", messages)


def _problems(answer: Mapping[str, Any]) -> str:
    """Collect what /prompt says about a graph that it refuses to queue."""
    nodes = answer.get("node_errors") or {}
    found = [f"{e['message']}: {e['details']}" for node in nodes.values() for e in node["errors"]]
    return "; ".join(found) or str(answer.get("error", answer))
