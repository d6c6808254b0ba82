"""The bucket that a batch goes through: requests on their way in, results on their way out, and what is left.

Each batch has a folder of its own below the place that the user named:

    gs://bucket/prefix/embatch-{fingerprint}/requests-{rows}.jsonl   what the job reads
                                             kept-{rows}.jsonl       what results are matched with, if need be
                                             results/…               where the job writes

so that what is there already is found by its name, and one batch's end takes nothing of another's.
Spoken to by Cloud Storage's JSON protocol over the client's own connections.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from embatch.client.calls import SLOW, Call, work
from embatch.client.fingerprint import PREFIX
from embatch.client.repeating import passing
from embatch.errors import (
    AlreadyExists,
    ConnectionFailed,
    DataLoss,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from embatch.wire.google import read_errors
from embatch.wire.vertex import storage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embatch.client.calls import Flow, Sender
    from embatch.errors import EmbatchError
    from embatch.wire.vertex.storage import StoredObject

STAGING: Final = "EMBATCH_STAGING"
"""Variable of the place where the caller names none."""
EMULATOR: Final = "STORAGE_EMULATOR_HOST"
"""Google's own variable of another address, which is not shown who asks."""
REQUESTS: Final = "requests"
KEPT: Final = "kept"
RESULTS: Final = "results"
PART_BYTES: Final = 32 << 20
"""Bytes read at a time: what is read again after a broken connection."""
MIME_TYPE: Final = "application/jsonl"
_PLACE: Final = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,221})(?:/(.*))?")
_UNNAMED: Final = "one-"
_FOLDER: Final = re.compile(rf"(?:.*/)?{PREFIX}(?:{_UNNAMED})?[a-z0-9]{{32}}/")
_NAMED: Final = re.compile(rf"((?:.*/)?{PREFIX}[a-z0-9-]+/){REQUESTS}-([0-9]{{1,12}})\.jsonl")


@dataclass(frozen=True, slots=True)
class Place:
    """The bucket and prefix that a user named."""

    bucket: str
    prefix: str
    """Empty, or with a slash at its end."""

    def folder(self, fingerprint: str | None, token: str) -> str:
        """Return the folder of a batch; one without a fingerprint is named by a token of its own."""
        return f"{self.prefix}{PREFIX}{fingerprint or _UNNAMED + token}/"


def place(given: str | None) -> Place | None:
    """Return the place of `gs://bucket/prefix`; `None` for none. Raises InvalidArgument."""
    if not given:
        return None
    match = _PLACE.fullmatch(given)
    prefix = "" if match is None else (match[2] or "").strip("/")
    if match is None or not prefix.isprintable() or any(one in prefix for one in "#?*[]"):
        raise InvalidArgument(
            f"staging must be a bucket, or a folder in one, such as gs://bucket/embatch ({STAGING})",
            field="staging",
        )
    return Place(match[1], f"{prefix}/" if prefix else "")


def address(environ: Mapping[str, str]) -> str | None:
    """Return the address of an emulator, as Google's clients take it; `None` for the service."""
    found = environ.get(EMULATOR, "").strip().rstrip("/")
    if not found:
        return None
    return found if "://" in found else f"http://{found}"


def rows_of(source: str | None) -> int:
    """Return how many requests a staged file has by its name; 0 for what is not ours."""
    match = _NAMED.fullmatch(storage.bucket_and_name(source)[1]) if source else None
    return 0 if match is None else int(match[2])


