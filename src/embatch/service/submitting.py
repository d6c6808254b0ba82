"""A submit: what it asks for checked, its requests written as shards, then the row that makes it a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from embatch.errors import EmbatchError, InvalidArgument
from embatch.service.intake import Draft, RequestValidator, ShardWriter, known, refuse
from embatch.service.uploads import file_id, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.service.caching import Cached
    from embatch.settings import Settings
    from embatch.shard import RequestRow
    from embatch.store.blobs import Blobs
    from embatch.store.records import BatchRecord
    from embatch.store.store import Store


@dataclass(frozen=True, slots=True)
class Submitting:
    """Accepts batches. What each method raises, `application.Service` says."""

    store: Store
    blobs: Blobs
    catalog: Catalog
    pool: Pool
    settings: Settings
    now: Callable[[], datetime]
    cached: Cached

    def waits_for_engine(self, draft: Draft, rows: Collection[RequestRow]) -> bool:
        """Return whether `inline` needs what only a loaded model tells: its native dimensions, its identity.

        Raises:
            NotFound: no such model.
        """
        if not rows:
            return False
        return draft.run is not None or _asks_unknown(self.catalog.resolve(draft.model), rows)

    def inline(self, draft: Draft, rows: Iterable[RequestRow]) -> BatchRecord:
        """Accept a batch whose requests are given here: it and its texts are durable on return."""
        model = self._accepting(draft)
        most = self.settings.inline_requests
        held = list(islice(rows, most + 1))
        if not held:
            raise InvalidArgument("the batch has no requests", field="requests", reason="EMPTY_BATCH")
        if len(held) > most:
            raise InvalidArgument(
                f"an inline batch has at most {most} requests: upload a file",
                field="requests",
                reason="TOO_MANY_REQUESTS_IN_BATCH",
            )
        if _asks_unknown(model, held):
            model = known(model, self.pool)
        for at, row in enumerate(held):
            refuse(row, at, model)
        new_name = new_id(36)
        cached = None if draft.run is None else self.cached
        writer = ShardWriter(self.blobs, new_name, RequestValidator(model, self.settings), cached)
        try:
            shards = list(writer.shards(held))
        except BaseException:
            self.blobs.remove_batch(new_name)
            raise
        new = replace(draft.new(new_name, model, self.now(), self.settings), notes=writer.notes())
        try:
            record, existed = self.store.accept(new, shards)
        except EmbatchError as error:
            # After STORAGE_ERROR the batch may yet turn out to be accepted: the next start finds out.
            if error.reason != "STORAGE_ERROR":
                self.blobs.remove_batch(new_name)
            raise
        if existed:
            self.blobs.remove_batch(new_name)
        return record

    def of_file(self, draft: Draft, file_name: str) -> BatchRecord:
        """Accept a batch whose requests stand in an uploaded file, `files/{id}`: durable on return."""
        model = self._accepting(draft)
        file = file_id(file_name, "input_file")
        return self.store.accept_of_file(draft.new(new_id(36), model, self.now(), self.settings, file))

    def _accepting(self, draft: Draft) -> ServedModel:
        """Return the model of a batch that may be accepted."""
        draft.check()
        model = self.catalog.resolve(draft.model)
        self.blobs.check_room(self.settings.free_bytes)
        return model


def _asks_unknown(model: ServedModel, rows: Iterable[RequestRow]) -> bool:
    """Return whether requests name dimensions and only loading tells how many the model has."""
    return model.dimensions is None and any(row.dimensions is not None for row in rows)
