"""A Hub on loopback: repositories are folders, every request is written down."""

from __future__ import annotations

import hashlib
import json
import select
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Answer = tuple[int, bytes, dict[str, str]]
"""Status, content, headers."""


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, tuple[str, Path]]
    """`org/name` → commit and folder."""
    url: str = ""
    requests: list[str] = field(default_factory=list)
    stalling: set[str] = field(default_factory=set)
    """Names of files of which half is sent until `go_on` is set, or until whoever asked has gone."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set once half of such a file is sent."""
    go_on: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    """Set once whoever waited for the rest has gone."""

    @property
    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        gets = (line.partition("/resolve/")[2] for line in self.requests if line.startswith("GET "))
        return {rest.partition("/")[2] for rest in gets if rest}

    def answer(self, path: str) -> Answer:
        """Return what the Hub says to a path, as far as a download needs it."""
        for name, (commit, folder) in self.repositories.items():
            here, about = files(folder), f"/api/models/{name}"
            if path in {about, f"{about}/revision/main", f"{about}/revision/{commit}"}:
                listed = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in here]}
                return 200, json.dumps(listed).encode(), {}
            if path.startswith(f"{about}/revision/"):
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
            if path == f"{about}/tree/{commit}":
                tree = [
                    {"type": "file", "path": file, "size": size, "oid": digest}
                    for file, (size, digest) in here.items()
                ]
                return 200, json.dumps(tree).encode(), {}
            file = path.removeprefix(f"/{name}/resolve/{commit}/")
            if file in here:
                headers = {"ETag": f'"{here[file][1]}"', "X-Repo-Commit": commit}
                return 200, (folder / file).read_bytes(), headers
        return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


@contextmanager
def serving_hub(**repositories: tuple[str, Path]) -> Iterator[Hub]:
    """Serve repositories (`org__name=(commit, folder)`) until the block ends."""
    hub = Hub({name.replace("__", "/"): place for name, place in repositories.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, content, headers = hub.answer(path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET" and path.rpartition("/")[2] in hub.stalling:
                self._stall(content)
            elif self.command == "GET":
                self.wfile.write(content)

        def _stall(self, content: bytes) -> None:
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            hub.stalled.set()
            while not hub.go_on.is_set():
                # Who has gone can be read of; who waits says nothing.
                if select.select([self.connection], [], [], 0.02)[0]:
                    hub.left.set()
                    self.close_connection = True
                    return
            self.wfile.write(content[half:])

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            server.shutdown()
            thread.join()


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return every file's size and git-like digest."""
    return {
        str(file.relative_to(folder)): (file.stat().st_size, hashlib.sha1(file.read_bytes()).hexdigest())  # noqa: S324 - as git does
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
