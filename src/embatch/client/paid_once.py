"""A plain submit that is paid once, where the provider has no idempotency keys: the journal's flow.

The intent is durable before the create goes out. When its reply is lost, or a later call finds an intent
whose call died, the batches are listed and ours is known by its fingerprint. One that is not there (yet) is
an error that says so, until `unknown_fate` allows to repeat it.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from embatch.backoff import Backoff
from embatch.client.calls import SLOW, Pause, work
from embatch.client.fingerprint import fingerprint, in_name
from embatch.client.models import advanced
from embatch.client.unknown_fate import OLD, Next, undecided
from embatch.errors import AlreadyExists, EmbatchError, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch.batch import Batch
    from embatch.client.calls import Exchange, Flow
    from embatch.client.journal import Entry, Journal
    from embatch.client.payload import Payload
    from embatch.client.retry import Session

OUTCOME_UNKNOWN: Final = "OUTCOME_UNKNOWN"
"""Reason of an error where nobody knows whether a batch was created."""
_LATE: Final = Backoff(first=2.0, limit=8.0, attempts=4)
"""How often the batches are listed in one call: a new one is seconds late in them."""
_FRESH: Final = 60.0
"""Seconds after its intent for which a batch may simply be late."""
_HELD: Final = 0.05
"""Seconds of the first wait for a call with the same key; they double up to a second."""


def paid_once(
    session: Session, payload: Payload, model: str, priority: int, key: str | None
) -> Flow[PaidOnce | None]:
    """Begin a submit, or take it up where an earlier call of it was cut off; whoever gets it closes it.

    Args:
        session: where it goes to. Without a journal, or where one is not needed, `None` is returned.
        payload: the requests, all of them.
        model: what shall embed.
        priority: of the batch.
        key: the caller's idempotency key; `None` for a submit that only one of unknown fate answers.

    Raises:
        AlreadyExists: the key was given before with other requests.
        Unavailable: it is not known yet what became of an earlier call, the journal cannot be written, or
            another call with this key does not end.
        DataLoss: the entry is damaged.
    """
    journal = session.journal
    if journal is None or session.can.idempotency_keys:
        return None
    content = fingerprint(model, priority, (yield from work(payload.digest)))
    account = (session.provider.name, session.target.url, session.provider.account, session.target.key)
    match = fingerprint(account, [content] if key is None else key)
    entry = yield from _taken(session, journal, match, keyed=key is not None)
    submit = PaidOnce(session, entry, match, key is not None, payload.size)
    try:
        yield from submit.take_up(content)
    except BaseException:
        submit.close()
        raise
    return submit


def elsewhere_kept(
    session: Session, before: Callable[[], None] | None, exchange: Exchange[Batch]
) -> Flow[Batch]:
    """Send a create of which no journal keeps account: the service's keys do, a run, or nobody."""
    if before is not None:
        yield from work(before)
    # Without an idempotency key one that may have been accepted is not repeated: it would cost twice.
    return (yield from session.ask(exchange, once=not session.can.idempotency_keys))


def _taken(session: Session, journal: Journal, match: str, *, keyed: bool) -> Flow[Entry]:
    """Return the entry of a submit, once no other call with its key is under way."""
    started, pause = session.outside.clock(), _HELD
    taken: list[Entry | None] = []

    def take() -> None:
        taken.append(journal.take(match, session.outside.date(), keyed=keyed))

    while True:
        try:
            with _written():
                yield from work(take)
        except BaseException:  # one that is stopped while it takes the entry keeps it from nobody
            if taken and taken[-1] is not None:
                taken[-1].close()
            raise
        if (entry := taken[-1]) is not None:
            return entry
        if session.outside.clock() - started > SLOW:
            raise Unavailable(
                "another call with this idempotency_key is still under way: wait for it, or give another key",
                field="idempotency_key",
            )
        yield Pause(pause)
        pause = min(1.0, 2 * pause)


@contextmanager
def _written() -> Iterator[None]:
    """Refuse to send what cannot be written down first."""
    try:
        yield
    except OSError as error:
        raise Unavailable(
            f"the journal of what is paid for cannot be written ({error}), so nothing was sent: mend that, "
            "name another data folder (data=, --data, EMBATCH_DATA), or do without (journal=False, "
            "--no-journal)"
        ) from None


