"""An engine outlives the request that first needed it."""

from __future__ import annotations

import os
import threading
import time

from embatch.engine.models import serve_model
from embatch.pool import LocalPool
from embatch.settings import Settings
from embatch.shard import RequestRow, ShardCutter


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
            (status,) = pool.status()
            assert status.pid is not None
            # The signal, if there is one, has been sent by now; its effect takes a moment.
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                os.kill(status.pid, 0)
                assert pool.status()[0].pid == status.pid
                time.sleep(0.02)
            assert status.restarts == 0
    finally:
        pool.close(0.0)
