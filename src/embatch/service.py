"""The application: what can be asked of embatch, whatever face it is asked through.

Every method blocks and is safe to call from any thread. Names are `batches/{id}`, `files/{id}`,
`models/{name}`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import orjson

from embatch.batch import Batch, BatchStats, Page
from embatch.dispatcher import Dispatcher
from embatch.errors import (
    DataLoss,
    EmbatchError,
    FailedPrecondition,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    TooLarge,
)
from embatch.intake import Judge, ShardWriter, notes, read_file, refuse
from embatch.reading import Results, read_results
from embatch.shard import ShardCutter
from embatch.states import State
from embatch.store.records import NewBatch
from embatch.store.store import UNSET
from embatch.store.times import micros
from embatch.uploads import Uploads, new_id
from embatch.wire import outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    import pyarrow as pa

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool import EngineStatus, Pool
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord, FileRecord
    from embatch.store.store import Store

DISPLAY_NAME: Final = 512
_INT64: Final = range(-(1 << 63), 1 << 63)
_PLANNED_AT_ONCE: Final = 16
_BATCH: Final = re.compile(r"batches/([a-z0-9]{1,64})")
_FILE: Final = re.compile(r"files/([a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?)")


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch as it is asked for, without its requests."""

    model: str | None = None
    """With or without `models/`, or an alias; `None` for the default."""
    display_name: str | None = None
    priority: int = 0
    idempotency_key: str | None = None
    """The same key gives the same batch again; `None` makes a new one each time."""
    body_digest: str | None = None
    """Tells a repetition from another request under the same key."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service can work."""

    ready: bool
    reasons: tuple[str, ...]
    store: str
    engines: tuple[EngineStatus, ...]


