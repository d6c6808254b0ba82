"""What is shown: a batch as it is now, and the names and tokens it goes by."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from embatch.batch import WAITS, Batch, BatchStats, BatchUsage
from embatch.errors import InvalidArgument, NotFound
from embatch.states import State
from embatch.store.faults import storage_error, storage_full
from embatch.store.times import micros

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from embatch.pool.protocol import EngineStatus
    from embatch.shard import Done
    from embatch.store.records import BatchRecord
    from embatch.store.store import Store

_BATCH: Final = re.compile(r"batches/([a-z0-9]{1,64})")
_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_INT64: Final = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the service can work."""

    ready: bool
    """Whether it accepts batches and can work those of every model it serves."""
    reasons: tuple[str, ...]
    """What is wrong, `ready` or not: a batch may wait for a model that is not served now."""
    store: str
    """The database engine and its version."""
    engines: tuple[EngineStatus, ...]


def health(
    troubles: Mapping[str, str],
    served: Collection[str],
    lack: str | None,
    store: Store,
    engines: Sequence[EngineStatus],
) -> Health:
    """Return whether the service can work.

    Args:
        troubles: why a model or a batch waits, by name.
        served: names of the models.
        lack: what the disk lacks; `None`: nothing.
        store: tells of itself.
        engines: as they are now.
    """
    reasons = list(dict.fromkeys(troubles.values()))
    full = storage_full().message in reasons
    if lack is not None:
        reasons.append(lack)
    if store.broken:
        reasons.append(storage_error().message)
    ready = not (store.broken or full or lack is not None) and troubles.keys().isdisjoint(served)
    return Health(ready, tuple(reasons), store.version(), tuple(engines))


def shown(
    record: BatchRecord, uncommitted: Done, unbatched_cost: float | None, waits: str | None = None
) -> Batch:
    """Return a batch as its users see it.

    Counts of a batch from a file appear when its planning has ended, all at once. In a final state nothing is
    pending: what was not reached has failed.

    Args:
        record: as it is stored.
        uncommitted: what of it is embedded and not yet durable.
        unbatched_cost: CPU seconds that a token costs one text at a time; `None` where that is not known.
        waits: why it is not worked now although it could be, which becomes a note; `None`: nothing is wrong.
    """
    final, counted = record.state.final, record.planned or record.state.final
    total = record.request_count if counted else 0
    pending = total - record.successful_count - record.failed_count if counted else 0
    stats = BatchStats(
        total,
        record.successful_count if counted else 0,
        record.failed_count + (pending if final else 0) if counted else 0,
        0 if final else pending,
        0 if final else min(pending, uncommitted.rows),
    )
    tokens = record.token_count if counted else 0
    usage = BatchUsage(
        tokens,
        0 if final or not counted else uncommitted.tokens,
        record.cached_count if counted else 0,
        round(record.cpu_micros / 1e6, 3),
        None if unbatched_cost is None else round(unbatched_cost * tokens, 3),
    )
    readable = final and record.state is not State.FAILED and not record.inline
    return Batch(
        f"batches/{record.id}",
        f"models/{record.asked_model or record.model}",
        record.state,
        record.display_name,
        record.priority,
        record.create_time,
        record.update_time,
        record.end_time,
        stats,
        None if record.input_file is None else f"files/{record.input_file}",
        f"files/batch-{record.id}" if readable else None,
        record.error,
        record.notes if waits is None else (*record.notes, WAITS + waits),
        usage,
        None if record.asked_model is None else f"models/{record.model}",
    )


def batch_id(name: str) -> str:
    """Return the id in `batches/{id}`. Raises NotFound where the name cannot be one."""
    found = _BATCH.fullmatch(name)
    if found is None:
        raise NotFound("there is no such batch: a batch is named batches/{id}")
    return found[1]


def check_page_size(size: int) -> None:
    """Refuse a page without entries. Raises InvalidArgument."""
    if size < 1:
        raise InvalidArgument("a page has at least one entry", field="page_size")


def token(time: datetime, id_: str) -> str:
    """Return the page token that stands for what follows this batch or file."""
    return base64.urlsafe_b64encode(orjson.dumps([micros(time), id_])).decode()


def after(page_token: str | None) -> tuple[int, str] | None:
    """Return what a page token stands for; `None` for the first page.

    Raises:
        InvalidArgument: it is not one of ours.
    """
    if page_token is None:
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(page_token.encode()))
    except (ValueError, binascii.Error):
        found = None
    match found:
        case [int(time), str(id_)] if time in _INT64 and _ID.fullmatch(id_):
            return time, id_
        case _:
            raise InvalidArgument(
                "this page token is not one of ours: take it from the page before", field="page_token"
            )
