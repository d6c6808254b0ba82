"""What the store alone does: durable accepts and claims, and how large the database gets.

    .venv/bin/python benchmarks/store.py [--folder DIR] [--accepts N]

`accepts` are small batches of one shard, each acknowledged after its commit is on disk, from 60 threads.
`claims` are of one thread, each durable, with 10,000 batches waiting; `shared` of two, as the dispatcher has.
`bytes` is the database with a million requests planned and done, at 200 bytes of text each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from embatch.service.cutting import SHARD_BYTES
from embatch.store.records import NewBatch, PayloadShard, ResultShard
from embatch.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 23, tzinfo=UTC)
THREADS = 60
WAITING = 10_000
REQUESTS = 1_000_000
TEXT_BYTES = 200


def batch(name: str) -> NewBatch:
    """Return a batch as a client of ours sends it, with a key."""
    expires = NOW + timedelta(days=2)
    return NewBatch(name, "all-MiniLM-L6-v2", "a batch", 0, True, None, f"key-{name}", "d" * 64, NOW, expires)  # noqa: FBT003  (inline)


def shard(name: str, number: int, requests: int) -> PayloadShard:
    """Return a payload shard with a path and a digest of the real length."""
    path = f"batches/{name}/payload-{number:05}.arrow"
    return PayloadShard(number, path, "0" * 64, requests, requests * TEXT_BYTES, 0)


def rate(count: int, work: Callable[[], object]) -> float:
    """Return how many a second."""
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def accepts(store: Store, count: int) -> float:
    """Return accepts a second from many threads."""

    def accept(number: int) -> None:
        name = f"{number:036}"
        store.accept(batch(name), [shard(name, 0, 3)])

    with ThreadPoolExecutor(THREADS) as pool:
        return rate(count, lambda: list(pool.map(accept, range(count))))


def claims(store: Store, count: int, threads: int) -> float:
    """Return claims a second."""
    with ThreadPoolExecutor(threads) as pool:
        return rate(count, lambda: list(pool.map(lambda _: store.claim(NOW), range(count))))


def a_million(store: Store, path: Path) -> tuple[float, float, float]:
    """Return (bytes a request, commits a second, milliseconds of one look) of one large batch."""
    name = "z" * 36
    each = SHARD_BYTES // TEXT_BYTES
    shards = [shard(name, number, each) for number in range(REQUESTS // each)]
    store.accept(batch(name), shards)

    def work() -> None:
        while (claim := store.claim(NOW)) is not None:
            result = f"batches/{name}/result-{claim.number:05}-{claim.attempt}.arrow"
            store.commit(claim, ResultShard(result, "0" * 64, each, 0, each * 40, 384), NOW)

    commits = rate(len(shards), work)
    look = 1000 / rate(200, lambda: [store.get(name) for _ in range(200)])
    store.close()
    return path.stat().st_size / REQUESTS, commits, look


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--folder", type=Path, help="where the databases are made; the disk measured")
    options.add_argument("--accepts", type=int, default=WAITING)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        store = Store.open(f"sqlite:///{folder}/small.db")
        print(f"{store.version()}")
        accepted = accepts(store, given.accepts)
        print(f"accepts   {accepted:8.0f} /s   durable, {THREADS} threads")
        alone, shared = claims(store, 1000, 1), claims(store, 1000, 2)
        print(f"claims    {alone:8.0f} /s   durable, one thread: {1000 / alone:.2f} ms each")
        print(f"          {shared:8.0f} /s   two threads")
        pages = 1000 / rate(50, lambda: [store.list(50, None) for _ in range(50)])
        print(f"page      {pages:8.2f} ms   of 50 batches")
        store.close()
        large = Path(folder) / "large.db"
        size, commits, look = a_million(Store.open(f"sqlite:///{large}"), large)
        print(f"database  {size:8.2f} bytes a request at {REQUESTS} requests")
        print(f"shards    {commits:8.0f} /s   claimed and committed, durable, one thread")
        print(f"look      {look:8.2f} ms   at a batch of {REQUESTS // (SHARD_BYTES // TEXT_BYTES)} shards")


if __name__ == "__main__":
    main()
