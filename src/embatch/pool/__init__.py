"""Where engines run: supervised child processes in two lanes, and what a pool is to those above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from embatch.pool.lane import EngineStatus
from embatch.pool.local import LocalPool, Referenced

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description
    from embatch.shard import Done

__all__ = ["EngineStatus", "LocalPool", "Pool", "Referenced"]


class Pool(Protocol):
    """Texts in, vectors out, whatever happens to the processes in between. Every method may block."""

    def describe(self, model: ServedModel) -> Description:
        """Return what is loaded for a model, loading it if need be. Raises EngineTrouble."""
        ...

    def embed(
        self,
        model: ServedModel,
        requests: pa.RecordBatch,
        *,
        on_progress: Callable[[Done], None],
        stop: threading.Event,
        suspect: bool = False,
    ) -> pa.RecordBatch | None:
        """Embed a payload shard in the bulk lane: `shard.REQUESTS` in, `shard.results_schema` out.

        Rows keep their order; a faulty row keeps its fault; a row that an engine cannot bear gets an error.
        Rows that come with a vector (`shard.FROZEN`) keep it. `on_progress` is told what more is finished.
        With `suspect` everything runs in a process of its own. `None`: `stop` was set, heard between
        micro-batches.

        Raises:
            EngineTrouble: no engine process comes up; no row is to blame.
        """
        ...

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """Embed a few texts in the query lane, same columns as `embed`. Raises EngineTrouble."""
        ...

    def reference(self, model: ServedModel, requests: pa.RecordBatch) -> Referenced:
        """Embed a few texts by the reference path: float32, one text at a time. Raises EngineTrouble.

        It waits behind the bulk work of the moment. Without texts it waits for the bulk engine alone, and an
        engine of its own, where it needs one, begins to load.
        """
        ...

    def count(self, model: ServedModel, requests: pa.RecordBatch) -> NDArray[np.int32]:
        """Return the tokens the model would see of each request, int32 (n,). Raises EngineTrouble."""
        ...

    def alone(self, model: str) -> float | None:
        """Return the CPU seconds a token costs one text at a time; `None`: not measured yet."""
        ...

    def status(self) -> Sequence[EngineStatus]:
        """Return how each engine process does."""
        ...

    def close(self, grace: float) -> None:
        """End all processes; running micro-batches get `grace` seconds. Repeating is safe."""
        ...