def folder_of(source: str | None) -> tuple[str, str] | None:
    """Return bucket and folder of a staged file; `None` for what is not ours."""
    if source is None:
        return None
    bucket, name = storage.bucket_and_name(source)
    match = _NAMED.fullmatch(name)
    return None if match is None or not _FOLDER.fullmatch(match[1]) else (bucket, match[1])


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket, as flows speak to it."""

    address: str
    name: str
    signed: bool
    """Whether it is shown who asks: an emulator is not."""

    def find(self, sender: Sender, name: str) -> Flow[StoredObject | None]:
        """Return what is known of an object; `None` where there is none."""
        try:
            reply = yield from sender.send(self._call("GET", storage.object_path(self.name, name)))
        except NotFound:
            return None
        return storage.parse_object(reply.body)

    def list(self, sender: Sender, prefix: str) -> Flow[list[StoredObject]]:
        """Return all objects whose names begin so."""
        found: list[StoredObject] = []
        query = {storage.PREFIX: prefix}
        while True:
            call = self._call("GET", storage.objects_path(self.name), query)
            page, token = storage.parse_objects((yield from sender.send(call)).body)
            found += page
            if token is None or token == query.get(storage.PAGE_TOKEN):
                return found
            query = {**query, storage.PAGE_TOKEN: token}

    def remove(self, sender: Sender, prefix: str) -> Flow[None]:
        """Delete all objects whose names begin so. Repeating is safe."""
        for one in (yield from self.list(sender, prefix)):
            with contextlib.suppress(NotFound):
                yield from sender.send(self._call("DELETE", storage.object_path(self.name, one.name)))

    def read(self, sender: Sender, stored: StoredObject, feed: Callable[[bytes], None]) -> Flow[None]:
        """Read an object part by part; what broke is asked for again from where its part begins."""
        offset = 0
        while offset < stored.size:
            end = min(stored.size, offset + PART_BYTES)
            call = self._call(
                "GET",
                storage.object_path(self.name, stored.name),
                storage.media_query(stored),
                storage.range_headers(offset, end),
            )
            reply = yield from sender.send(call)
            # Who knows no ranges gives the whole.
            piece = reply.body if reply.status == 206 else reply.body[offset:end]
            if len(piece) != end - offset:
                raise DataLoss(
                    f"gs://{self.name}/{stored.name} ended at {offset + len(piece)} of {stored.size} bytes"
                )
            yield from work(partial(feed, piece))
            offset = end

    def put(self, sender: Sender, name: str, file: BinaryIO) -> Flow[None]:
        """Upload a file; nothing is sent where the same is there already.

        An upload that breaks is taken up where the service says that it stopped, and begun again where it is
        no longer known. Repeating the whole is safe.

        Raises:
            AlreadyExists: something else has that name.
            NotFound: there is no such bucket.
        """
        size, md5 = yield from work(partial(_measure, file))
        upload = _Upload(self, name, file, size, md5)
        if not (yield from upload.is_there(sender)):
            yield from upload.send(sender)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Call:
        return Call(
            method, self.address + path, query or {}, headers or {}, body, patience=SLOW, signed=self.signed
        )

    def begin(self, name: str, size: int, md5: bytes) -> Call:
        """Return the call that begins an upload."""
        return self._call(
            "POST",
            storage.upload_path(self.name),
            storage.upload_query(name),
            storage.upload_headers(size, MIME_TYPE),
            storage.upload_body(name, MIME_TYPE, md5),
        )


def _measure(file: BinaryIO) -> tuple[int, bytes]:
    file.seek(0)
    digest = hashlib.md5(usedforsecurity=False)
    while block := file.read(1 << 20):
        digest.update(block)
    return file.tell(), digest.digest()


@dataclass(slots=True)
class _Upload:
    """One file on its way."""

    bucket: Bucket
    name: str
    file: BinaryIO
    size: int
    md5: bytes

    def is_there(self, sender: Sender) -> Flow[bool]:
        """Whether the same is there. Raises `AlreadyExists` where something else is."""
        found = yield from self.bucket.find(sender, self.name)
        if found is None:
            return False
        self._check(found)
        return True

    def _check(self, found: StoredObject) -> None:
        if found.size != self.size or found.md5 not in (None, self.md5):
            raise AlreadyExists(
                f"gs://{self.bucket.name}/{self.name} is there already and holds something else: "
                "it was not written over",
                field="staging",
            )

    def send(self, sender: Sender) -> Flow[None]:
        """Begin and go on until all is there."""
        failures, after, most = 0, 0.0, 0
        offset: int | None = 0
        address = yield from self._begin(sender)
        while address is not None:
            error: EmbatchError | None
            try:
                offset, error = yield from self._step(address, offset, after)
            except NotFound as gone:
                address, offset, error = (yield from self._begin(sender)), 0, gone
            except AlreadyExists:
                break
            if offset == self.size:
                return
            if offset is not None and offset > most:
                failures, most = 0, offset
            after = 0.0
            if error is not None:
                failures += 1
                delay = sender.submit.delay(failures, sender.outside.chance(), error.retry_after)
                if delay is None:
                    raise error
                after = delay
        # Somebody else wrote it meanwhile: an earlier attempt of ours whose answer was lost, or another one.
        if not (yield from self.is_there(sender)):
            raise ConnectionFailed(f"gs://{self.bucket.name}/{self.name} came and went while it was uploaded")

    def _begin(self, sender: Sender) -> Flow[str | None]:
        """Return where to send it; `None` where it is there already."""
        try:
            reply = yield from sender.send(self.bucket.begin(self.name, self.size, self.md5))
        except AlreadyExists:
            return None
        except (NotFound, PermissionDenied) as error:
            raise type(error)(
                f"nothing can be staged in gs://{self.bucket.name}: {error.message}", field="staging"
            ) from None
        address = reply.headers.get(storage.ADDRESS_HEADER)
        if address is None:
            raise DataLoss("Cloud Storage began an upload without saying where to send the file")
        return address

    def _step(
        self, address: str, offset: int | None, after: float
    ) -> Flow[tuple[int | None, EmbatchError | None]]:
        """Send the next chunk, or, without an offset, ask how much has arrived.

        Returns:
            How many bytes need not be sent again, all of them once the file is there, `None` where nobody
            knows; and what went wrong, if it can pass.

        Raises:
            NotFound: the upload is no longer known.
            AlreadyExists: somebody else completed one of that name.
        """
        try:
            reply = yield self._call(address, offset, after)
        except ConnectionFailed as lost:
            return None, lost
        if reply.status in (200, 201):
            self._check(storage.parse_object(reply.body))
            return self.size, None
        if reply.status == storage.INCOMPLETE:
            kept = storage.arrived(reply.headers)
            stuck = offset is not None and kept <= offset
            return kept, ConnectionFailed("Cloud Storage kept nothing of a chunk") if stuck else None
        error = read_errors.parse_error(reply.status, reply.headers, reply.body, reply.via)
        if reply.status in storage.GONE:
            raise NotFound(error.message)
        if reply.status == storage.EXISTS:
            raise AlreadyExists(error.message)
        if not passing(error):
            raise error
        return None, error

    def _call(self, address: str, offset: int | None, after: float) -> Call:
        if offset is None:
            return Call("PUT", address, headers=storage.query_headers(self.size), after=after)
        self.file.seek(offset)
        chunk = self.file.read(storage.CHUNK_BYTES)
        headers = storage.chunk_headers(offset, len(chunk), self.size)
        return Call("PUT", address, headers=headers, body=chunk, after=after, patience=SLOW)