class Service:
    """Batches, interactive embedding, files and models over one data folder."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        catalog: Catalog,
        pool: Pool,
        settings: Settings,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store, self._blobs, self._catalog, self._pool = store, blobs, catalog, pool
        self._settings, self._now = settings, now
        self._dispatcher = Dispatcher(store, blobs, catalog, pool, settings, now=now)
        self._uploads = Uploads(store, blobs, settings, now)
        self._closing = threading.Event()
        self._planning = threading.Condition()
        self._to_plan = True
        self._recover()
        self._planner = threading.Thread(target=self._plan_files, name="planner", daemon=True)
        self._planner.start()
        self._dispatcher.start()

    def _recover(self) -> None:
        """Go on where the last service ended, however it ended. There is nothing else to repair."""
        self._store.release_all()
        known = self._store.ids_of_batches()
        for batch_id in list(self._blobs.batch_folders()):
            if batch_id not in known:
                self._blobs.remove_batch(batch_id)
        self._uploads.collect_orphans()

    # submit

    def submit_inline(self, draft: Draft, rows: Iterable[RequestRow]) -> Batch:
        """Accept a batch whose requests are given here, durable on return.

        Raises:
            InvalidArgument: the field that is wrong by its form; nothing was stored. Faults of content fail
                their request alone.
            NotFound: no such model.
            AlreadyExists: the idempotency key belongs to another body.
        """
        model = self._check(draft)
        held = list(rows)
        if not held:
            raise InvalidArgument(
                "the batch has no requests", field="batch.inputConfig.requests.requests", reason="EMPTY_BATCH"
            )
        if len(held) > self._settings.inline_requests:
            raise TooLarge(
                f"an inline batch has at most {self._settings.inline_requests} requests: upload a file",
                field="batch.inputConfig.requests.requests",
                reason="TOO_MANY_REQUESTS_IN_BATCH",
            )
        for at, row in enumerate(held):
            refuse(row, at, model)
        batch_id = new_id(36)
        writer = ShardWriter(self._blobs, batch_id, Judge(model, self._settings))
        shards = list(writer.shards(held))
        new = self._new(batch_id, draft, model, notes(model, writer.judge.prompted, writer.dimensioned))
        return self._accept(new, shards)

    def submit_file(self, draft: Draft, file_name: str) -> Batch:
        """Accept a batch whose requests stand in an uploaded file, durable on return; counts come later.

        Raises:
            InvalidArgument, NotFound, AlreadyExists: as `submit_inline`.
            PermissionDenied: no such file.
        """
        model = self._check(draft)
        record = self._store.file(_id(_FILE, file_name, "batch.inputConfig.fileName"))
        batch = self._accept(self._new(new_id(36), draft, model, (), input_file=record.id), [])
        with self._planning:
            self._to_plan = True
            self._planning.notify_all()
        return batch

    def _accept(self, new: NewBatch, shards: Sequence[object]) -> Batch:
        try:
            record, existed = self._store.accept(new, shards)  # type: ignore[arg-type]  # PayloadShard
        except EmbatchError:
            self._blobs.remove_batch(new.id)
            raise
        if existed:
            self._blobs.remove_batch(new.id)
        else:
            self._dispatcher.wake()
        return self._batch(record)

    def _check(self, draft: Draft) -> ServedModel:
        _check_display_name(draft.display_name)
        if draft.priority not in _INT64:
            raise InvalidArgument(
                "priority is a 64-bit integer", field="batch.priority", reason="OUT_OF_RANGE"
            )
        if draft.idempotency_key is not None and not 1 <= len(draft.idempotency_key) <= 512:
            raise InvalidArgument("an idempotency key has 1 to 512 characters", field="Idempotency-Key")
        return self._catalog.resolve(draft.model)

    def _new(
        self,
        batch_id: str,
        draft: Draft,
        model: ServedModel,
        said: tuple[str, ...],
        input_file: str | None = None,
    ) -> NewBatch:
        now = self._now()
        return NewBatch(
            batch_id,
            model.name,
            draft.display_name,
            draft.priority,
            input_file is None,
            input_file,
            draft.idempotency_key,
            draft.body_digest,
            now,
            now + timedelta(seconds=self._settings.batch_expiry),
            said,
        )

    # plan files

    def _plan_files(self) -> None:
        while True:
            with self._planning:
                self._planning.wait_for(lambda: self._to_plan or self._closing.is_set())
                if self._closing.is_set():
                    return
                self._to_plan = False
            for record in self._store.unplanned():
                self._plan(record)

    def _plan(self, record: BatchRecord) -> None:
        """Plan one file from its beginning: what a crash left of an earlier try is dropped first."""
        assert record.input_file is not None  # noqa: S101  (only file batches are unplanned)
        self._store.unplan(record.id)
        self._blobs.remove_batch(record.id)
        try:
            model = self._catalog.resolve(record.model)
            file = self._store.file(record.input_file)
            writer = ShardWriter(self._blobs, record.id, Judge(model, self._settings))
            rows = read_file(
                self._blobs.path(file.path), file, self._settings, lambda name: self._is(model, name)
            )
            held = []
            for shard in writer.shards(rows):
                if self._closing.is_set():
                    return
                held.append(shard)
                # A state that is final meanwhile ends the planning early.
                if len(held) % _PLANNED_AT_ONCE == 0 and self._store.get(record.id).state.final:
                    self._blobs.remove_batch(record.id)
                    return
            if not held:
                raise InvalidArgument("the file holds no request", reason="EMPTY_BATCH")
            self._store.note(record.id, notes(model, writer.judge.prompted, writer.dimensioned))
            if not self._store.plan(record.id, held, complete=True, now=self._now()):
                self._blobs.remove_batch(record.id)
        except (EmbatchError, OSError) as error:
            message = error.message if isinstance(error, EmbatchError) else "the input file cannot be read"
            # It may have been stopped meanwhile, which is what its user wanted.
            with contextlib.suppress(IllegalTransition, NotFound):
                self._store.fail(record.id, message, self._now())
        self._dispatcher.wake()

    def _is(self, model: ServedModel, name: str) -> bool:
        try:
            return self._catalog.resolve(name) is model
        except NotFound:
            return False

    # look, change, stop

    def get(self, name: str) -> Batch:
        """Return a batch as it is now. Raises NotFound."""
        return self._batch(self._store.get(_batch_id(name)))

    def list(self, page_size: int, page_token: str | None) -> Page[Batch]:
        """Return one page of batches, newest first, each exactly once over all pages.

        Raises:
            InvalidArgument: the token is not one of ours.
        """
        records = self._store.list(page_size + 1, _after(page_token))
        last = records[page_size - 1] if len(records) > page_size else None
        token = None if last is None else _token(last.create_time, last.id)
        return Page(tuple(self._batch(record) for record in records[:page_size]), token)

    def update(self, name: str, *, display_name: str | None = None, priority: int | None = None) -> Batch:
        """Change display name or priority; `None` leaves it. Durable on return; repeating is safe."""
        _check_display_name(display_name)
        if priority is not None and priority not in _INT64:
            raise InvalidArgument(
                "priority is a 64-bit integer", field="batch.priority", reason="OUT_OF_RANGE"
            )
        named = UNSET if display_name is None else display_name
        record = self._store.update(_batch_id(name), display_name=named, priority=priority, now=self._now())
        return self._batch(record)

    def cancel(self, name: str) -> Batch:
        """Stop a batch, final on return; what was finished stays readable. A final one is left as it is."""
        batch_id = _batch_id(name)
        try:
            record = self._store.cancel(batch_id, self._now())
        except IllegalTransition:
            record = self._store.get(batch_id)
        self._dispatcher.cancel(batch_id)
        return self._batch(record)

    def delete(self, name: str) -> None:
        """Delete a final batch with its texts and embeddings.

        Raises:
            NotFound: no such batch.
            FailedPrecondition: it is not final: cancel it first.
        """
        batch_id = _batch_id(name)
        self._store.delete(batch_id)
        self._blobs.remove_batch(batch_id)

    def inline(self, name: str) -> bool:
        """Return whether a batch's requests were given inline, so that its results are too."""
        return self._store.get(_batch_id(name)).inline

    def results(self, name: str) -> Results:
        """Return the results of a final batch, shard by shard, in order, every request exactly once.

        Raises:
            NotFound: no such batch.
            FailedPrecondition: it is not final yet.
            DataLoss: while reading, a result file does not match its checksum.
        """
        record = self._store.get(_batch_id(name))
        if not record.state.final:
            raise FailedPrecondition(f"the batch is {record.state}: its results can be read once it is done")
        known = self._catalog.resolve(record.model).dimensions if record.native_dimensions is None else None
        return read_results(
            self._batch(record), record, self._store.shards(record.id), self._blobs, native=known or 1
        )

    # interactive

    def embed_now(self, model: str | None, rows: Sequence[RequestRow]) -> tuple[ServedModel, pa.RecordBatch]:
        """Embed a few requests in the query lane: `results_schema` columns in their order.

        Raises:
            InvalidArgument: a request is at fault; `field` names its place.
            NotFound: no such model.
            EngineTrouble: no engine comes up.
        """
        served = self._catalog.resolve(model)
        judge, cutter = Judge(served, self._settings), ShardCutter(1 << 62, 1 << 30)
        for at, row in enumerate(rows):
            judged = judge.judge(row)
            if judged.fault is not None:
                word = judged.fault.reason.value if judged.fault.reason else None
                raise InvalidArgument(judged.fault.message, field=f"requests[{at}].content", reason=word)
            cutter.add(judged)
        shard = cutter.rest()
        if shard is None:
            raise InvalidArgument("there is nothing to embed", field="requests", reason="EMPTY_BATCH")
        return served, self._pool.query(served, shard)

    def models(self) -> Sequence[ServedModel]:
        """Return the served models, the default first."""
        return list(self._catalog)

    def model(self, name: str) -> ServedModel:
        """Return a served model by name or alias. Raises NotFound."""
        return self._catalog.resolve(name)

    # files

    def begin_upload(
        self, *, file_id: str | None, display_name: str | None, mime_type: str, size: int | None
    ) -> str:
        """Begin an upload and return its token; see `uploads.Uploads.begin`."""
        return self._uploads.begin(file_id, display_name, mime_type, size)

    def upload_offset(self, token: str) -> int:
        """Return how many bytes of an upload have arrived. Raises NotFound."""
        return self._uploads.offset(token)

    def append(self, token: str, offset: int, chunk: bytes) -> int:
        """Append bytes to an upload; see `uploads.Uploads.append`."""
        return self._uploads.append(token, offset, chunk)

    def finish(self, token: str) -> FileRecord:
        """Make a file of an upload, durable on return; see `uploads.Uploads.finish`."""
        return self._uploads.finish(token)

    def drop_upload(self, token: str) -> None:
        """Forget an upload. Repeating is safe."""
        self._uploads.drop(token)

    def file(self, name: str) -> FileRecord:
        """Return a file; the results of a file batch are one too. Raises PermissionDenied for none."""
        file_id = _id(_FILE, name, "name")
        record = self._results_of(file_id)
        return self._store.file(file_id) if record is None else _results_file(file_id, record)

    def files(self, page_size: int, page_token: str | None) -> Page[FileRecord]:
        """Return one page of uploaded files, newest first. Raises InvalidArgument for a token not ours."""
        records = self._store.files(page_size + 1, _after(page_token))
        last = records[page_size - 1] if len(records) > page_size else None
        return Page(tuple(records[:page_size]), None if last is None else _token(last.create_time, last.id))

    def delete_file(self, name: str) -> None:
        """Delete an uploaded file.

        Raises:
            PermissionDenied: there is none.
            FailedPrecondition: a batch is still being planned from it.
        """
        self._uploads.delete(_id(_FILE, name, "name"))

    def results_of_file(self, name: str) -> Results:
        """Return the results that a `files/batch-{id}` stands for.

        Raises:
            PermissionDenied: no such file, or one that was uploaded: those are not given out again.
            FailedPrecondition: the batch is not final yet.
        """
        file_id = _id(_FILE, name, "name")
        record = self._results_of(file_id)
        if record is None:
            self._store.file(file_id)
            raise PermissionDenied("uploaded files are not given out again", field="name")
        return self.results(f"batches/{record.id}")

    def open_file(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a results file, a shard at a time; see `results_of_file` for what is refused."""
        results = self.results_of_file(name)
        return (b"".join(outputs.lines(part)) for part in results.parts)

    def _results_of(self, file_id: str) -> BatchRecord | None:
        if not file_id.startswith("batch-"):
            return None
        try:
            record = self._store.get(file_id.removeprefix("batch-"))
        except NotFound:
            return None
        return None if record.inline or not record.state.final else record

    # life

    def health(self) -> Health:
        """Return whether the service can work, and if not why."""
        reasons = [] if self._dispatcher.trouble is None else [self._dispatcher.trouble]
        if self._store.broken:
            reasons.append("the storage reported an error")
        return Health(not reasons, tuple(reasons), self._store.version(), tuple(self._pool.status()))

    def close(self, grace: float) -> None:
        """Stop gracefully: running micro-batches finish, everything else waits in the store."""
        self._closing.set()
        with self._planning:
            self._planning.notify_all()
        self._dispatcher.close(grace)
        self._planner.join(timeout=grace)
        self._pool.close(grace)

    def sweep(self) -> None:
        """Expire and delete what has grown too old. Repeating is safe."""
        self._dispatcher.sweep()
        self._uploads.sweep()

    def _batch(self, record: BatchRecord) -> Batch:
        pending = record.request_count - record.successful_count - record.failed_count
        stopped = record.state.final
        # Counts of a file batch appear when its planning has ended, all at once.
        total = record.request_count if record.planned or stopped else 0
        stats = BatchStats(
            total,
            record.successful_count if total else 0,
            (record.failed_count + (pending if stopped else 0)) if total else 0,
            0 if stopped or not total else pending,
            0 if stopped or not total else min(pending, self._dispatcher.uncommitted(record.id)),
        )
        readable = record.state.final and record.state is not State.FAILED
        return Batch(
            f"batches/{record.id}",
            f"models/{record.model}",
            record.state,
            record.display_name,
            record.priority,
            record.create_time,
            record.update_time,
            record.end_time,
            stats,
            None if record.input_file is None else f"files/{record.input_file}",
            f"files/batch-{record.id}" if readable and not record.inline else None,
            record.error,
            record.notes,
        )


def _results_file(file_id: str, record: BatchRecord) -> FileRecord:
    from embatch.store.records import FileRecord  # noqa: PLC0415

    end = record.end_time or record.update_time
    return FileRecord(
        file_id, record.display_name, "application/jsonl", 0, "", end, end, None, "GENERATED", ""
    )


def _check_display_name(name: str | None) -> None:
    if name is not None and (len(name) > DISPLAY_NAME or "\0" in name):
        raise InvalidArgument(
            f"displayName has at most {DISPLAY_NAME} characters and no NUL", field="batch.displayName"
        )


def _batch_id(name: str) -> str:
    found = _BATCH.fullmatch(name)
    if found is None:
        raise NotFound("there is no such batch: a batch is named batches/{id}")
    return found[1]


def _id(form: re.Pattern[str], name: str, field: str) -> str:
    found = form.fullmatch(name)
    if found is None:
        raise PermissionDenied(
            "You do not have permission to access the File or it may not exist: a file is named files/{id}.",
            field=field,
        )
    return found[1]


def _token(time: datetime, id_: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([micros(time), id_])).decode()


def _after(token: str | None) -> tuple[int, str] | None:
    if token is None:
        return None
    try:
        time, id_ = orjson.loads(base64.urlsafe_b64decode(token.encode()))
        return int(time), str(id_)
    except (ValueError, TypeError, binascii.Error):
        raise InvalidArgument(
            "this page token is not one of ours: take it from the page before", field="pageToken"
        ) from None


__all__ = ["DataLoss", "Draft", "Health", "Results", "Service"]
