"""Every operation of the client as a pure generator: what is asked, in which order, and what is made of it.

A flow knows no socket, no event loop and no sleeping; see `calls`. Errors leave a flow as they are raised.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from embatch.backoff import Backoff, early_interval
from embatch.batch import Batch, Page, Request
from embatch.client import arguments
from embatch.client import payload as payloads
from embatch.client.calls import Await, work
from embatch.client.fingerprint import marked
from embatch.client.models import advanced, model_name, not_served
from embatch.client.paid_once import elsewhere_kept, paid_once
from embatch.client.repeating import repeatable
from embatch.errors import (
    BatchFailed,
    BatchNotCompleted,
    BatchTimeout,
    EmbatchError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TooLarge,
)
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable

    from embatch.batch import TaskType
    from embatch.client.calls import Exchange, Flow
    from embatch.client.results import BatchResult
    from embatch.client.retry import Session

_Ask: TypeAlias = "Callable[[Exchange[Batch]], Flow[Batch]]"
"""Sends a create and returns its batch."""
_ONCE: Final = Backoff(attempts=1)
_NAME: Final = re.compile(r"batches/[^/?#\s]+")
_RETRY: Final = " (retry)"


@dataclass(frozen=True, slots=True)
class RequestDefaults:
    """How texts shall be embedded where a request does not say."""

    model: str | None = None
    task_type: TaskType | str | None = None
    output_dimensionality: int | None = None


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What a batch is known by and when it runs."""

    display_name: str
    priority: int = 0
    idempotency_key: str | None = None
    run: str | None = None
    fingerprint: str | None = None
    """Where a submit has no idempotency key: what names its upload and stands behind its display name."""

    def checked(self) -> BatchOptions:
        """Return the same, its numbers Python's. Raises InvalidArgument naming the argument."""
        if not arguments.text("display_name", self.display_name).strip():
            raise InvalidArgument(
                'display_name is required: async_batch_embed_contents(texts, display_name="My batch")',
                field="display_name",
            )
        key = arguments.optional_text("idempotency_key", self.idempotency_key)
        if key is not None and not (key and key.isascii() and key.isprintable()):
            raise InvalidArgument(
                "idempotency_key must be of printable characters of ASCII", field="idempotency_key"
            )
        arguments.optional_text("run", self.run)
        return replace(self, priority=arguments.whole("priority", self.priority, arguments.INT64))


@dataclass(frozen=True, slots=True)
class Wait:
    """How often to poll and how long to wait, in seconds; `None` takes the guide's by the batch's size."""

    interval: float | None = None
    limit: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("poll_interval", self.interval), ("timeout", self.limit)):
            arguments.seconds(name, value)


def submit(
    session: Session,
    requests: Iterable[str | Request | None] | AsyncIterable[str | Request | None],
    defaults: RequestDefaults,
    labels: BatchOptions,
    before: Callable[[], None] | None = None,
) -> Flow[Batch]:
    """Submit a batch: inline if it is small, through an uploaded file if it is not.

    `before` is called when all is ready and nothing but the create is still to be sent.
    """
    labels = labels.checked()
    like = default_request(defaults)
    _check_priority(session, labels.priority or None)
    payload = payloads.Payload(session.provider, defaults.model or session.provider.model)
    try:
        yield from payload.gather(requests, like)
        yield from work(payload.close)
        model = yield from model_name(session, defaults.model)
        once = yield from paid_once(session, payload, model, labels.priority, labels.idempotency_key)
        if once is None:
            return (
                yield from _send(session, payload, model, labels, partial(elsewhere_kept, session, before))
            )
        try:
            if once.batch is not None:
                return once.batch
            labels = replace(labels, fingerprint=once.fingerprint)
            return (yield from _send(session, payload, model, labels, once.create))
        finally:
            once.close()
    finally:
        payload.discard()


def _send(
    session: Session, payload: payloads.Payload, model: str, labels: BatchOptions, ask: _Ask
) -> Flow[Batch]:
    """Send what was gathered, inline or through a file."""
    provider = session.provider
    mark = None if session.can.idempotency_keys else labels.fingerprint
    display_name = _marked(labels.display_name, mark)
    if (inline := payload.inline) is not None:
        body = provider.inline_body(model, display_name, labels.priority, inline)
        if len(body) <= session.can.inline_bytes:
            try:
                return (yield from _create(session, model, body, labels, ask))
            except TooLarge:  # the service's limits are lower than usual
                pass
        yield from work(payload.to_file)
    parcel = payload.file(labels.display_name, named=labels.idempotency_key is not None)
    _check_size(session, parcel.size)
    file = yield from provider.upload(session, replace(parcel, fingerprint=mark))
    body = provider.file_body(model, display_name, labels.priority, file)
    return (yield from _create(session, model, body, labels, ask))


