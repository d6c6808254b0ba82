"""Requests for more dimensions than the model has: what the folder promised, or an earlier model gave."""

from __future__ import annotations

from dataclasses import replace

import pools

from embatch.shard import RequestRow


def test_more_than_the_model_has_is_that_requests_error() -> None:
    """It would come back in fewer, and nobody could read the batch: it fails alone, in both lanes."""
    model = replace(pools.hashing(), dimensions=999)
    requests = pools.shard(*(RequestRow("a", dimensions=asked) for asked in (65, 64, None, 1, 999)))
    with pools.opened() as pool:
        for found in (pools.embed(pool, model, requests), pool.query(model, requests)):
            assert pools.blamed(found) == {0: "BAD_FIELD", 4: "BAD_FIELD"}
            assert "more dimensions than the model has" in found.column("error_message")[0].as_py()
            vectors = pools.bytes_of(found)
            assert vectors[1] == vectors[2] == vectors[3] is not None
