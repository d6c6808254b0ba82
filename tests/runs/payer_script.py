"""Embeds a file, each time in a process of its own that may be killed at a step: a line of JSON in, one out.

It loads what a run needs once and forks for each call, so that a hundred kills take seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embatch import Client, EmbatchError
from embatch.client import targets
from embatch.client.providers import gemini
from embatch.runs.clock import Clock
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from embatch.client.providers.provider import Target
    from embatch.runs.progress import RunProgress
    from embatch.runs.steps import Step


def in_files(*given: Any) -> Target:
    """Return Gemini's target, with every batch going through a file however small it is."""
    target = gemini.target(*given)
    can = replace(target.provider.capabilities, inline_requests=0)
    return replace(target, provider=replace(target.provider, capabilities=can))


class Time:
    """The stand-in's time, which passes when somebody sleeps."""

    def __init__(self, url: str, wrong: float) -> None:
        """Begin; `wrong`: seconds by which this machine's clock goes otherwise."""
        self._url, self._wrong = url, wrong
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._began = self._tell({})
        self._passed = 0.0

    def clock(self) -> Clock:
        """Return it for a run."""
        return Clock(lambda: self._began + self._wrong + self._passed, lambda: self._passed, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self._passed = self._tell({"advance": seconds}) - self._began

    def _tell(self, said: dict[str, float]) -> float:
        request = urllib.request.Request(f"{self._url}/_control", json.dumps(said).encode())  # noqa: S310
        with self._opener.open(request) as reply:
            return float(json.load(reply)["now"])


def embed(said: dict[str, Any]) -> dict[str, Any]:
    """Embed a file, and die at the step that the caller names."""
    folder = Path(said["folder"])
    steps, left = (folder / "steps").open("a", buffering=1), dict[str, int](said.get("kill", {}))
    notes: list[str] = []

    def reached(step: Step) -> None:
        steps.write(f"{step.name}\n")
        for name in (step.name, "ANY"):
            left[name] = left.get(name, 0) - 1
            if left[name] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def show(standing: RunProgress) -> None:
        notes.extend(standing.batch.notes)

    options = RunOptions(
        folder / "data",
        restart=said.get("restart", False),
        block_rows=said.get("block_rows"),
        clock=Time(said["url"], said.get("wrong", 0.0)).clock(),
        reached=reached,
    )
    os.environ.update(said.get("environ", {}))
    try:
        with Client(base_url=said["url"], max_retries=2, **said["client"]) as client:
            if "delete" in said:
                client.cancel_batch(said["delete"])
                client.delete_batch(said["delete"])
                return {}
            source = open_source(str(folder / "in.jsonl"), None, "id")
            wanted = EmbedOptions(dimensions=(128,))
            summary = embed_dataset(client, source, str(folder / "out.parquet"), wanted, options, show)
    except EmbatchError as error:
        return {"error": type(error).__name__, "message": str(error), "field": error.field, "told": notes}
    return {"rows": summary.rows, "failed": summary.failed, "notes": summary.notes, "told": notes}


def main() -> None:
    """Serve calls until standard input ends."""
    targets.HOSTED["gemini"] = in_files
    print(json.dumps({}), flush=True)  # noqa: T201
    for line in sys.stdin:
        said = json.loads(line)
        result = Path(said["folder"]) / "result"
        result.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            result.write_text(json.dumps(embed(said)), "utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = json.loads(result.read_text("utf-8")) if result.exists() else {}
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), **found}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
