"""What tests of the pool share: shards, pools that leave nothing behind, and engines broken on purpose."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from embatch.engine.models import serve_model
from embatch.pool.local import LocalPool
from embatch.service.cutting import ShardCutter
from embatch.settings import Settings
from embatch.shard import Done, RequestRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from embatch.engine.models import ServedModel
    from embatch.pool.protocol import Origin, Pool

QUICK = replace(
    Settings(), micro_batch_seconds=1.0, heartbeat_seconds=2.0, bulk_nice=0, micro_batch_tokens=64
)
"""Limits short enough to wait for; the texts of `texts` go eight to a micro-batch."""


def texts(count: int) -> list[str]:
    """Return different texts of 8 tokens of the hashing engine each."""
    return [f"a text that has the number {at:05}" for at in range(count)]


def hashing(name: str = "test-model", *, threads: int = 0, **options: str) -> ServedModel:
    """Return a model of the hashing engine; another name has processes of its own."""
    return serve_model(name, engine="hashing", threads=threads, options=options)


def shard(*rows: str | RequestRow) -> pa.RecordBatch:
    """Return a payload shard."""
    cutter = ShardCutter(1 << 40, 1 << 30)
    for row in rows:
        assert cutter.add(RequestRow(row) if isinstance(row, str) else row) is None
    made = cutter.rest()
    assert made is not None
    return made


def embed(
    pool: Pool,
    model: ServedModel,
    requests: pa.RecordBatch,
    on_progress: Callable[[Done], None] = lambda _: None,
    *,
    suspect: bool = False,
    origin: Origin | None = None,
) -> pa.RecordBatch:
    """Embed in the bulk lane to the end."""
    found = pool.embed(
        model, requests, on_progress=on_progress, stop=threading.Event(), suspect=suspect, origin=origin
    )
    assert found is not None
    return found


def blamed(found: pa.RecordBatch) -> dict[int, str]:
    """Return the failed requests with their reasons."""
    reasons = found.column("error_reason").to_pylist()
    return {
        at: str(reasons[at])
        for at, code in enumerate(found.column("error_code").to_pylist())
        if code is not None
    }


def bytes_of(found: pa.RecordBatch) -> list[bytes | None]:
    """Return each request's vector as bytes, `None` where it failed."""
    values = found.column("embedding").to_pylist()
    return [None if value is None else repr(value).encode() for value in values]


@contextlib.contextmanager
def opened(settings: Settings = QUICK, environment: dict[str, str] | None = None) -> Iterator[LocalPool]:
    """Open a pool; in the end every process it shows must be gone."""
    pool = LocalPool(settings, environment=environment)
    try:
        yield pool
    finally:
        pids = [status.pid for status in pool.status() if status.pid is not None]
        pool.close(0.0)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 0)
                raise AssertionError(f"{pid} was left behind")


def await_end(pid: int, seconds: float = 30.0) -> None:
    """Return when a process, not necessarily a child, has ended; fail after `seconds`. Linux only."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], seconds)[0], f"{pid} still runs"
    finally:
        os.close(handle)


def sabotaged(folder: Path, code: str) -> dict[str, str]:
    """Return the environment in which every process runs `code` before its engine is loaded.

    The code finds `HashingEngine`, its own `forward` and `encode`, and `np`.
    """
    before = (
        "import os, sys\n"
        "import numpy as np\n"
        "from embatch.engine import hashing\n"
        "from embatch.engine.hashing import HashingEngine\n"
        "from embatch.engine.protocol import RowsRefused\n"
        "from embatch.errors import EngineTrouble\n"
        "forward, encode = HashingEngine.forward, HashingEngine.encode\n"
    )
    (folder / "sitecustomize.py").write_text(before + code)
    path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path)}
