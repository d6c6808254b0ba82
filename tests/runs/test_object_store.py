"""An upload that fails or is interrupted: the store keeps what it had, and nothing else."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyarrow import fs

from embatch.errors import Unavailable
from embatch.runs.locations import resolve
from embatch.runs.sinks.files import SpooledFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

pytest_plugins = ["stores"]

MIB = 1 << 20
SENT = 16 * MIB
"""More than the libraries hold back: something has been sent when the harm comes."""


def _broken() -> None:
    raise OSError(5, "Input/output error")


def interrupted(place: str) -> None:
    """Press Ctrl-C while an upload is under way, and leave with 130: a process of its own does this.

    OpenVINO leaves a process that has unloaded it without a stack for its signals.
    """
    seen = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.set()
        signal.default_int_handler(number, frame)

    def press() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert seen.wait(120)

    signal.signal(signal.SIGINT, interrupt)
    spool = _spool(place, press)
    try:
        spool.settle(rejected=False)
    except KeyboardInterrupt:
        spool.drop()
        sys.exit(130)


class Harmed(type(Path())):  # type: ignore[misc]
    """A file to which something happens while it is read; it has no end then."""

    harm: Callable[[], None]

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """Open it."""
        path, harm = Path(self), self.harm

        class Reader(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if self.tell() < SENT:
                    return super().read(size) or b""
                harm()
                return bytes(MIB)

        return Reader(path, mode)


def _spool(place: str, harm: Callable[[], None] | None = None) -> SpooledFile:
    spool = SpooledFile(place)
    spool.path.write_bytes(bytes(MIB if harm is None else SENT))
    if harm is not None:
        spool.path = Harmed(spool.path)
        spool.path.harm = harm
    return spool


def _objects(system: fs.FileSystem, bucket: str) -> dict[str, int | None]:
    infos = system.get_file_info(fs.FileSelector(bucket, recursive=True))
    return {info.path: info.size for info in infos}


@pytest.mark.parametrize("store", ["s3", "gcs"])
@pytest.mark.parametrize("earlier", [b"", b"earlier"])
@pytest.mark.parametrize("kind", ["broken", "ctrl-c"])
def test_what_fails_changes_nothing(
    request: pytest.FixtureRequest, store: str, kind: str, earlier: bytes
) -> None:
    """The object that was there stays byte for byte, no other appears, and the next call writes it."""
    place = f"{request.getfixturevalue(store)}/{kind}/{bool(earlier)}/out.jsonl"
    system, path = resolve(place)
    if earlier:
        with system.open_output_stream(path) as out:
            out.write(earlier)
    before = _objects(system, path.partition("/")[0])
    assert (path in before) == bool(earlier)
    if kind == "broken":
        spool = _spool(place, _broken)
        with pytest.raises(Unavailable):
            spool.settle(rejected=False)
        spool.drop()
    else:
        script = "import sys, test_object_store; test_object_store.interrupted(sys.argv[1])"
        here = Path(__file__).parent
        assert subprocess.run([sys.executable, "-c", script, place], cwd=here, check=False).returncode == 130
    assert _objects(system, path.partition("/")[0]) == before
    if earlier:
        with system.open_input_stream(path) as stored:
            assert stored.read() == earlier
    assert _spool(place).settle(rejected=False).bytes == MIB == system.get_file_info(path).size
