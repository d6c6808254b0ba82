"""Where engines run: supervised child processes in two lanes, and what a pool is to those above."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from embatch.pool.lane import EngineStatus
from embatch.pool.local import LocalPool

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from embatch.engine.models import ServedModel
    from embatch.engine.protocol import Description

__all__ = ["EngineStatus", "LocalPool", "Pool"]


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
        on_progress: Callable[[int], None],
        stop: threading.Event,
        suspect: bool = False,
    ) -> pa.RecordBatch | None:
        """Embed a payload shard in the bulk lane: `shard.REQUESTS` in, `shard.results_schema` out.

        Rows keep their order; a faulty row keeps its fault; a row that an engine cannot bear gets an error.
        `on_progress(n)` is told of n more finished rows. With `suspect` everything runs in a process of its
        own. `None`: `stop` was set, heard between micro-batches.

        Raises:
            EngineTrouble: no engine process comes up; no row is to blame.
        """
        ...

    def query(self, model: ServedModel, requests: pa.RecordBatch) -> pa.RecordBatch:
        """Embed a few texts in the query lane, same columns as `embed`. Raises EngineTrouble."""
        ...

    def status(self) -> Sequence[EngineStatus]:
        """Return how each engine process does."""
        ...

    def close(self, grace: float) -> None:
        """End all processes; running micro-batches get `grace` seconds. Repeating is safe."""
        ...
