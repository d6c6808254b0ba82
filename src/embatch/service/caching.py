"""What the vector cache is asked when a shard is written, and told when a run drops a batch.

The key of a request is its text after the prompt, under the identity of the engine that embeds it: weights,
tokenizer, pooling, truncation and numerics. Another task type, model or precision never meets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from embatch.engine.protocol import computed_by
from embatch.errors import DataLoss, EngineTrouble, NotFound, Unavailable
from embatch.events import NotCached, emit
from embatch.pool.embedding import composed
from embatch.shard import COMPUTED_BY, IDENTITY, precomputed, with_precomputed
from embatch.store.cache import Entries, key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool
    from embatch.store.blobs import Blobs
    from embatch.store.cache import VectorCache
    from embatch.store.records import BatchRecord, ShardRecord


@dataclass(frozen=True, slots=True)
class Cached:
    """The cache, as shards see it."""

    cache: VectorCache
    pool: Pool
    blobs: Blobs

    def with_precomputed(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """Return a payload shard with the vectors that are known of its requests; as it is without any."""
        if self.cache.empty:
            return requests
        try:
            about = self.pool.describe(model)
        except EngineTrouble:  # the shard can wait for the engine without the cache
            return requests
        sound = np.asarray(requests.column("text").is_valid(), np.bool_)
        found = self.cache.find(_keys(requests, sound, about.identity, about.prompts))
        if found is None:
            return requests
        known = np.zeros(requests.num_rows, np.bool_)
        known[np.flatnonzero(sound)[found[0]]] = True
        given = with_precomputed(requests, known, found[1].vectors, found[1].tokens, found[1].truncated)
        return given.replace_schema_metadata({COMPUTED_BY: computed_by(about).encode()})

    def stage(self, record: BatchRecord, shards: Sequence[ShardRecord], catalog: Catalog) -> None:
        """Keep what a completed batch computed until its run ends. Repeating is safe.

        What cannot be read or kept is left out: it will be computed again.
        """
        try:
            prompts = self.pool.describe(catalog.resolve(record.model)).prompts
            for shard in shards:
                self._stage(record, shard, prompts)
        except (DataLoss, NotFound, Unavailable) as error:
            emit(NotCached(batch=record.id, error=error.message))

    def _stage(self, record: BatchRecord, shard: ShardRecord, prompts: Mapping[str, str]) -> None:
        if shard.result is None or record.run is None:
            return
        payload = self.blobs.read(shard.payload.path, shard.payload.digest)
        results = self.blobs.read(shard.result.path, shard.result.digest)
        identity = (results.schema.metadata or {}).get(IDENTITY)
        fresh = np.asarray(pc.is_null(results.column("error_code")), np.bool_) & ~precomputed(payload)
        if identity is None or not fresh.any():
            return
        embedding: Any = results.column("embedding")
        vectors = np.asarray(embedding.values, np.float32).reshape(results.num_rows, -1)
        self.cache.stage(
            record.run,
            f"{record.id}-{shard.number:05}",
            Entries(
                _keys(payload, fresh, identity.decode(), prompts),
                vectors[fresh],
                results.column("tokens").to_numpy()[fresh],
                results.column("truncated").to_numpy(zero_copy_only=False)[fresh],
            ),
        )


def _keys(
    requests: pa.RecordBatch,
    which: np.ndarray[Any, np.dtype[np.bool_]],
    identity: str,
    prompts: Mapping[str, str],
) -> list[bytes]:
    rows = np.flatnonzero(which).tolist()
    return [key(identity, text) for text in composed(requests, rows, prompts)]
