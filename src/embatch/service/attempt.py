"""One attempt at a claimed shard, step by step: each takes what the last one returned.

serve → read → check → embed → write → commit. What a step cannot do it raises; what becomes of the claim then
is the dispatcher's to say. Requests that fail before any engine sees them pass the steps in between as they
are.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow.compute as pc

from embatch.engine.protocol import computed_by
from embatch.errors import Code, DataLoss, EngineTrouble, NotFound, Reason, RequestError, Unavailable
from embatch.events import BatchModelChanged, PayloadLost, emit
from embatch.pool.protocol import Origin, Stopped
from embatch.service.results import LOST
from embatch.shard import COMPUTED_BY, Done, failed_results, refused, said_of
from embatch.store.records import KeptShard, ResultShard

if TYPE_CHECKING:
    import pyarrow as pa

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.store.blobs import Blobs
    from embatch.store.claims import Claims
    from embatch.store.records import Claim

_CHANGED: Final = RequestError(
    Code.FAILED_PRECONDITION,
    Reason.MODEL_CHANGED,
    "the model changed after the batch had begun (its files, its options or the engine), and vectors of two "
    "models cannot be compared: submit this request again, or the whole batch for vectors of one model",
)


class ForeignVectors(Exception):
    """Something else computed the first vectors of the batch while this shard was worked."""


@dataclass(slots=True, eq=False)
class Running:
    """A claimed shard that a slot works on."""

    claim: Claim
    stop: threading.Event = field(default_factory=threading.Event)
    origin: Origin = field(init=False)
    """Whose turn it is; its priority changes with the batch's."""
    draining: bool = False
    """Whether it is stopped for the service to close, and its batch goes on."""
    done: Done = field(default_factory=lambda: Done(0))
    """What is embedded and not yet durable."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.origin = Origin(self.claim.batch_id, self.claim.priority)

    def progress(self, done: Done) -> None:
        """Take note of what more is embedded."""
        with self._lock:
            self.done += done


class Served(NamedTuple):
    """A shard whose model is served."""

    running: Running
    model: ServedModel


class ShardPayload(NamedTuple):
    """A shard with its requests."""

    running: Running
    model: ServedModel
    requests: pa.RecordBatch


class Embedded(NamedTuple):
    """A shard in which every request has its vector or its error."""

    running: Running
    results: pa.RecordBatch

    @property
    def computed_by(self) -> str | None:
        """Digest of what made the vectors; `None` where no engine had a part in it."""
        return said_of(self.results, COMPUTED_BY)


class Written(NamedTuple):
    """A shard whose results are durable, though nobody knows of them yet."""

    claim: Claim
    result: ResultShard


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps. Thread-safe; each may be repeated, for all that counts happens in `commit`."""

    claims: Claims
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    suspect_attempts: int
    """Claims without a commit after which a shard is suspect; those that were excused do not count."""

    def serve(self, running: Running) -> Served:
        """Find the model. Raises EngineTrouble where it is not served now: it can be once it is back."""
        name = running.claim.model
        try:
            return Served(running, self.catalog.resolve(name))
        except NotFound as error:
            raise EngineTrouble(f"a batch waits for {name}: {error.message}") from None

    def read(self, served: Served) -> ShardPayload | Embedded:
        """Read the requests; those of a damaged file have failed.

        Raises:
            Unavailable: the file cannot be read just now.
            EngineTrouble: nobody can tell the dimensions of a model that does not come up.
        """
        running, model = served
        payload = running.claim.payload
        try:
            return ShardPayload(running, model, self.blobs.read(payload.path, payload.digest))
        except DataLoss:
            emit(PayloadLost(batch=running.claim.batch_id, shard=running.claim.number))
            native = model.dimensions or self.pool.describe(model).dimensions
            return Embedded(running, failed_results(0, payload.request_count, native, LOST))

    def check(self, payload: ShardPayload | Embedded) -> ShardPayload | Embedded:
        """See that the model is the one that computed the batch so far; if not, the requests have failed.

        Raises EngineTrouble.
        """
        if isinstance(payload, Embedded) or payload.running.claim.computed_by is None:
            return payload
        running, model, requests = payload
        about = self.pool.describe(model)
        if computed_by(about) == running.claim.computed_by:
            return payload
        emit(BatchModelChanged(batch=running.claim.batch_id, shard=running.claim.number))
        return Embedded(running, refused(requests, about.dimensions, _CHANGED))

    def embed(self, payload: ShardPayload | Embedded) -> Embedded:
        """Embed the requests, but for what an earlier attempt left.

        Raises:
            EngineTrouble: as `Pool.embed`.
            Unavailable: what was left cannot be read just now.
            Stopped: it was told to stop.
        """
        if isinstance(payload, Embedded):
            return payload
        running, model, requests = payload
        claim = running.claim
        if claim.kept is not None:
            with suppress(DataLoss):  # it is done again
                running.origin.kept = self.blobs.read(claim.kept.path, claim.kept.digest)
        results = self.pool.embed(
            model,
            requests,
            on_progress=running.progress,
            stop=running.stop,
            suspect=claim.attempt - claim.excused > self.suspect_attempts,
            origin=running.origin,
        )
        if results is None:
            raise Stopped
        return Embedded(running, results)

    def write(self, embedded: Embedded) -> Written:
        """Write the results to a file of this attempt's own. Raises Unavailable."""
        (claim, results), whose = (embedded.running.claim, embedded.results), embedded.computed_by
        path = f"batches/{claim.batch_id}/result-{claim.number:05}-{claim.attempt}.arrow"
        failed = results.num_rows - results.column("error_code").null_count
        kind: Any = results.schema.field("embedding").type
        result = ResultShard(
            path,
            self.blobs.write(path, results),
            results.num_rows - failed,
            failed,
            int(pc.sum(results.column("tokens")).as_py() or 0),
            kind.list_size,
            round(embedded.running.done.cpu_seconds * 1e6),
            whose if failed < results.num_rows else None,
        )
        return Written(claim, result)

    def commit(self, written: Written) -> None:
        """Make the results count, unless the claim was lost: then nothing is left of them.

        Raises:
            ForeignVectors: they may not stand beside those that the batch has by now.
            Unavailable: the store did not answer; only after STORAGE_ERROR they may count all the same.
        """
        claim, path = written.claim, written.result.path
        try:
            done = self.claims.commit(claim, written.result)
        except Unavailable as error:
            # Unless its fate is unknown, nothing was committed, and nobody will ask for this file.
            if error.reason != "STORAGE_ERROR":
                self.blobs.remove(path)
            raise
        if not done.accepted:  # a newer attempt owns the shard, the batch was stopped, or began otherwise
            self.blobs.remove(path)
        elif claim.kept is not None:
            self.blobs.remove(claim.kept.path)
        if done.state is None:  # it was deleted, and the file made its folder anew
            self.blobs.remove_batch(claim.batch_id)
        if done.foreign:
            raise ForeignVectors

    def release(self, running: Running, *, excused: bool = False) -> None:
        """Give a shard back; of one that is drained with what is finished of it, if there is room for that.

        Raises:
            Unavailable: the store did not answer. The next start gives it back.
        """
        claim, left = running.claim, running.origin.kept
        kept: KeptShard | None = None
        if running.draining and left is not None:
            path = kept_path(claim.batch_id, claim.number, claim.attempt)
            with suppress(Unavailable):
                kept = KeptShard(path, self.blobs.write(path, left))
        released = self.claims.release(claim, excused=excused, kept=kept)
        before = claim.kept if released else kept
        if kept is not None and before is not None:
            self.blobs.remove(before.path)


def kept_path(batch_id: str, number: int, attempt: int) -> str:
    """Return where an attempt leaves what it finished of a shard."""
    return f"batches/{batch_id}/kept-{number:05}-{attempt}.arrow"
