"""A payload shard on its way through an engine: composed, merged where equal, and put together again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embatch.engine.packing import distinct
from embatch.engine.protocol import EndpointTrouble, ModelChanged, computed_by
from embatch.engine.texts import compose
from embatch.errors import Code, Reason, RequestError
from embatch.pool.kept import KeptGroups, KeptRows, find, leave
from embatch.pool.protocol import Origin, Stopped
from embatch.pool.work import ShardWork
from embatch.shard import COMPUTED_BY, IDENTITY, PRECOMPUTED, Done, precomputed, results_schema, without_stale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from embatch.pool.kept import Kept
    from embatch.pool.protocol import Processes
    from embatch.pool.work import Outcome

TOO_LONG: Final = RequestError(
    Code.INVALID_ARGUMENT,
    Reason.TOO_LONG,
    "the text is longer than the model takes: shorten it, or leave auto_truncate out to have it cut",
)
_BEYOND: Final = RequestError(
    Code.INVALID_ARGUMENT,
    Reason.BAD_FIELD,
    "the request asks for more dimensions than the model has now: ask for fewer, or for none",
)
_COMPOSED: Final = ("text", "task_type", "title")
_ERROR: Final = ("error_code", "error_reason", "error_message")


@dataclass(slots=True)
class Embedding:
    """One shard, or a few texts, in one lane. Use once.

    Attributes:
        processes: the lane.
        requests: `shard.REQUESTS`, perhaps with the columns of `shard.PRECOMPUTED`.
        on_progress: told what is finished.
        stop: heard between micro-batches.
        doubted: as `ShardWork.doubted`.
        alone: as `ShardWork.alone`.
        origin: whose turn it is, and what an earlier attempt left.
        kept: where an endpoint's part of a shard waits for the next attempt; `None` keeps nothing.
    """

    processes: Processes
    requests: pa.RecordBatch
    on_progress: Callable[[Done], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)
    doubted: bool = False
    alone: bool = False
    origin: Origin = field(default_factory=Origin)
    kept: Kept | None = None

    def run(self) -> pa.RecordBatch:
        """Embed the sound requests, equal texts once; return `shard.results_schema` for all.

        Raises:
            Stopped: the stop signal was set; `origin.kept` is then what need not be done again.
            EngineTrouble: as `ShardWork.run`.
        """
        before, self.origin.kept = self.origin.kept, None
        about = self.processes.process(self.stop).await_ready()
        whose = computed_by(about)
        requests = without_stale(self.requests, whose)
        known = precomputed(requests)
        open_ = np.flatnonzero(_sound(requests) & ~known).tolist()
        counted = int(pc.sum(requests.column(PRECOMPUTED[1])).as_py()) if known.any() else 0
        self.on_progress(Done(requests.num_rows - len(open_), counted))
        merged = distinct(composed(requests, open_, about.prompts))
        repeats = np.bincount(np.array(merged.of, np.int64), minlength=len(merged.texts))
        told = 0.0

        def finished(rows: Sequence[int]) -> None:
            nonlocal told
            at = np.asarray(rows)
            tokens = int((work.outcome.tokens[at] * repeats[at]).sum())
            spent, told = work.outcome.cpu_seconds - told, work.outcome.cpu_seconds
            self.on_progress(Done(int(repeats[at].sum()), tokens, spent))

        part: KeptRows | KeptGroups | None = None
        if self.kept is not None and about.elsewhere:
            part = self.kept.take(whose, merged.texts)
        part = part or find(before, whose, merged.texts)
        work = ShardWork(
            merged.texts,
            about,
            self.processes,
            self.stop,
            finished,
            self.doubted,
            self.alone,
            known=part if isinstance(part, KeptRows) else None,
            kept=part if isinstance(part, KeptGroups) else None,
            origin=self.origin,
        )
        try:
            outcome = work.run()
        except EndpointTrouble as error:
            if self.kept is not None and about.elsewhere and not isinstance(error, ModelChanged):
                self.kept.put(whose, merged.texts, work.outcome)
            raise
        except Stopped:
            if about.elsewhere or work.plan is not None:
                plan = None if about.elsewhere else work.plan
                self.origin.kept = leave(whose, merged.texts, work.outcome, plan)
            raise
        found = _results(requests, open_, merged.of, outcome)
        return found.replace_schema_metadata({IDENTITY: about.identity.encode(), COMPUTED_BY: whose.encode()})

    def count(self) -> NDArray[np.int32]:
        """Return the tokens of each request, int32 (n,), 0 for a faulty one. Raises as `run`."""
        about = self.processes.process(self.stop).await_ready()
        sound = np.flatnonzero(_sound(self.requests)).tolist()
        merged = distinct(composed(self.requests, sound, about.prompts))
        work = ShardWork(merged.texts, about, self.processes, self.stop, lambda _: None)
        counts = np.zeros(self.requests.num_rows, np.int32)
        counts[sound] = work.count()[list(merged.of)]
        return counts


def composed(requests: pa.RecordBatch, rows: Sequence[int], prompts: Mapping[str, str]) -> Iterator[str]:
    """Return what the engine embeds of some requests: prompt, title and text as one."""
    if not prompts and requests.column("title").null_count == requests.num_rows:
        plain = requests.column("text").to_pylist()
        return (plain[at] or "" for at in rows)
    texts, task_types, titles = (requests.column(name).to_pylist() for name in _COMPOSED)
    return (compose(texts[at] or "", task_types[at], titles[at], prompts) for at in rows)


def _sound(requests: pa.RecordBatch) -> NDArray[np.bool_]:
    return np.asarray(requests.column("text").is_valid(), np.bool_)


def _results(
    requests: pa.RecordBatch, worked: Sequence[int], of: Sequence[int], outcome: Outcome
) -> pa.RecordBatch:
    """Put each text's outcome at every request that has it; others keep their fault or precomputed vector."""
    count, dimensions = requests.num_rows, outcome.vectors.shape[1]
    place = np.full(count, -1, np.int64)
    place[list(worked)] = list(of)
    vectors = np.zeros((count, dimensions), np.float32)
    tokens = np.zeros(count, np.int32)
    truncated = np.zeros(count, np.bool_)
    known = precomputed(requests)
    if known.any():
        embedding: Any = requests.column(PRECOMPUTED[0])
        vectors[known] = np.asarray(embedding.values, np.float32).reshape(count, -1)[known]
        tokens[known] = requests.column(PRECOMPUTED[1]).to_numpy()[known]
        truncated[known] = requests.column(PRECOMPUTED[2]).to_numpy(zero_copy_only=False)[known]
    errors: list[Any] = [requests.column(name) for name in _ERROR]
    beyond = _asked(requests) > dimensions
    beyond &= (place >= 0) | known
    looked_at = sorted({*_doubtful(requests, place, outcome, truncated), *np.flatnonzero(beyond).tolist()})
    if looked_at:
        errors = [column.to_pylist() for column in errors]
        for at in looked_at:
            error = outcome.errors.get(int(place[at])) or (_BEYOND if beyond[at] else TOO_LONG)
            reason = error.reason.value if error.reason else None
            errors[0][at], errors[1][at], errors[2][at] = error.code.number, reason, error.message
        kinds = (pa.int32(), pa.string(), pa.string())
        errors = [pa.array(column, kind) for column, kind in zip(errors, kinds, strict=True)]
    good = np.asarray(errors[0].is_null(), np.bool_)
    fresh = good & (place >= 0)
    vectors[fresh] = outcome.vectors[place[fresh]]
    tokens[fresh] = outcome.tokens[place[fresh]]
    truncated[fresh] = outcome.truncated[place[fresh]]
    for column in (vectors, tokens, truncated):
        column[~good] = 0
    return pa.RecordBatch.from_arrays(
        [
            requests.column("index"),
            pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), dimensions, mask=pa.array(~good)
            ),
            pa.array(tokens),
            pa.array(truncated),
            *errors,
        ],
        schema=results_schema(dimensions),
    )


def _asked(requests: pa.RecordBatch) -> NDArray[np.int32]:
    """Return the dimensions that each request asks for, 0 where it does not."""
    return np.asarray(requests.column("dimensions").fill_null(0), np.int32)


def _doubtful(
    requests: pa.RecordBatch, place: NDArray[np.int64], outcome: Outcome, truncated: NDArray[np.bool_]
) -> list[int]:
    """Return the requests that the engine failed, and those that were cut and may not be."""
    worked = place >= 0
    failed = np.zeros(len(outcome.tokens) + 1, np.bool_)
    failed[list(outcome.errors)] = True
    cut = truncated.copy()
    cut[worked] = outcome.truncated[place[worked]]
    # Shards that an earlier version wrote do not say: there everything may be cut.
    if "auto_truncate" in requests.schema.names:
        cut &= ~requests.column("auto_truncate").to_numpy(zero_copy_only=False)
    else:
        cut[:] = False
    found: list[int] = np.flatnonzero((worked & failed[place]) | cut).tolist()
    return found
