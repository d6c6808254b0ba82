"""Files on the wire: Google's resumable upload, multipart and raw ones, and get, list, delete, download.

    POST /upload/v1/files              start → an address that is its own credential
    POST {address}                     upload · upload, finalize · query · cancel
    GET  /v1/files/{id}:download       results; what was uploaded is not given out again

A chunk's bytes go to disk as they arrive, in threads, some of them at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from anyio import CancelScope, to_thread
from fastapi import Request, Response  # noqa: TC002  (read at run time, by FastAPI)

from embatch.api import problems, routing
from embatch.api.addresses import base_address
from embatch.api.bodies import small_body
from embatch.api.multipart import DESCRIPTION_BYTES, RelatedReader, boundary_of
from embatch.api.routing import json_answer
from embatch.api.streaming import StreamedResponse, begun
from embatch.errors import EmbatchError, InvalidArgument, NotFound
from embatch.wire.gemini import routes, uploads, write_responses
from embatch.wire.gemini.files import announced, display_name, resource
from embatch.wire.gemini.read_queries import byte_count, page_size
from embatch.wire.gemini.write_errors import in_words_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import APIRouter

    from embatch.api.threads import Threads
    from embatch.batch import FileRecord
    from embatch.service.application import Service
    from embatch.wire.gemini.files import Announced

_PIECE_BYTES: Final = 1 << 20
"""What is handed to a thread for writing at a time."""
_FILES_A_PAGE: Final = (10, 100)


def router(service: Service, threads: Threads) -> APIRouter:
    """Return the file routes."""
    face = _Files(service, threads)
    return routing.router(
        (
            (routes.UPLOAD, face.upload, "Upload a file"),
            (routes.LIST_FILES, face.list, "List files"),
            (routes.DOWNLOAD, face.download, "Download results"),
            (routes.GET_FILE, face.get, "Look a file up"),
            (routes.DELETE_FILE, face.delete, "Delete a file"),
        )
    )


class _Files:
    """The handlers of the file routes."""

    def __init__(self, service: Service, threads: Threads) -> None:
        self._service, self._uploads, self._results = service, service.uploads, threads.results

    async def upload(self, request: Request) -> Response:
        """Begin, continue or complete an upload; which, the headers and the address say."""
        token = request.query_params.get(routes.UPLOAD_ID)
        if token is not None:
            return await self._step(request, token)
        match uploads.protocol(request.headers, request.query_params):
            case "resumable":
                return await self._start(request)
            case "multipart":
                return await self._multipart(request)
            case "raw" | "media":
                return await self._raw(request)
            case _:
                raise InvalidArgument("uploads are resumable, multipart or raw", field=routes.UPLOAD_PROTOCOL)

    async def _start(self, request: Request) -> Response:
        if "start" not in uploads.commands(request.headers):
            raise InvalidArgument("a resumable upload begins with `start`", field=routes.UPLOAD_COMMAND)
        said = announced(
            await small_body(request, "a file's description", DESCRIPTION_BYTES),
            mime_type=request.headers.get(routes.UPLOAD_TYPE),
            size=byte_count(request.headers.get(routes.UPLOAD_LENGTH), routes.UPLOAD_LENGTH),
        )
        token = await self._begin(said)
        return json_answer({}, uploads.started_headers(f"{base_address(request)}{request.url.path}", token))

    async def _begin(self, said: Announced) -> str:
        with in_words_of(routes.UPLOAD):
            return await to_thread.run_sync(
                self._uploads.begin, said.file_id, said.display_name, said.mime_type, said.size
            )

    async def _step(self, request: Request, token: str) -> Response:
        try:
            commands = uploads.commands(request.headers)
            if "cancel" in commands:
                made = await to_thread.run_sync(self._uploads.cancel, token)
                return _status("cancelled") if made is None else _final(made, request)
            if "query" in commands:
                return await self._query(request, token)
            if not commands & {"upload", "finalize"}:
                await to_thread.run_sync(self._uploads.offset, token)  # an unknown upload comes first
                raise InvalidArgument(
                    "the command is upload, finalize, query or cancel", field=routes.UPLOAD_COMMAND
                )
            received = None
            if "upload" in commands:
                offset = uploads.offset(request.headers)
                received = await self._write(token, offset, request.stream())
            if "finalize" in commands:
                return await self._finish(request, token)
            return _status("active", received)
        except EmbatchError as error:
            answer = problems.answer(error)
            answer.headers.update(
                uploads.status_headers("cancelled" if isinstance(error, NotFound) else "refused")
            )
            return answer

    async def _query(self, request: Request, token: str) -> Response:
        try:
            return _status("active", await to_thread.run_sync(self._uploads.offset, token))
        except NotFound:
            # The answer to its end may have been lost: whoever hears it now need not send everything again.
            return await self._finish(request, token)

    async def _write(self, token: str, offset: int, body: AsyncIterator[bytes]) -> int:
        """Append a body from an offset on; return how many bytes there are then."""
        # An offset is judged even if no byte follows.
        received = await self._append(token, offset, b"")
        piece = bytearray()
        async for data in body:
            piece += data
            if len(piece) >= _PIECE_BYTES:
                received = await self._append(token, offset, bytes(piece))
                offset += len(piece)
                piece.clear()
        return await self._append(token, offset, bytes(piece)) if piece else received

    async def _append(self, token: str, offset: int, piece: bytes) -> int:
        with in_words_of(routes.UPLOAD):
            return await to_thread.run_sync(self._uploads.append, token, offset, piece)

    async def _finish(self, request: Request, token: str) -> Response:
        with in_words_of(routes.UPLOAD):
            made = await to_thread.run_sync(self._uploads.finish, token)
        return _final(made, request)

    async def _multipart(self, request: Request) -> Response:
        reader = RelatedReader(request.stream(), boundary_of(request.headers.get("content-type", "")))
        described = await reader.metadata()
        said = announced(described, mime_type=(await reader.file_head()).content_type or None)
        return await self._whole(request, said, reader.file())

    async def _raw(self, request: Request) -> Response:
        said = announced(b"", mime_type=request.headers.get("content-type"))
        name = request.headers.get(routes.UPLOAD_FILE_NAME)
        said = replace(said, display_name=display_name(name))
        return await self._whole(request, said, request.stream())

    async def _whole(self, request: Request, said: Announced, body: AsyncIterator[bytes]) -> Response:
        """Take a file that comes in one request; nothing of it stays if it does not come to its end."""
        token = await self._begin(said)
        try:
            await self._write(token, 0, body)
            return await self._finish(request, token)
        except BaseException:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._uploads.drop, token)
            raise

    async def list(self, request: Request) -> Response:
        """Answer a page of uploaded files, newest first."""
        size = page_size(request.query_params.get(routes.PAGE_SIZE), *_FILES_A_PAGE)
        token = request.query_params.get(routes.PAGE_TOKEN) or None
        with in_words_of(routes.LIST_FILES):
            page = await to_thread.run_sync(self._service.files, size, token)
        address = _address(request)
        files = (resource(record, address) for record in page.items)
        return json_answer(write_responses.page("files", files, page.next_page_token))

    async def get(self, request: Request, id: str) -> Response:  # noqa: A002  (the path's name for it)
        """Answer one file's description."""
        with in_words_of(routes.GET_FILE):
            record = await to_thread.run_sync(self._service.file, f"files/{id}")
        return json_answer(resource(record, _address(request)))

    async def delete(self, id: str) -> Response:  # noqa: A002
        """Delete an uploaded file."""
        with in_words_of(routes.DELETE_FILE):
            await to_thread.run_sync(self._service.delete_file, f"files/{id}")
        return json_answer({})

    async def download(self, id: str) -> Response:  # noqa: A002
        """Stream the results of a file batch; an uploaded file is not given out."""
        with in_words_of(routes.DOWNLOAD):
            parts = await self._results.run(lambda: begun(self._service.results_of_file(f"files/{id}").parts))
        return StreamedResponse(
            self._results.stream(b"".join(write_responses.lines(part)) for part in parts),
            media_type="application/jsonl",
            headers={"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"},
        )


def _final(record: FileRecord, request: Request) -> Response:
    return json_answer({"file": resource(record, _address(request))}, uploads.status_headers("final"))


def _status(status: str, received: int | None = None) -> Response:
    return json_answer({}, uploads.status_headers(status, received))


def _address(request: Request) -> str:
    """Return where files are for whoever asks: the address by which they reach us, in their version."""
    version = next(part for part in request.url.path.split("/") if part in routes.VERSIONS)
    return f"{base_address(request)}/{version}"
