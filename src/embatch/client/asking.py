"""How a flow talks: one call with its repeats, and a file in chunks that survives broken connections."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from embatch.backoff import POLL, SUBMIT, Backoff
from embatch.client.calls import Call, Outside
from embatch.client.receiving import TOO_LARGE
from embatch.errors import AlreadyExists, ConnectionFailed, Internal, NotFound, PermissionDenied
from embatch.wire import answers, refusals, upload

if TYPE_CHECKING:
    from embatch.client.calls import Flow, Reply
    from embatch.client.targets import Target
    from embatch.errors import EmbatchError

NOT_SENT = "NOT_SENT"
"""Reason of a `ConnectionFailed` that came before the first byte was sent: nothing can have happened."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a flow talks: where to, how patient, with whose clock and chance."""

    target: Target
    outside: Outside = field(default_factory=Outside)
    submit: Backoff = SUBMIT
    poll: Backoff = POLL
    known: dict[str, str] = field(default_factory=dict)
    """What the service said of itself (its `model`), so that a query is one call; emptied on reconnecting."""


def ask(terms: Terms, call: Call, *, once: bool = False, backoff: Backoff | None = None) -> Flow[Reply]:
    """Send a call, repeat it while that can help, return its good reply.

    Args:
        terms: where and how patiently.
        call: what to send.
        once: the call must not take effect twice, so it is repeated only where the service refused it or
            cannot have seen it.
        backoff: how patiently; that of a submit by default.

    Raises:
        EmbatchError: what the service answered, or `ConnectionFailed`, once repeating cannot help or has not
            helped. Its `__cause__` is the last broken connection of an earlier attempt, if there was one.
    """
    patience = backoff or terms.submit
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
            error = refusals.parse_error(reply.status, reply.headers, reply.body, reply.via)
        failures += 1
        delay = patience.delay(failures, terms.outside.chance(), error.retry_after)
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


@dataclass(frozen=True, slots=True)
class Parcel:
    """A file on its way to the service."""

    file: BinaryIO
    size: int
    mime_type: str
    display_name: str
    names: tuple[str, ...] = ()
    """Names `files/{id}` made from the content, tried in turn, so that the same content goes up once and is
    found again; empty lets the service choose."""


def send_file(terms: Terms, parcel: Parcel) -> Flow[str]:
    """Upload a file in chunks and return its name, `files/{id}`; nothing is sent if it is there already.

    A connection that breaks is taken up where the service says it stopped; an upload that the service no
    longer knows is begun again. Repeating the whole is safe.
    """
    for name in parcel.names:
        try:
            return (yield from _send(terms, parcel, name))
        except AlreadyExists:
            # It is there; or an upload that was killed blocks its name until the service drops it.
            if (yield from _is_there(terms, name)):
                return name
    return (yield from _send(terms, parcel, None))


def _is_there(terms: Terms, name: str) -> Flow[bool]:
    try:
        yield from ask(terms, Call("GET", f"/{terms.target.version}/{name}"))
    except (NotFound, PermissionDenied):
        return False
    return True


def _send(terms: Terms, parcel: Parcel, name: str | None) -> Flow[str]:
    failures = 0
    address = yield from _begin(terms, parcel, name)
    offset, after = 0, 0.0
    while True:
        parcel.file.seek(offset)
        chunk = parcel.file.read(upload.CHUNK_BYTES)
        final = offset + len(chunk) >= parcel.size
        headers = upload.chunk_headers(offset, final=final)
        error: EmbatchError
        try:
            reply = yield Call("POST", address, headers=headers, body=chunk, after=after)
        except ConnectionFailed as lost:
            error = lost
        else:
            if reply.status == 200:
                if final:
                    return answers.parse_file_name(reply.body)
                offset, after, failures = offset + len(chunk), 0.0, 0
                continue
            error = refusals.parse_error(reply.status, reply.headers, reply.body, reply.via)
        failures += 1
        delay = terms.submit.delay(failures, terms.outside.chance(), error.retry_after)
        if delay is None or not (error.retryable or isinstance(error, NotFound)):
            raise error
        query = Call("POST", address, headers=upload.query_headers(), after=delay)
        try:
            reply = yield from ask(terms, query)
        except NotFound:
            address, offset = (yield from _begin(terms, parcel, name)), 0
            continue
        found = upload.arrived(reply.headers)
        if found.final:
            return answers.parse_file_name(reply.body)
        failures = 0 if found.size > offset else failures
        offset = found.size


def _begin(terms: Terms, parcel: Parcel, name: str | None) -> Flow[str]:
    call = Call(
        "POST",
        f"/upload/{terms.target.version}/files",
        headers=upload.start_headers(parcel.size, parcel.mime_type),
        body=upload.start_body(parcel.display_name, parcel.mime_type, name),
    )
    return upload.upload_address((yield from ask(terms, call)).headers)
