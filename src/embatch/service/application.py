"""The application: what can be asked of embatch, whatever face it is asked through.

Every method blocks and is safe to call from any thread. Names are `batches/{id}`, `files/{id}`,
`models/{name}`. All of them raise Unavailable when the storage or, where one is needed, an engine does not
answer; repeating is safe then, for a submit with an idempotency key.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from embatch.batch import FileRecord, Page, check_display_name
from embatch.errors import (
    EmbatchError,
    FailedPrecondition,
    IllegalTransition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from embatch.service.caching import Cached
from embatch.service.dispatcher import Dispatcher
from embatch.service.intake import Draft, RequestValidator, ShardWriter, check_priority, known, refuse
from embatch.service.interactive import Interactive
from embatch.service.planner import Planner
from embatch.service.results import Results, read_results, unless_deleted
from embatch.service.sweeps import AgeClock, Ageing, since_boot
from embatch.service.uploads import RESULTS, Uploads, file_id, new_id
from embatch.service.views import Health, after, batch_id, check_page_size, health, shown, token
from embatch.shard import Done
from embatch.states import State
from embatch.store.cache import VectorCache
from embatch.store.store import UNSET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from embatch.batch import Batch
    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord
    from embatch.store.store import Store

_REQUESTS: Final = "batch.inputConfig.requests.requests"


class Service:
    """Batches, files and models over one data folder.

    What is answered at once is `interactive`, and what comes in as a file `uploads`.

    Making one takes up what the last service left, however it ended: claimed shards wait again, folders and
    files that no row speaks of are removed, planning goes on. Then it works until `close`.
    """

    def __init__(  # noqa: PLR0913  (the machine's two clocks among them)
        self,
        store: Store,
        blobs: Blobs,
        catalog: Catalog,
        pool: Pool,
        settings: Settings,
        *,
        now: Callable[[], datetime],
        steady: Callable[[], float] = since_boot,
    ) -> None:
        self._store, self._blobs, self._catalog, self._pool = store, blobs, catalog, pool
        self._settings, self._now = settings, now
        self.interactive = Interactive(catalog, pool, settings)
        self.uploads = Uploads(store, blobs, settings, now)
        self._dispatcher = Dispatcher(store, blobs, catalog, pool, settings, now=now)
        self._cached = Cached(VectorCache(blobs.root / "cache", settings.cache_bytes), pool, blobs)
        clock = AgeClock(now, steady)
        self._ageing = Ageing(store, blobs, settings, clock, expired=self._stopped)
        self._ageing.sweeps.append(lambda: self.uploads.sweep(clock.by(settings.file_expiry)))
        self._ageing.sweeps.append(self._cached.cache.prune)
        self._planner = Planner(
            store, blobs, catalog, pool, settings, now, self._cached, planned=self._dispatcher.wake
        )
        self._recover()
        self._planner.start()
        self._dispatcher.start()
        self._ageing.start()

    def _recover(self) -> None:
        self._store.release_all()
        for orphan in set(self._blobs.batch_folders()) - self._store.ids_of_batches():
            self._blobs.remove_batch(orphan)
        self.uploads.collect_orphans()

    # submit

    def submit_inline(self, draft: Draft, rows: Iterable[RequestRow]) -> Batch:
        """Accept a batch whose requests are given here: it and its texts are durable on return.

        Repeating is safe with an idempotency key. A fault of content fails its request alone.

        Raises:
            InvalidArgument: the field that is wrong by its form; nothing was stored.
            NotFound: no such model.
            AlreadyExists: the idempotency key belongs to another body.
            EngineTrouble: requests name dimensions, and only loading tells how many this model has.
            Unavailable: the disk has no room for more (STORAGE_LOW).
        """
        model = self._accepting(draft)
        most = self._settings.inline_requests
        held = list(islice(rows, most + 1))
        if not held:
            raise InvalidArgument("the batch has no requests", field=_REQUESTS, reason="EMPTY_BATCH")
        if len(held) > most:
            raise InvalidArgument(
                f"an inline batch has at most {most} requests: upload a file",
                field=_REQUESTS,
                reason="TOO_MANY_REQUESTS_IN_BATCH",
            )
        if any(row.dimensions is not None for row in held):
            model = known(model, self._pool)
        for at, row in enumerate(held):
            refuse(row, at, model)
        new_name = new_id(36)
        cached = None if draft.run is None else self._cached
        writer = ShardWriter(self._blobs, new_name, RequestValidator(model, self._settings), cached)
        try:
            shards = list(writer.shards(held))
        except BaseException:
            self._blobs.remove_batch(new_name)
            raise
        new = replace(draft.new(new_name, model, self._now(), self._settings), notes=writer.notes())
        try:
            record, existed = self._store.accept(new, shards)
        except EmbatchError as error:
            # After STORAGE_ERROR the batch may yet turn out to be accepted: the next start finds out.
            if error.reason != "STORAGE_ERROR":
                self._blobs.remove_batch(new_name)
            raise
        if existed:
            self._blobs.remove_batch(new_name)
        self._dispatcher.wake()
        return self._shown(record)

    def submit_file(self, draft: Draft, file_name: str) -> Batch:
        """Accept a batch whose requests stand in an uploaded file, `files/{id}`: durable on return.

        The requests are read afterwards; counts appear when that has ended, and a file that cannot be read as
        a whole makes the batch FAILED. The file cannot be deleted before. Repeating is safe with an
        idempotency key.

        Raises:
            InvalidArgument, NotFound, AlreadyExists: as `submit_inline`.
            PermissionDenied: no such file.
            Unavailable: as `submit_inline`.
        """
        model = self._accepting(draft)
        file = file_id(file_name, "batch.inputConfig.fileName")
        record = self._store.accept_of_file(draft.new(new_id(36), model, self._now(), self._settings, file))
        self._planner.wake()
        return self._shown(record)

    def _accepting(self, draft: Draft) -> ServedModel:
        """Return the model of a batch that may be accepted."""
        draft.check()
        model = self._catalog.resolve(draft.model)
        self._blobs.check_room(self._settings.free_bytes)
        return model

    # look, change, stop

    def get(self, name: str) -> Batch:
        """Return a batch as it is now. Raises NotFound."""
        record = self._store.get(batch_id(name))
        return self._shown(record, self._ahead(record))

    def list(self, page_size: int, page_token: str | None) -> Page[Batch]:
        """Return one page of batches, newest first, each exactly once over all pages.

        Raises:
            InvalidArgument: the size is not positive, or the token is not one of ours.
        """
        check_page_size(page_size)
        records = self._store.list(page_size + 1, after(page_token))
        last = records[page_size - 1] if len(records) > page_size else None
        following = None if last is None else token(last.create_time, last.id)
        return Page(tuple(self._shown(record) for record in records[:page_size]), following)

    def update(self, name: str, *, display_name: str | None = None, priority: int | None = None) -> Batch:
        """Change display name or priority; `None` leaves it. Durable on return; repeating is safe.

        Raises:
            InvalidArgument: as `submit_inline`.
            NotFound: no such batch.
        """
        check_display_name(display_name, "batch.displayName")
        check_priority(priority or 0)
        named = UNSET if display_name is None else display_name
        return self._shown(
            self._store.update(batch_id(name), display_name=named, priority=priority, now=self._now())
        )

    def cancel(self, name: str) -> Batch:
        """Stop a batch, final and durable on return; a batch that is final already is left as it is.

        What was finished stays readable; what is running ends after its micro-batch and is dropped.

        Raises:
            NotFound: no such batch.
        """
        id_ = batch_id(name)
        try:
            record = self._store.cancel(id_, self._now())
        except IllegalTransition:
            return self.get(name)
        self._stopped(id_)
        return self._shown(record)

    def _stopped(self, id_: str) -> None:
        self._dispatcher.cancel(id_)
        self._planner.stop(id_)

    def delete(self, name: str) -> None:
        """Delete a final batch with its texts and embeddings; gone for good on return.

        Raises:
            NotFound: no such batch, as when repeated.
            FailedPrecondition: it is not final: cancel it first.
        """
        id_ = batch_id(name)
        record = self._store.get(id_)
        if record.run is not None and record.state is State.COMPLETED:
            self._cached.stage(record, self._store.shards(id_), self._catalog)
        self._store.delete(id_)
        self._blobs.remove_batch(id_)

    def publish(self, run: str) -> int:
        """Let the vectors of a run's deleted batches answer later runs; return how many are new.

        Durable on return; repeating is safe. Raises InvalidArgument for what cannot name a run.
        """
        return self._cached.cache.publish(run)

    def inline(self, name: str) -> bool:
        """Return whether a batch's requests were given inline, as its results are then. Raises NotFound."""
        return self._store.get(batch_id(name)).inline

    def results(self, name: str) -> Results:
        """Return the results of a final batch, shard by shard, in order, every request exactly once.

        Requests that a stopped batch did not reach have the error CANCELLED or EXPIRED.

        Raises:
            NotFound: no such batch; while `parts` is read: it was deleted just now.
            FailedPrecondition: it is not final yet.
            DataLoss: while `parts` is read: a stored file does not match its checksum.
            Unavailable: while `parts` is read: a stored file cannot be read just now.
        """
        record = self._store.get(batch_id(name))
        if not record.state.final:
            raise FailedPrecondition(f"the batch is {record.state}: its results can be read once it is done")
        shards = self._store.shards(record.id)
        if sum(shard.payload.request_count for shard in shards) != record.request_count:
            raise NotFound(f"batches/{record.id} was deleted just now")
        try:
            native = self._catalog.resolve(record.model).dimensions or 1
        except NotFound:  # not served any more; stored vectors tell their own size
            native = 1
        found = read_results(self._shown(record), record, shards, self._blobs, native=native)
        return replace(found, parts=unless_deleted(found.parts, lambda: self._store.get(record.id)))

    def _ahead(self, record: BatchRecord) -> str | None:
        """Return why a batch that nothing keeps from being worked has not begun; `None`: it is about to."""
        at_work = self._dispatcher.at_work()
        if record.state is not State.PENDING or not record.planned or record.id in at_work:
            return None
        for other in at_work:
            with suppress(NotFound):
                run = self._store.get(other).run
                if run is None or run != record.run:  # a run's own batches follow one another
                    return f"batches/{other} is worked before it"
        return None

    def _shown(self, record: BatchRecord, ahead: str | None = None) -> Batch:
        alone = self._pool.alone(record.model)
        if record.state.final:
            return shown(record, Done(0), alone)
        troubles = self._dispatcher.troubles()
        waits = troubles.get(f"batches/{record.id}", troubles.get(record.model, ahead))
        return shown(record, self._dispatcher.uncommitted(record.id), alone, waits)

    # models

    def models(self) -> Sequence[ServedModel]:
        """Return the served models, the default first."""
        return list(self._catalog)

    def model(self, name: str) -> ServedModel:
        """Return a served model by name or alias. Raises NotFound."""
        return self._catalog.resolve(name)

    def naming(self, model: ServedModel) -> Callable[[str], bool]:
        """Return what tells whether a name means this served model."""
        return self._catalog.naming(model)

    # files

    def file(self, name: str) -> FileRecord:
        """Return a file; the results of a file batch are one too, of unknown size.

        Raises:
            PermissionDenied: there is none.
        """
        id_ = file_id(name, "name")
        record = self._batch_of(id_)
        if record is None:
            return self._store.file(id_)
        end, kind = record.end_time or record.update_time, "application/jsonl"
        return FileRecord(id_, record.display_name, kind, 0, "", end, end, None, "GENERATED", "")

    def files(self, page_size: int, page_token: str | None) -> Page[FileRecord]:
        """Return one page of uploaded files, newest first. Raises as `list`."""
        check_page_size(page_size)
        records = self._store.files(page_size + 1, after(page_token))
        last = records[page_size - 1] if len(records) > page_size else None
        return Page(tuple(records[:page_size]), None if last is None else token(last.create_time, last.id))

    def delete_file(self, name: str) -> None:
        """Delete an uploaded file; its bytes are gone on return.

        Raises:
            PermissionDenied: there is none, as when repeated.
            FailedPrecondition: a batch is still being planned from it.
        """
        self.uploads.delete(file_id(name, "name"))

    def results_of_file(self, name: str) -> Results:
        """Return the results that a `files/batch-{id}` stands for; see `results`.

        Raises:
            PermissionDenied: no such file, or one that was uploaded: those are not given out again.
        """
        id_ = file_id(name, "name")
        record = self._batch_of(id_)
        if record is None:
            self._store.file(id_)
            raise PermissionDenied("uploaded files are not given out again", field="name")
        return self.results(f"batches/{record.id}")

    def _batch_of(self, id_: str) -> BatchRecord | None:
        """Return the final batch whose results a file is; `None` for other files."""
        if not id_.startswith(RESULTS):
            return None
        try:
            record = self._store.get(id_.removeprefix(RESULTS))
        except NotFound:
            return None
        return None if record.inline or not record.state.final else record

    # life

    def health(self) -> Health:
        """Return whether the service can work, and if not why."""
        lack = None
        try:
            self._blobs.check_room(self._settings.free_bytes)
        except Unavailable as error:
            lack = error.message
        served = {model.name for model in self._catalog}
        return health(self._dispatcher.troubles(), served, lack, self._store, self._pool.status())

    def sweep(self) -> None:
        """Expire and delete what has grown too old, as is done every few seconds. Repeating is safe."""
        self._ageing.sweep()

    def close(self, grace: float) -> None:
        """Stop: running micro-batches finish, everything else waits in the store for the next start.

        Waits at most `grace` seconds. What is unfinished then is done again. Repeating is safe.
        """
        deadline = time.monotonic() + grace

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        self._planner.close(0.0)
        self._dispatcher.close(left())
        self._planner.close(left())
        self._ageing.close(left())
        self._pool.close(left())


__all__ = ["Draft", "Health", "Results", "Service"]
