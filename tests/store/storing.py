"""Small batches, shards and files for the store's tests; and one step of work as the dispatcher does it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from embatch.batch import FileRecord
from embatch.store.connect import Database, connect
from embatch.store.records import (
    BatchRecord,
    Claim,
    Committed,
    NewBatch,
    PayloadShard,
    ResultShard,
    UploadRecord,
)
from embatch.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)
DIGEST = "0123456789abcdef" * 4


def at(seconds: float) -> datetime:
    """Return a time so long after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def open_database(folder: Path) -> Database:
    """Open the SQLite database of a folder, for a store that a test looks behind."""
    return connect(f"sqlite:///{folder / 'embatch.db'}")


def open_store(folder: Path) -> Store:
    """Open the SQLite store of a folder."""
    return Store(open_database(folder))


def new_batch(
    name: str, *, age: float = 0.0, input_file: str | None = None, key: str | None = None
) -> NewBatch:
    """Return a batch made `age` seconds before `NOW`, which expires an hour after."""
    return NewBatch(
        id=name,
        model="test-model",
        display_name=f"batch {name}",
        priority=0,
        inline=input_file is None,
        input_file=input_file,
        idempotency_key=key,
        body_digest="body",
        create_time=at(-age),
        expire_time=at(3600),
        notes=("a note",),
    )


def payload(number: int = 0, *, requests: int = 3, dimensions: int = 0) -> PayloadShard:
    """Return a payload shard that stands in no file."""
    return PayloadShard(number, f"batches/x/payload-{number:05}.arrow", DIGEST, requests, 100, dimensions)


def accept(store: Store, name: str, *, shards: int = 1, priority: int = 0, age: float = 0.0) -> BatchRecord:
    """Accept an inline batch of shards with three requests each."""
    new = replace(new_batch(name, age=age), priority=priority)
    record, existed = store.accept(new, [payload(number) for number in range(shards)])
    assert not existed
    return record


def accept_file(store: Store, name: str) -> None:
    """Accept a batch whose requests stand in the file `f`; nothing of it is planned."""
    store.accept(new_batch(name, input_file="f"), [])


def claim(store: Store) -> Claim:
    """Claim; something must be waiting."""
    found = store.claim(NOW)
    assert found is not None
    return found


def result(claimed: Claim, *, failed: int = 0) -> ResultShard:
    """Return a result for all requests of a claim; ten tokens for each that succeeded."""
    good = claimed.payload.request_count - failed
    path = f"batches/x/result-{claimed.number:05}-{claimed.attempt}.arrow"
    return ResultShard(path, DIGEST, good, failed, 10 * good, 384)


def commit(store: Store, claimed: Claim, *, failed: int = 0) -> Committed:
    """Commit a claim two seconds after `NOW`."""
    return store.commit(claimed, result(claimed, failed=failed), at(2))


def work_off(store: Store) -> list[Claim]:
    """Claim and commit until nothing waits; return the claims."""
    done: list[Claim] = []
    while (found := store.claim(NOW)) is not None:
        assert commit(store, found).accepted
        done.append(found)
    return done


def uploaded(file_id: str, *, age: float = 0.0, lives: float | None = 3600.0) -> FileRecord:
    """Return a file made `age` seconds before `NOW`."""
    expires = None if lives is None else at(lives)
    return FileRecord(
        file_id,
        "notes.jsonl",
        "application/jsonl",
        42,
        DIGEST,
        at(-age),
        at(-age),
        expires,
        "UPLOADED",
        f"files/{file_id}",
    )


def upload(token: str, file_id: str) -> UploadRecord:
    """Return an upload that announced no size."""
    return UploadRecord(token, file_id, "notes.jsonl", "application/jsonl", None, NOW)


def add_file(store: Store, file: FileRecord) -> None:
    """Bring a file in as an upload does."""
    store.begin_upload(upload(f"token-{file.id}", file.id))
    store.finish_upload(f"token-{file.id}", file)
