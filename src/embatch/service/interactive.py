"""What is answered at once: embeddings for somebody who waits, the reference path, and token counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from embatch.errors import InvalidArgument
from embatch.service.cutting import ShardCutter
from embatch.service.intake import RequestValidator, check_dimensions, known
from embatch.shard import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from embatch.engine.models import Catalog, ServedModel
    from embatch.pool.protocol import Pool, Referenced
    from embatch.settings import Settings
    from embatch.shard import RequestRow


class Interactive:
    """Answers without storing anything. Every method blocks and is safe to call from any thread.

    All raise InvalidArgument (a request is at fault; `field` names its place, nothing was done), NotFound (no
    such model) and EngineTrouble (no engine comes up).
    """

    def __init__(self, catalog: Catalog, pool: Pool, settings: Settings) -> None:
        self._catalog, self._pool, self._settings = catalog, pool, settings

    def embed(self, model: str | None, rows: Sequence[RequestRow]) -> pa.RecordBatch:
        """Embed a few requests in the query lane, all of them or none.

        Columns as `results_schema`, in order, native dimensions; and `dimensions`, what each asked for.

        Raises:
            InvalidArgument: also where an engine cannot bear one: the first of them is named.
        """
        served = self._catalog.resolve(model)
        for at, row in enumerate(rows):
            check_dimensions(row.dimensions, at, served)
        results = self._pool.query(served, self._judged(served, rows))
        codes = results.column("error_code")
        if codes.null_count < results.num_rows:
            at = codes.is_valid().index(pa.scalar(value=True)).as_py()
            message = results.column("error_message")[at].as_py()
            raise InvalidArgument(message, field=f"requests[{at}].text")
        asked = pa.array([row.dimensions for row in rows], pa.int32())
        return results.append_column("dimensions", asked)

    def reference(self, model: str | None, rows: Sequence[RequestRow]) -> Referenced:
        """Embed a few requests by the reference path: float32, one text at a time, behind the bulk work.

        Without requests an engine of its own, where it needs one, begins to load; that is not waited for.
        """
        served = self._catalog.resolve(model)
        judged = self._judged(served, rows) if rows else pa.RecordBatch.from_pylist([], schema=REQUESTS)
        return self._pool.reference(served, judged)

    def count(self, model: str | None, rows: Sequence[RequestRow]) -> NDArray[np.int32]:
        """Return the tokens the model would see of each request, prompts and special tokens included.

        0 for a request that would fail, such as an empty text.
        """
        served = self._catalog.resolve(model)
        return self._pool.count(served, self._judged(served, rows, strict=False))

    def _judged(
        self, served: ServedModel, rows: Sequence[RequestRow], *, strict: bool = True
    ) -> pa.RecordBatch:
        wishes = any(row.dimensions is not None for row in rows)
        judge = RequestValidator(known(served, self._pool) if wishes else served, self._settings)
        cutter = ShardCutter(1 << 62, 1 << 30)
        for at, row in enumerate(rows):
            judged = judge.judge(row)
            if strict and judged.fault is not None:
                word = judged.fault.reason.value if judged.fault.reason else None
                raise InvalidArgument(judged.fault.message, field=f"requests[{at}].text", reason=word)
            cutter.add(judged)
        shard = cutter.rest()
        if shard is None:
            raise InvalidArgument("there is nothing to embed", field="requests", reason="EMPTY_BATCH")
        return shard
