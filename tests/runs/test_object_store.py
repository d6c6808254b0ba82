"""An upload that fails or is interrupted: the store keeps what it had, and nothing else."""

from __future__ import annotations

import io
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyarrow import fs

from embatch.errors import Unavailable
from embatch.runs.places import resolve
from embatch.runs.sinks.files import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

pytest_plugins = ["stores"]

MIB = 1 << 20
SENT = 16 * MIB
"""More than the libraries hold back: something has been sent when the harm comes."""


def _broken() -> None:
    raise OSError(5, "Input/output error")


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """What presses Ctrl-C, and returns when the process has seen it."""
    seen = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.set()
        signal.default_int_handler(number, frame)

    def press() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert seen.wait(30)

    before = signal.signal(signal.SIGINT, interrupt)
    yield press
    signal.signal(signal.SIGINT, before)


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


def _spool(place: str, harm: Callable[[], None] | None = None) -> Spool:
    spool = Spool(place)
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
    request: pytest.FixtureRequest, ctrl_c: Callable[[], None], store: str, kind: str, earlier: bytes
) -> None:
    """The object that was there stays byte for byte, no other appears, and the next call writes it."""
    place = f"{request.getfixturevalue(store)}/{kind}/{bool(earlier)}/out.jsonl"
    system, path = resolve(place)
    if earlier:
        with system.open_output_stream(path) as out:
            out.write(earlier)
    before = _objects(system, path.partition("/")[0])
    assert (path in before) == bool(earlier)
    spool = _spool(place, _broken if kind == "broken" else ctrl_c)
    with pytest.raises(Unavailable if kind == "broken" else KeyboardInterrupt):
        spool.settle(rejected=False)
    spool.drop()
    assert _objects(system, path.partition("/")[0]) == before
    if earlier:
        with system.open_input_stream(path) as stored:
            assert stored.read() == earlier
    assert _spool(place).settle(rejected=False).bytes == MIB == system.get_file_info(path).size
