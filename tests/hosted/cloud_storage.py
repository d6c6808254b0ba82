"""A real emulator of Cloud Storage, and the way to it past a stand-in, where connections break.

Which emulator: `gcp-storage-emulator`. It is on the package index as plain Python, so that it is locked by
hash like everything else and needs no container; it has the JSON API with media, multipart and resumable
uploads, listing and ranges, and both pyarrow's client and Google's own pass on it. Google's storage-testbench
is on no index, fake-gcs-server is a Go binary. What it lacks is added: pages, tokens, broken uploads.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import warnings
from functools import partial
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

import orjson
from hosted.http_server import Broken
from hosted.replies import Refused, Reply, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hosted.http_server import Ask

_GRANULE = 256 * 1024
_HOPS = {"connection", "transfer-encoding", "content-length", "expect", "authorization", "accept-encoding"}
_LEFT_OUT = {"connection", "content-length", "server", "date", "transfer-encoding"}


class Emulator:
    """The emulator with an empty bucket; a context manager."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its file-system library is old
            from gcp_storage_emulator.handlers import buckets
            from gcp_storage_emulator.server import RequestHandler
            from gcp_storage_emulator.storage import Storage

            storage = Storage(use_memory_fs=True)
            buckets.create_bucket(self.bucket, storage)
        # One connection at a time, as it serves itself, would wait for ever on a client that keeps several.
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, storage))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where it answers, for STORAGE_EMULATOR_HOST."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_port}"

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> Reply:
        """Ask the emulator."""
        assert self._server is not None
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self._server.server_port)
        ) as connection:
            connection.request(method, target, body, dict(headers))
            got = connection.getresponse()
            kept = {name: value for name, value in got.getheaders() if name.lower() not in _LEFT_OUT}
            return Reply(got.status, got.read(), kept)

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the objects of the bucket in order."""
        query = urlencode({"prefix": prefix})
        listed = self.send("GET", f"/storage/v1/b/{self.bucket}/o?{query}", {}, None)
        return sorted(one["name"] for one in orjson.loads(_bytes(listed)).get("items", []))

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        got = self.send("GET", f"/storage/v1/b/{self.bucket}/o/{quote(name, safe='')}?alt=media", {}, None)
        return _bytes(got) if got.status == 200 else None

    def write(self, name: str, content: bytes) -> None:
        """Put an object."""
        query = urlencode({"uploadType": "media", "name": name})
        headers = {"Content-Type": "application/octet-stream"}
        put = self.send("POST", f"/upload/storage/v1/b/{self.bucket}/o?{query}", headers, content)
        assert put.status == 200, put

    def pass_on(self, route: str, ask: Ask, most: int | None) -> Reply:
        """Hand a client's request to the emulator; `most` entries of a list at once."""
        headers = {name: value for name, value in ask.headers.items() if name not in _HOPS}
        try:
            body = ask.body.read() if ask.method in {"POST", "PUT", "PATCH"} else None
        except Broken as broken:
            self._keep_part(route, ask, headers, broken.part)
            raise
        if route == "storage.list":
            return self._page(ask, headers, most)
        return self.send(ask.method, ask.target, headers, body)

    def _keep_part(self, route: str, ask: Ask, headers: dict[str, str], part: bytes) -> None:
        # Of a chunk that breaks off the service keeps whole granules.
        said = re.fullmatch(r"bytes (\d+)-.*", ask.headers.get("content-range", ""))
        kept = part[: len(part) // _GRANULE * _GRANULE]
        if route == "storage.chunk" and said and kept:
            first = int(said[1])
            headers["content-range"] = f"bytes {first}-{first + len(kept) - 1}/*"
            self.send(ask.method, ask.target, headers, kept)

    def _page(self, ask: Ask, headers: dict[str, str], most: int | None) -> Reply:
        got = self.send("GET", ask.target, headers, None)
        if got.status != 200:
            return got
        listed: dict[str, Any] = orjson.loads(_bytes(got))
        size = min(int(ask.query.get("maxResults") or 1000), most or 1000)
        after = ask.query.get("pageToken", "")
        items = sorted(listed.get("items", []), key=lambda one: str(one["name"]))
        rest = [one for one in items if one["name"] > after]
        more = {"nextPageToken": rest[size - 1]["name"]} if len(rest) > size else {}
        prefixes = {} if after else {"prefixes": listed.get("prefixes", [])}
        return say({"kind": listed["kind"], **prefixes, "items": rest[:size], **more})


def storage_route(ask: Ask) -> str:
    """Name the route of a request to Cloud Storage; nothing if it is none."""
    if ask.path.startswith("/upload/storage/"):
        asks = "*/" in ask.headers.get("content-range", "")
        return "storage.query" if asks else "storage.chunk" if "upload_id" in ask.query else "storage.upload"
    if ask.path.startswith("/download/storage/"):
        return "storage.read"
    found = re.fullmatch(r"/storage/v1/b/[^/]+/o(/.+)?", ask.path)
    if found is None:
        return "storage.other" if ask.path.startswith(("/storage/", "/batch/storage/")) else ""
    of_one = {"GET": "storage.read" if ask.query.get("alt") == "media" else "storage.object"}
    return (
        {**of_one, "DELETE": "storage.delete"}.get(ask.method, "storage.other")
        if found[1]
        else "storage.list"
    )


def split(address: str, bucket: str) -> str:
    """Return the name of an object of the bucket, or a prefix of names."""
    start = f"gs://{bucket}/"
    if not address.startswith(start):
        raise Refused(400, f"There is no bucket in {address!r} that this project may use.")
    return address.removeprefix(start)


def lines(content: bytes) -> Iterator[bytes]:
    """Yield the lines of a JSONL object that hold something."""
    return (line for line in content.split(b"\n") if line.strip())


def _bytes(reply: Reply) -> bytes:
    assert isinstance(reply.body, bytes)
    return reply.body
