"""An engine outlives the request that first needed it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from embatch.engine.models import serve_model
from embatch.pool.local import LocalPool
from embatch.service.cutting import ShardCutter
from embatch.settings import Settings
from embatch.shard import RequestRow


def test_an_engine_outlives_the_thread_that_started_it() -> None:
    """Request threads come and go; the kernel would take the end of one for the end of the service."""
    cutter = ShardCutter()
    cutter.add(RequestRow("a text"))
    requests = cutter.rest()
    assert requests is not None
    model, pool = serve_model("test-model", engine="hashing"), LocalPool(Settings())
    try:
        for _ in range(2):
            thread = threading.Thread(target=pool.query, args=(model, requests))
            thread.start()
            thread.join(60)
            # Python is done with a thread a moment before the kernel is, which would send the signal then.
            deadline = time.monotonic() + 60
            while Path(f"/proc/self/task/{thread.native_id}").exists():
                assert time.monotonic() < deadline, "the thread does not end"
                time.sleep(0.001)  # the kernel tells nobody
            (before,) = pool.status()
            pool.query(model, requests)
            (after,) = pool.status()
            assert before.pid is not None
            assert (after.pid, after.restarts) == (before.pid, 0)
    finally:
        pool.close(0.0)
