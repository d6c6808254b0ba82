"""How a flow talks: one call with its repeats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from embatch.backoff import POLL, SUBMIT, Backoff
from embatch.client.calls import Call, Environment
from embatch.client.receiving import TOO_LARGE
from embatch.errors import ConnectionFailed, Internal
from embatch.wire.gemini import read_errors

if TYPE_CHECKING:
    from embatch.client.calls import Flow, Reply
    from embatch.client.targets import Target
    from embatch.errors import EmbatchError

NOT_SENT = "NOT_SENT"
"""Reason of a `ConnectionFailed` that came before the first byte was sent: nothing can have happened."""


@dataclass(frozen=True, slots=True)
class Session:
    """On what terms a flow talks: where to, how patient, with whose clock and chance."""

    target: Target
    outside: Environment = field(default_factory=Environment)
    submit: Backoff = SUBMIT
    poll: Backoff = POLL
    known: dict[str, str] = field(default_factory=dict)
    """What the service said of itself (its `model`), so that a query is one call; emptied on reconnecting."""


def send(session: Session, call: Call, *, once: bool = False, backoff: Backoff | None = None) -> Flow[Reply]:
    """Send a call, repeat it while that can help, return its good reply.

    Args:
        session: where and how patiently.
        call: what to send.
        once: the call must not take effect twice, so it is repeated only where the service refused it or
            cannot have seen it.
        backoff: how patiently; that of a submit by default.

    Raises:
        EmbatchError: what the service answered, or `ConnectionFailed`, once repeating cannot help or has not
            helped. Its `__cause__` is the last broken connection of an earlier attempt, if there was one.
    """
    patience = backoff or session.submit
    failures, lost = 0, None
    while True:
        error: EmbatchError
        try:
            reply = yield call
        except ConnectionFailed as failure:
            error, lost = failure, failure
        else:
            if 200 <= reply.status < 300:
                return reply
            error = read_errors.parse_error(reply.status, reply.headers, reply.body, reply.via)
        failures += 1
        delay = patience.delay(failures, session.outside.chance(), error.retry_after)
        if delay is None or not repeatable(call, error, once=once):
            raise error from (None if error is lost else lost)
        call = replace(call, after=delay)


def repeatable(call: Call, error: EmbatchError, *, once: bool = False) -> bool:
    """Whether sending the call again can help and does no harm."""
    if once and isinstance(error, ConnectionFailed):
        return error.reason == NOT_SENT
    # A read that met an internal error may succeed a moment later; what changes something is left alone.
    passing = isinstance(error, Internal) and error.reason != TOO_LARGE
    return error.retryable or (call.method == "GET" and passing)
