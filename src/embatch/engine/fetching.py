"""The files of a Hub name, fetched by a process of their own: `python -m embatch.engine.fetching`.

A download that hangs in a socket hears nothing, and the process can be ended at any moment: what is fetched
stays in the Hub's cache, and the next try goes on from there. It reads one line of JSON on standard input,
and ends when that closes, so it never outlives who started it. It answers in lines of JSON: `bytes` and
`total` twice a second, at last `path`, `commit` and `pinned`, or `error`, `message` and `field`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from embatch.engine.models import ModelFiles, find_named
from embatch.errors import DataLoss, EmbatchError, InvalidArgument, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

_BEAT_SECONDS: Final = 0.5
_ERRORS: Final = {kind.__name__: kind for kind in (DataLoss, InvalidArgument, NotFound, Unavailable)}


class Fetch:
    """One fetch under way, from when it is made. Thread-safe."""

    def __init__(self, name: str, revision: str | None, wanted: Callable[[], bool]) -> None:
        """Begin. `wanted` is asked twice a second: a fetch that nobody wants any more is ended."""
        self.fetched = 0
        """Bytes so far."""
        self.total: int | None = None
        """Bytes in all; `None` as long as nobody knows."""
        self._wanted = wanted
        self._found: ModelFiles | None = None
        self._error: EmbatchError | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._thread = threading.Thread(target=self._run, args=(name, revision), name="fetch", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def result(self) -> ModelFiles:
        """Wait for the end and return where the files are. Raises as `models.find_named`."""
        self._thread.join()
        if self._found is None:
            raise self._error or Unavailable("the fetch was ended", reason="FETCH_ENDED")
        return self._found

    def cancel(self) -> None:
        """End it and return once it has ended. Repeating is safe."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _run(self, name: str, revision: str | None) -> None:
        try:
            with self._lock:
                if self._cancelled:
                    return
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "embatch.engine.fetching"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**os.environ, "PYTHONSAFEPATH": "1"},
                )
            with self._process as process:
                try:
                    self._listen(process, {"name": name, "revision": revision})
                finally:
                    process.kill()
        except OSError as error:
            self._error = Unavailable(f"no process can be started to fetch the model: {error.strerror}")

    def _listen(self, process: subprocess.Popen[str], order: dict[str, str | None]) -> None:
        into, out = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        into.write(json.dumps(order) + "\n")
        into.flush()  # and left open: its end would end the process
        for line in out:
            said: dict[str, Any] = json.loads(line)
            if "error" in said:
                kind = _ERRORS.get(said["error"], Unavailable)
                self._error = kind(said["message"], field=said["field"])
            elif "path" in said:
                self._found = ModelFiles(Path(said["path"]), said["commit"], said["pinned"])
            else:
                self.fetched, self.total = said["bytes"], said["total"]
                if not self._wanted():
                    return
        if self._found is None and self._error is None:
            self._error = Unavailable("the process that fetched the model's files ended: try again")


class _Teller:
    """Writes lines on standard output, one at a time, and how far a download is twice a second."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print is no line of ours
        self._lock = threading.Lock()
        self._at: tuple[int, int | None] = (0, None)

    def note(self, fetched: int, total: int | None) -> None:
        """Take note of how far it is. What several files are together never goes back."""
        self._at = max(self._at, (fetched, total), key=lambda at: at[0])

    def say(self, **fields: object) -> None:
        """Write a line."""
        with self._lock:
            self._out.write(json.dumps(fields) + "\n")
            self._out.flush()

    def beat(self) -> None:
        """Tell how far it is, for ever."""
        pause = threading.Event()
        while not pause.wait(_BEAT_SECONDS):
            try:
                self.say(bytes=self._at[0], total=self._at[1])
            except OSError:  # nobody listens any more
                os._exit(1)


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Fetch what the first line asks for."""
    teller, order = _Teller(), json.loads(sys.stdin.readline())
    for background in (_leave_with_parent, teller.beat):
        threading.Thread(target=background, daemon=True).start()
    try:
        found = find_named(order["name"], order["revision"], exports=False, on_bytes=teller.note)
    except EmbatchError as error:
        teller.say(error=type(error).__name__, message=error.message, field=error.field)
    except Exception as error:  # noqa: BLE001  (the library's; whoever waits is told)
        teller.say(
            error="Unavailable",
            message=f"the files could not be fetched ({type(error).__name__})",
            field=None,
        )
    else:
        teller.say(path=str(found.path), commit=found.commit, pinned=found.pinned)
    os._exit(0)


if __name__ == "__main__":
    main()
