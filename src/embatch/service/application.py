"""The application: what can be asked of embatch, whatever face it is asked through.

Every method blocks and is safe to call from any thread. Names are `batches/{id}`, `files/{id}`,
`models/{name}`. All of them raise Unavailable when the storage or, where one is needed, an engine does not
answer; repeating is safe then, for a submit with an idempotency key.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from embatch.batch import FileRecord, Page, check_display_name
from embatch.errors import FailedPrecondition, IllegalTransition, NotFound, Unavailable
from embatch.service.intake import Draft, check_priority
from embatch.service.known_files import KnownFiles
from embatch.service.results import Results, read_results, unless_deleted
from embatch.service.submitting import Submitting
from embatch.service.uploads import file_id
from embatch.service.views import Health, after, batch_id, check_page_size, health, shown, token
from embatch.shard import Done
from embatch.states import State
from embatch.store.store import UNSET

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime

    from embatch.batch import Batch
    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.service.caching import Cached
    from embatch.service.interactive import Interactive
    from embatch.service.planner import Planner
    from embatch.service.sweeps import Ageing
    from embatch.service.uploads import Uploads
    from embatch.service.workers import Workers
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord
    from embatch.store.store import Store


@dataclass(frozen=True, slots=True)
class ServiceParts:
    """What a service is wired from; nobody starts them but the service."""

    store: Store
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    now: Callable[[], datetime]
    workers: Workers
    planner: Planner
    ageing: Ageing
    cached: Cached
    uploads: Uploads
    interactive: Interactive


class Service:
    """Batches, files and models over one store and its blobs.

    What is answered at once is `interactive`, and what comes in as a file `uploads`. Making one begins
    nothing: it plans, works and sweeps from `start` to `close`.
    """

    def __init__(self, parts: ServiceParts) -> None:
        self._store, self._blobs = parts.store, parts.blobs
        self._catalog, self._pool = parts.catalog, parts.pool
        self._settings, self._now = parts.settings, parts.now
        self._workers, self._planner, self._ageing = parts.workers, parts.planner, parts.ageing
        self._cached = parts.cached
        self.uploads, self.interactive = parts.uploads, parts.interactive
        self._files = KnownFiles(parts.store)
        self._updating = threading.Lock()
        """Has those who work hear of priorities in the order in which the store took them."""
        self._submitting = Submitting(
            parts.store, parts.blobs, parts.catalog, parts.pool, parts.settings, parts.now, parts.cached
        )

    @property
    def closing(self) -> threading.Event:
        """Set once it begins to end."""
        return self._planner.closing

    def start(self) -> None:
        """Begin, with what was accepted before. Once; see `recovery` for what a dead service left."""
        self._planner.start()
        self._workers.start()
        self._ageing.start()

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
        record = self._submitting.inline(draft, rows)
        self._workers.wake()
        return self._shown(record)

    def waits_for_engine(self, draft: Draft, rows: Collection[RequestRow]) -> bool:
        """Return whether `submit_inline` has to wait until the model is loaded. Raises NotFound."""
        return self._submitting.waits_for_engine(draft, rows)

    def submit_file(self, draft: Draft, file_name: str) -> Batch:
        """Accept a batch whose requests stand in an uploaded file, `files/{id}`: durable on return.

        The requests are read afterwards; counts appear when that has ended, and a file that cannot be read as
        a whole makes the batch FAILED. The file cannot be deleted before. Repeating is safe with an
        idempotency key.

        Raises:
            InvalidArgument, NotFound, AlreadyExists: as `submit_inline`.
            NoSuchFile: as it says.
            Unavailable: as `submit_inline`.
        """
        record = self._submitting.of_file(draft, file_name)
        self._planner.wake()
        return self._shown(record)

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

        A priority counts from the next micro-batch on, for what is worked as for what waits.

        Raises:
            InvalidArgument: as `submit_inline`.
            NotFound: no such batch.
        """
        check_display_name(display_name, "display_name")
        check_priority(priority or 0)
        id_, named = batch_id(name), UNSET if display_name is None else display_name
        with self._updating if priority is not None else nullcontext():
            record = self._store.update(id_, display_name=named, priority=priority, now=self._now())
            if priority is not None:
                self._workers.prioritise(id_, priority)
        return self._shown(record)

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
        self._workers.cancel(id_)
        self._planner.stop(id_)
        return self._shown(record)

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
        at_work = dict.fromkeys(self._workers.at_work())
        claimed = record.id in at_work
        if claimed:  # its turn comes in the engine, where a higher priority has all of them
            begun = record.successful_count + record.failed_count + self._workers.uncommitted(record.id).rows
        else:
            begun = record.state is not State.PENDING
        if begun or not record.planned:
            return None
        for other in at_work:
            with suppress(NotFound):
                found = self._store.get(other)
                before = found.priority > record.priority or not claimed
                # A run's own batches follow one another.
                if before and (found.run is None or found.run != record.run):
                    return f"batches/{other} is worked before it"
        return None

    def _shown(self, record: BatchRecord, ahead: str | None = None) -> Batch:
        cost = self._pool.unbatched_cost(record.model)
        if record.state.final:
            return shown(record, Done(0), cost)
        troubles = self._workers.troubles()
        waits = troubles.get(f"batches/{record.id}", troubles.get(record.model, ahead))
        return shown(record, self._workers.uncommitted(record.id), cost, waits)

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
            NoSuchFile: there is none.
        """
        return self._files.get(name)

    def files(self, page_size: int, page_token: str | None) -> Page[FileRecord]:
        """Return one page of uploaded files, newest first. Raises as `list`."""
        return self._files.list(page_size, page_token)

    def delete_file(self, name: str) -> None:
        """Delete an uploaded file; its bytes are gone on return.

        Raises:
            NoSuchFile: there is none, as when repeated.
            FailedPrecondition: a batch is still being planned from it.
        """
        self.uploads.delete(file_id(name, "name"))

    def results_of_file(self, name: str) -> Results:
        """Return the results that a `files/batch-{id}` stands for; see `results`.

        Raises:
            NoSuchFile: as it says.
            PermissionDenied: it was uploaded: such files are not given out again.
        """
        return self.results(self._files.batch_of(name))

    # life

    def health(self) -> Health:
        """Return whether the service can work, and if not why."""
        lack = None
        try:
            self._blobs.check_room(self._settings.free_bytes)
        except Unavailable as error:
            lack = error.message
        served = {model.name for model in self._catalog}
        return health(self._workers.troubles(), served, lack, self._store, self._pool.status())

    def sweep(self) -> None:
        """Expire and delete what has grown too old, as is done every few seconds. Repeating is safe."""
        self._ageing.sweep()

    @property
    def working(self) -> bool:
        """Whether shards are being worked."""
        return bool(self._workers.at_work())

    def pause(self) -> None:
        """Begin nothing more until `resume`: running micro-batches are finished, engines stay loaded.

        Whoever asks is answered, and what is accepted waits. Repeating is safe.
        """
        self._workers.pause()
        self._planner.pause()
        self._ageing.pause()

    def resume(self) -> None:
        """Go on with all that waits. Repeating is safe."""
        self._ageing.resume()
        self._planner.resume()
        self._workers.resume()

    def close(self, grace: float) -> None:
        """Stop: running micro-batches finish, everything else waits in the store for the next start.

        Waits at most `grace` seconds. What is unfinished then is done again. Repeating is safe.
        """
        deadline = time.monotonic() + grace

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        self._planner.close(0.0)
        self._workers.close(left())
        self._planner.close(left())
        self._ageing.close(left())
        self._pool.close(left())


__all__ = ["Draft", "Health", "Results", "Service"]
