"""Files on the wire: Google's resumable upload, multipart and raw ones, and get, list, delete, download.

    POST /upload/v1/files              start → an address that is its own credential
    POST {address}                     upload · upload, finalize · query · cancel
    GET  /v1/files/{id}:download       results; what was uploaded is not given out again

A chunk's bytes go to disk as they arrive, in threads, some of them at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson
from anyio import CancelScope, to_thread
from fastapi import APIRouter, Request, Response

from embatch.api import problems
from embatch.api.bodies import small_body
from embatch.api.multipart import DESCRIPTION_BYTES, RelatedReader, boundary_of
from embatch.api.streaming import StreamedResponse, begun
from embatch.errors import EmbatchError, InvalidArgument, NotFound, TooLarge
from embatch.wire.gemini.files import announced, base_address, display_name, resource
from embatch.wire.gemini.write_responses import lines

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from embatch.api.threads import Threads
    from embatch.batch import FileRecord
    from embatch.service.application import Service
    from embatch.settings import Settings
    from embatch.wire.gemini.files import Announced

_PIECE_BYTES: Final = 1 << 20
"""What is handed to a thread for writing at a time."""
_PAGE: Final = 10
_LARGEST_PAGE: Final = 100


def router(service: Service, settings: Settings, threads: Threads) -> APIRouter:
    """Return the file routes, the same under every version of the protocol."""
    faces = _Files(service, settings, threads)
    routes = APIRouter()
    for version in ("v1", "v1beta", "v1alpha"):
        for path in (f"/upload/{version}/files", f"/resumable/upload/{version}/files"):
            routes.add_api_route(path, faces.upload, methods=["POST", "PUT"], summary="Upload a file")
        routes.add_api_route(f"/{version}/files", faces.list, methods=["GET"], summary="List files")
        for path in (f"/{version}/files/{{id}}:download", f"/download/{version}/files/{{id}}:download"):
            routes.add_api_route(path, faces.download, methods=["GET"], summary="Download results")
        one = f"/{version}/files/{{id}}"
        routes.add_api_route(one, faces.get, methods=["GET"], summary="Look a file up")
        routes.add_api_route(one, faces.delete, methods=["DELETE"], summary="Delete a file")
    return routes


class _Files:
    """The handlers of the file routes."""

    def __init__(self, service: Service, settings: Settings, threads: Threads) -> None:
        self._service, self._uploads = service, service.uploads
        self._settings, self._results = settings, threads.results

    async def upload(self, request: Request) -> Response:
        """Begin, continue or complete an upload; which, the headers and the address say."""
        token = request.query_params.get("upload_id")
        if token is not None:
            return await self._step(request, token)
        protocol = (
            request.headers.get("x-goog-upload-protocol")
            or request.query_params.get("upload_protocol")
            or request.query_params.get("uploadType")
            or "raw"
        ).lower()
        match protocol:
            case "resumable":
                return await self._start(request)
            case "multipart":
                return await self._multipart(request)
            case "raw" | "media":
                return await self._raw(request)
            case _:
                raise InvalidArgument(
                    "uploads are resumable, multipart or raw", field="X-Goog-Upload-Protocol"
                )

    async def _start(self, request: Request) -> Response:
        if "start" not in _commands(request):
            raise InvalidArgument("a resumable upload begins with `start`", field="X-Goog-Upload-Command")
        said = announced(
            await small_body(request, "a file's description", DESCRIPTION_BYTES),
            mime_type=request.headers.get("x-goog-upload-header-content-type"),
            size=_number(request, "x-goog-upload-header-content-length"),
        )
        token = await self._begin(said)
        base = base_address(request)
        return Response(
            b"{}",
            media_type="application/json",
            headers={
                "X-Goog-Upload-URL": f"{base}{request.url.path}?upload_id={token}&upload_protocol=resumable",
                "X-Goog-Upload-Status": "active",
                "X-Goog-Upload-Chunk-Granularity": "1",
            },
        )

    async def _begin(self, said: Announced) -> str:
        if said.size is not None and said.size > self._settings.file_bytes:
            raise TooLarge(f"a file may have {self._settings.file_bytes} bytes", field="file.sizeBytes")
        return await to_thread.run_sync(
            self._uploads.begin, said.file_id, said.display_name, said.mime_type, said.size
        )

    async def _step(self, request: Request, token: str) -> Response:
        try:
            commands = _commands(request)
            if "cancel" in commands:
                made = await to_thread.run_sync(self._uploads.cancel, token)
                return _status("cancelled") if made is None else _final(made, request)
            if "query" in commands:
                return await self._query(request, token)
            if not commands & {"upload", "finalize"}:
                await to_thread.run_sync(self._uploads.offset, token)  # an unknown upload comes first
                raise InvalidArgument(
                    "the command is upload, finalize, query or cancel", field="X-Goog-Upload-Command"
                )
            received = None
            if "upload" in commands:
                offset = _number(request, "x-goog-upload-offset")
                if offset is None:
                    raise InvalidArgument("say where the chunk begins", field="X-Goog-Upload-Offset")
                received = await self._write(token, offset, request.stream())
            if "finalize" in commands:
                return await self._finish(request, token)
            return _status("active", received)
        except EmbatchError as error:
            # Without the header Google's client sends the chunk again, three times, seven seconds long; with
            # `active` it takes the chunk for accepted.
            answer = problems.answer(error)
            answer.headers["X-Goog-Upload-Status"] = "cancelled" if isinstance(error, NotFound) else "refused"
            return answer

    async def _query(self, request: Request, token: str) -> Response:
        try:
            return _status("active", await to_thread.run_sync(self._uploads.offset, token))
        except NotFound:
            # The answer to its end may have been lost: whoever hears it now need not send everything again.
            return await self._finish(request, token)

    async def _write(self, token: str, offset: int, body: AsyncIterator[bytes]) -> int:
        """Append a body from an offset on; return how many bytes there are then."""
        piece = bytearray()
        # An offset is judged even if no byte follows.
        received = await to_thread.run_sync(self._uploads.append, token, offset, b"")
        async for data in body:
            piece += data
            if len(piece) >= _PIECE_BYTES:
                received = await to_thread.run_sync(self._uploads.append, token, offset, bytes(piece))
                offset += len(piece)
                piece.clear()
        if piece:
            received = await to_thread.run_sync(self._uploads.append, token, offset, bytes(piece))
        return received

    async def _finish(self, request: Request, token: str) -> Response:
        return _final(await to_thread.run_sync(self._uploads.finish, token), request)

    async def _multipart(self, request: Request) -> Response:
        reader = RelatedReader(request.stream(), boundary_of(request.headers.get("content-type", "")))
        described = await reader.metadata()
        said = announced(described, mime_type=(await reader.file_head()).content_type or None)
        return await self._whole(request, said, reader.file())

    async def _raw(self, request: Request) -> Response:
        said = announced(b"", mime_type=request.headers.get("content-type"))
        name = request.headers.get("x-goog-upload-file-name")
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
        size = _page_size(request)
        page = await to_thread.run_sync(
            self._service.files, size, request.query_params.get("pageToken") or None
        )
        said: dict[str, Any] = {"files": [resource(record, request) for record in page.items]}
        if page.next_page_token is not None:
            said["nextPageToken"] = page.next_page_token
        return _json(said)

    async def get(self, request: Request, id: str) -> Response:  # noqa: A002  (the path's name for it)
        """Answer one file's description."""
        return _json(resource(await to_thread.run_sync(self._service.file, f"files/{id}"), request))

    async def delete(self, id: str) -> Response:  # noqa: A002
        """Delete an uploaded file."""
        await to_thread.run_sync(self._service.delete_file, f"files/{id}")
        return _json({})

    async def download(self, id: str) -> Response:  # noqa: A002
        """Stream the results of a file batch; an uploaded file is not given out."""
        parts = await self._results.run(lambda: begun(self._service.results_of_file(f"files/{id}").parts))
        return StreamedResponse(
            self._results.stream(b"".join(lines(part)) for part in parts),
            media_type="application/jsonl",
            headers={"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"},
        )


def _commands(request: Request) -> set[str]:
    return {part.strip().lower() for part in request.headers.get("x-goog-upload-command", "").split(",")}


def _number(request: Request, name: str) -> int | None:
    value = request.headers.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdecimal() or len(value) > 18:
        raise InvalidArgument("this must be a number of bytes", field=name.title())
    return int(value)


def _page_size(request: Request) -> int:
    text = request.query_params.get("pageSize", "")
    if not text:
        return _PAGE
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise InvalidArgument("the page size is a number, 0 or more", field="pageSize")
    return min(int(text), _LARGEST_PAGE) or _PAGE


def _json(said: object) -> Response:
    return Response(orjson.dumps(said), media_type="application/json")


def _final(record: FileRecord, request: Request) -> Response:
    answer = _json({"file": resource(record, request)})
    answer.headers["X-Goog-Upload-Status"] = "final"
    return answer


def _status(status: str, received: int | None = None) -> Response:
    answer = _json({})
    answer.headers["X-Goog-Upload-Status"] = status
    if received is not None:
        answer.headers["X-Goog-Upload-Size-Received"] = str(received)
    return answer
