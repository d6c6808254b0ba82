"""A Hub on loopback: repositories are folders, every request is written down."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, tuple[str, Path]]
    """`org/name` → commit and folder."""
    url: str = ""
    requests: list[str] = field(default_factory=list)

    @property
    def downloaded(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {
            line.split("/resolve/")[1].split("/", 1)[1]
            for line in self.requests
            if line[:4] == "GET " and "/resolve/" in line
        }


@contextmanager
def serving_hub(**repositories: tuple[str, Path]) -> Iterator[Hub]:
    """Serve repositories (`org__name=(commit, folder)`) until the block ends."""
    hub = Hub({name.replace("__", "/"): place for name, place in repositories.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            for name, (commit, folder) in hub.repositories.items():
                if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                    revision = path.rpartition("/revision/")[2] if "/revision/" in path else "main"
                    if revision not in {"main", commit}:
                        return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
                    about = {"id": name, "sha": commit, "siblings": [{"rfilename": f} for f in files(folder)]}
                    return self.send(200, json.dumps(about).encode(), {}, body=body)
                if path == f"/api/models/{name}/tree/{commit}":
                    tree = [
                        {"type": "file", "path": file, "size": size, "oid": digest}
                        for file, (size, digest) in files(folder).items()
                    ]
                    return self.send(200, json.dumps(tree).encode(), {}, body=body)
                prefix = f"/{name}/resolve/{commit}/"
                if path.startswith(prefix) and path.removeprefix(prefix) in files(folder):
                    file = path.removeprefix(prefix)
                    headers = {"ETag": f'"{files(folder)[file][1]}"', "X-Repo-Commit": commit}
                    return self.send(200, (folder / file).read_bytes(), headers, body=body)
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

        def send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def files(folder: Path) -> dict[str, tuple[int, str]]:
    """Return every file's size and git-like digest."""
    return {
        str(file.relative_to(folder)): (file.stat().st_size, hashlib.sha1(file.read_bytes()).hexdigest())  # noqa: S324 - as git does
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