@dataclass(slots=True)
class PaidOnce:
    """One submit under its entry of the journal, which is this one's alone until it is closed."""

    session: Session
    entry: Entry
    match: str
    """What tells it from others."""
    keyed: bool
    """Whether it has its caller's key, so that its batch answers later calls."""
    size: str
    """What is paid for, in words."""
    batch: Batch | None = None
    """Of an earlier call with the same key, or of one that was lost; nothing is to be sent then."""

    @property
    def fingerprint(self) -> str:
        """What its upload is named by and its display name bears."""
        return self.entry.record.fingerprint or ""

    def take_up(self, content: str) -> Flow[None]:
        """Find the batch of an earlier call, or begin: nothing is in doubt afterwards."""
        record = self.entry.record
        if (record.batch or record.unknown) and record.content != content:
            raise AlreadyExists(
                "idempotency_key was given before with other requests or settings: give another one",
                field="idempotency_key",
            )
        if record.batch is not None:
            with suppress(NotFound):  # whoever deleted it may want another one
                self.batch = yield from self.session.ask(self.session.provider.status(record.batch))
        elif record.unknown is not None:
            self.batch = yield from self._find(None)
        if self.batch is None and (record.batch or record.content != content):
            mark = fingerprint(self.match, self.session.outside.token())
            with _written():
                yield from work(partial(self.entry.begin, mark, content))

    def create(self, exchange: Exchange[Batch]) -> Flow[Batch]:
        """Send the create, once its intent is durable; return the batch, also where the reply was lost.

        Raises:
            EmbatchError: the service refused it; or, with the reason `OUTCOME_UNKNOWN`, nobody knows yet.
        """
        with _written():
            yield from work(partial(self.entry.intend, self.session.outside.date()))
        try:
            batch = yield from self.session.ask(exchange, once=True)
        except EmbatchError as error:
            if not undecided(error):
                yield from self._note(self.entry.refused)
                raise
            found = yield from self._find(error)
            if found is None:
                raise self._unknown(error) from error
            return found
        yield from self._known(batch)
        return batch

    def close(self) -> None:
        """Let others have the entry. Repeating is safe."""
        self.entry.close()

    def _find(self, cause: EmbatchError | None) -> Flow[Batch | None]:
        """Return the batch of a create of unknown fate; `None` once it is sure that it made none.

        Args:
            cause: what the create ended with; `None` if an earlier call sent it.

        Raises:
            EmbatchError: it is not sure yet.
        """
        outside, failures = self.session.outside, 0
        while True:
            begun = outside.date()
            try:
                batch = yield from self._listed()
            except EmbatchError as error:
                if cause is None:
                    raise
                raise self._unknown(cause) from error
            if batch is not None:
                yield from self._known(batch)
                return batch
            yield from self._note(partial(self.entry.missed, begun))
            unknown, now = self.entry.record.unknown, outside.date()
            if unknown is None or unknown.next(now) is Next.REPEAT:
                return None
            failures += 1
            delay = _LATE.delay(failures, outside.chance())
            if delay is None or abs(now - unknown.since) > _FRESH:
                raise self._unknown(cause) from cause
            yield Pause(delay)

    def _listed(self) -> Flow[Batch | None]:
        """Return the batch of this submit from a whole list of all batches; `None` if it is not there."""
        token: str | None = None
        while True:
            exchange = self.session.provider.batches(None, token)
            page = advanced((yield from self.session.ask(exchange)), token)
            for batch in page.items:
                if self.fingerprint in (batch.fingerprint, in_name(batch.input_file)):
                    return batch
            if (token := page.next_page_token) is None:
                return None

    def _known(self, batch: Batch) -> Flow[None]:
        """Note that the batch is there: it answers whoever has its key, and nobody without one."""
        yield from self._note(partial(self.entry.created, batch.name) if self.keyed else self.entry.remove)

    def _note(self, write: Callable[[], None]) -> Flow[None]:
        """Write down what has happened; without it the same is found again from the intent."""
        with suppress(OSError):
            yield from work(write)

    def _unknown(self, cause: EmbatchError | None) -> EmbatchError:
        """Return what to say while nobody knows whether the batch was created."""
        now, unknown = self.session.outside.date(), self.entry.record.unknown
        since = now if unknown is None else unknown.since
        due = max(since + OLD, since if unknown is None else unknown.due)
        said = (
            f"it is not known whether the batch was created: its submit of {_moment(since)} was not "
            "answered, and it is in no list of batches so far. The same call looks again, and from "
            f"{_moment(due)} on it submits once more what is still not there. A second batch now would be "
            f"paid for again ({self.size}); journal=False (--no-journal) makes one"
        )
        kind, first = (Unavailable, "") if cause is None else (type(cause), f"{cause.message}; ")
        return kind(first + said, reason=OUTCOME_UNKNOWN, retry_after=max(0.0, due - now))


def _moment(seconds: float) -> str:
    """Return a time in UTC for people."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
