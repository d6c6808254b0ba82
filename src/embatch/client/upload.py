"""A file on its way to the service, in chunks that survive broken connections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from embatch.client.calls import Call
from embatch.client.repeating import passing
from embatch.errors import AlreadyExists, ConnectionFailed, Internal, NotFound, PermissionDenied
from embatch.wire.gemini import read_responses, routes, uploads
from embatch.wire.google import read_errors

if TYPE_CHECKING:
    from embatch.client.calls import Flow, Reply, Sender
    from embatch.errors import EmbatchError


@dataclass(frozen=True, slots=True)
class FileUpload:
    """A file on its way to the service."""

    file: BinaryIO
    size: int
    mime_type: str
    display_name: str
    names: tuple[str, ...] = ()
    """Names `files/{id}` made from the content, tried in turn, so that the same content goes up once and is
    found again; empty lets the service choose."""
    fingerprint: str | None = None
    """What names it instead, where the provider has no idempotency keys: a file of that name which is there
    whole is the same one."""


def send_file(sender: Sender, upload: FileUpload, version: str) -> Flow[str]:
    """Upload a file in chunks and return its name, `files/{id}`; nothing is sent if it is there already.

    A connection that breaks is taken up where the service says it stopped; an upload that the service no
    longer knows is begun again. Repeating the whole is safe.
    """
    for name in upload.names:
        try:
            return (yield from _send(sender, upload, version, name))
        except AlreadyExists:
            # It is there; or an upload that was killed blocks its name until the service drops it.
            if (yield from _is_there(sender, upload, version, name)):
                return name
    return (yield from _send(sender, upload, version, None))


def _is_there(sender: Sender, upload: FileUpload, version: str, name: str) -> Flow[bool]:
    """Whether the file of that name is there, whole: waited for while the service still looks at it."""
    call, failures = Call(routes.GET_FILE.method, routes.GET_FILE.path(version, name)), 0
    while True:
        try:
            found = read_responses.parse_file((yield from sender.send(call)).body)
        except (NotFound, PermissionDenied):
            return False
        if found.failed or found.size not in (None, upload.size):
            return False
        failures += 1
        delay = None if found.ready else sender.poll.delay(failures, sender.outside.chance())
        if delay is None:
            return found.ready
        call = replace(call, after=delay)


def _send(sender: Sender, upload: FileUpload, version: str, name: str | None) -> Flow[str]:
    failures = 0
    address = yield from _begin(sender, upload, version, name)
    offset, after = 0, 0.0
    while True:
        upload.file.seek(offset)
        chunk = upload.file.read(uploads.CHUNK_BYTES)
        final = offset + len(chunk) >= upload.size
        headers = uploads.chunk_headers(offset, final=final)
        error: EmbatchError
        try:
            reply = yield Call("POST", address, headers=headers, body=chunk, after=after)
        except ConnectionFailed as lost:
            error = lost
        else:
            if reply.status == 200:
                if final:
                    return read_responses.parse_file_name(reply.body)
                offset, after, failures = offset + len(chunk), 0.0, 0
                continue
            error = read_errors.parse_error(reply.status, reply.headers, reply.body, reply.via)
        failures += 1
        delay = sender.submit.delay(failures, sender.outside.chance(), error.retry_after)
        if delay is None or not (passing(error) or isinstance(error, NotFound)):
            raise error
        query = Call("POST", address, headers=uploads.query_headers(), after=delay)
        try:
            reply = yield from sender.send(query)
        except NotFound:
            address, offset = (yield from _begin(sender, upload, version, name)), 0
            continue
        found = uploads.arrived(reply.headers)
        if found.final:
            if (file := _completed(reply, name)) is not None:
                return file
            # Nobody says what it is called: another goes up, and this one ends with its time.
            address, offset = (yield from _begin(sender, upload, version, name)), 0
            continue
        failures = 0 if found.size > offset else failures
        offset = found.size


def _completed(reply: Reply, name: str | None) -> str | None:
    """Return the name of a completed file: a query need not say it once more."""
    try:
        return read_responses.parse_file_name(reply.body)
    except Internal:
        return name


def _begin(sender: Sender, upload: FileUpload, version: str, name: str | None) -> Flow[str]:
    call = Call(
        "POST",
        routes.UPLOAD.path(version),
        headers=uploads.start_headers(upload.size, upload.mime_type),
        body=uploads.start_body(upload.display_name, upload.mime_type, name),
    )
    return uploads.upload_address((yield from sender.send(call)).headers)