def _marked(display_name: str, mark: str | None) -> str:
    return display_name if mark is None else marked(display_name, mark)


def _check_size(session: Session, size: int) -> None:
    """Refuse a file that would be refused once it is there. Raises TooLarge."""
    most = session.can.file_bytes
    if most is not None and size > most:
        raise TooLarge(
            f"the requests make a file of {size:,} bytes, and {session.provider.name} takes {most:,}: submit "
            "fewer at a time",
            field="requests",
        )


def _check_priority(session: Session, priority: int | None) -> None:
    """Refuse a priority where there is none. Raises InvalidArgument."""
    if priority is not None and not session.can.priorities:
        raise InvalidArgument(
            f"{session.provider.name} knows no priority: leave priority out", field="priority"
        )


def _create(session: Session, model: str, body: bytes, labels: BatchOptions, ask: _Ask) -> Flow[Batch]:
    keyed = session.can.idempotency_keys
    key = (labels.idempotency_key or session.outside.token()) if keyed else None
    try:
        return (yield from ask(session.provider.create(model, body, key, labels.run)))
    except NotFound as error:
        raise (yield from not_served(session, model, error)) from None


def get(session: Session, which: str | Batch) -> Flow[Batch]:
    """Return a batch as it is now."""
    return (yield from session.ask(session.provider.status(_name(which))))


class Watch:
    """A batch that is followed: when it is asked for again, and when that ends.

    Transient errors are waited out within the time limit. The guide's limit counts from when the number of
    requests is known: a file is read first, however long.
    """

    def __init__(self, session: Session, which: str | Batch, wait: Wait) -> None:
        self._session, self._wait, self._name = session, wait, _name(which)
        self._last: Batch | None = None
        self._polls = 0
        self._started = session.outside.clock()

    def poll(self) -> Flow[Batch]:
        """Return the batch as it is after the next interval; the first time at once.

        Raises:
            BatchTimeout: the time has passed.
        """
        session, failures = self._session, 0
        status = session.provider.status(self._name)
        after = 0.0 if self._last is None else self._within(self._interval)
        while True:
            try:
                reply = yield from session.send(replace(status.call, after=after), backoff=_ONCE)
                batch = status.read(reply.body)
            except EmbatchError as error:
                failures += 1
                delay = session.poll.delay(failures, session.outside.chance(), error.retry_after)
                if delay is None or not repeatable(status.call, error):
                    raise
                after = self._within(delay)
            else:
                if self._wait.limit is None and not self._count:
                    self._started = session.outside.clock()
                self._last, self._polls = batch, self._polls + 1
                return batch

    def change(self) -> Flow[Batch]:
        """Return the batch once it is not what was returned last. Raises as `poll`."""
        last = self._last
        while (batch := (yield from self.poll())) == last:
            pass
        return batch

    @property
    def _count(self) -> int:
        return 0 if self._last is None else self._last.batch_stats.request_count

    @property
    def _interval(self) -> float:
        if self._wait.interval is not None:
            return self._wait.interval
        return early_interval(self._polls, self._session.can.poll_interval(self._count))

    def _within(self, seconds: float) -> float:
        """Return so many seconds, or those that are left. Raises BatchTimeout if none are."""
        guide = self._session.can.time_limit(self._count) if self._count else math.inf
        limit = guide if self._wait.limit is None else self._wait.limit
        left = self._started + limit - self._session.outside.clock()
        if left <= 0:
            state = "not heard of yet" if self._last is None else self._last.state.value
            raise BatchTimeout(
                f"{self._name} is not finished after {limit:g} s (state: {state}); "
                "it goes on and can be awaited again"
            )
        return min(seconds, left)


def await_batch(
    session: Session, which: str | Batch, wait: Wait, on_progress: Callable[[Batch], object] | None
) -> Flow[Batch]:
    """Poll until the batch is final, telling of every poll."""
    watch = Watch(session, which, wait)
    if on_progress is not None and not callable(on_progress):
        arguments.refuse("on_progress", "a function of the batch", on_progress)
    while True:
        batch = yield from watch.poll()
        if on_progress is not None and inspect.iscoroutine(told := on_progress(batch)):
            yield Await(told, "on_progress")
        if batch.done:
            return batch


def results(
    session: Session, which: str | Batch, dimensions: int | None, *, partial: bool
) -> Flow[BatchResult]:
    """Read the results of a finished batch, each request exactly once, in order."""
    dimensions = dimensions_of(dimensions)
    arguments.flag("partial", partial)
    batch = which if isinstance(which, Batch) and which.done else (yield from get(session, which))
    _check_readable(batch, partial=partial)
    return (yield from session.provider.results(session, batch, dimensions))


def _check_readable(batch: Batch, *, partial: bool) -> None:
    if batch.state is State.FAILED:
        raise BatchFailed(f"{batch.name} failed: {batch.error or 'the service gave no reason'}")
    if batch.state is State.COMPLETED or (partial and batch.done):
        return
    remedy = "partial=True reads what it finished" if batch.done else "await_batch_completion waits for it"
    raise BatchNotCompleted(f"{batch.name} is not completed (current state: {batch.state}): {remedy}")


def retry_failed(
    session: Session,
    which: str | Batch,
    requests: Sequence[str | Request | None],
    defaults: RequestDefaults,
    display_name: str | None,
) -> Flow[Batch]:
    """Submit again those requests of a batch that failed, in their order."""
    arguments.optional_text("display_name", display_name)
    default_request(defaults)
    if isinstance(requests, str | bytes) or not isinstance(requests, Sequence):
        arguments.refuse("requests", "a list of all texts or requests of the batch", requests)
    result = yield from results(session, which, None, partial=True)
    if len(requests) != len(result):
        raise InvalidArgument(
            f"the batch had {len(result)} requests, not {len(requests)}: give all of them, in their order",
            field="requests",
        )
    if not result.failed_responses:
        raise FailedPrecondition(f"no request of {result.batch.name} failed: there is nothing to retry")
    again = [requests[index] for index, _ in result.failed_responses]
    batch = result.batch
    labels = BatchOptions(display_name or f"{batch.display_name or batch.name}{_RETRY}", batch.priority)
    return (yield from submit(session, again, replace(defaults, model=batch.worked_by), labels))


def page(session: Session, size: int | None, token: str | None) -> Flow[Page[Batch]]:
    """Return one page of all batches, newest first."""
    size = arguments.optional_whole("page_size", size, arguments.INT32_ABOVE_0)
    return advanced((yield from session.ask(session.provider.batches(size, token))), token)


def update(
    session: Session, which: str | Batch, display_name: str | None, priority: int | None
) -> Flow[Batch]:
    """Change display name or priority; what is `None` stays."""
    arguments.optional_text("display_name", display_name)
    priority = arguments.optional_whole("priority", priority, arguments.INT64)
    if display_name is None and priority is None:
        raise InvalidArgument("nothing to change: give display_name or priority", field="display_name")
    _check_priority(session, priority)
    if display_name is not None and not session.can.idempotency_keys:
        # A name that lost its mark would hide the batch from whoever looks for it, and it were paid again.
        batch = which if isinstance(which, Batch) else (yield from get(session, which))
        display_name = _marked(display_name, batch.fingerprint)
    return (yield from session.ask(session.provider.update(_name(which), display_name, priority)))


def cancel(session: Session, which: str | Batch) -> Flow[Batch]:
    """Stop a batch and return it as it then is; one in a final state stays as it is."""
    name = _name(which)
    refused: FailedPrecondition | None = None
    try:
        yield from session.send(session.provider.cancel(name))
    except FailedPrecondition as error:
        refused = error
    batch = yield from get(session, name)
    # Some services refuse to cancel what has ended, be it by an earlier attempt whose answer was lost.
    if refused is not None and not batch.done:
        raise refused
    return batch


def delete(session: Session, which: str | Batch) -> Flow[None]:
    """Delete a finished batch."""
    try:
        yield from session.provider.discard(session, _name(which))
    except NotFound as gone:
        # The answer to an earlier attempt was lost, and that attempt deleted it.
        if gone.__cause__ is None:
            raise


def clean_up(session: Session, batch: Batch) -> Flow[None]:
    """Delete the files that were made for a finished batch."""
    if not batch.done:
        raise FailedPrecondition(f"{batch.name} still runs: its files are deleted once it has ended")
    yield from session.provider.clean_up(session, batch)


def _name(which: str | Batch) -> str:
    name = which.name if isinstance(which, Batch) else which
    if not isinstance(name, str):
        arguments.refuse("name", "a batch or its name", which)
    if not _NAME.fullmatch(name):
        raise InvalidArgument("a batch is named batches/{id}", field="name")
    return name


def dimensions_of(value: object) -> int | None:
    """Return `output_dimensionality` as it was given. Raises InvalidArgument."""
    return arguments.optional_whole("output_dimensionality", value, arguments.INT32_ABOVE_0)


def default_request(defaults: RequestDefaults) -> Request:
    """Return a request without text that says what all others shall be like. Raises InvalidArgument."""
    arguments.name_of_model(defaults.model)
    return Request(
        "",
        task_type=arguments.task_type(defaults.task_type),
        output_dimensionality=dimensions_of(defaults.output_dimensionality),
    )
