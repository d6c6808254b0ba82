"""A process killed with -9 on its way through a plain submit: what it paid for is found, not paid again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import httpx2
import pytest
from fake_gemini import HOST, FakeGemini

from embatch import Client, Unavailable
from embatch.client.base import set_environment
from embatch.client.calls import Environment
from embatch.client.unknown_fate import APART, OLD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.hosted

KEY = "canary-of-the-account"
SUBMIT = """
import sys
from embatch import Client

url, data, key, name = sys.argv[1:]
with Client("gemini", base_url=url, api_key=key, data=data) as client:
    batch = client.async_batch_embed_contents(
        ["one", "two words"], display_name="Test", idempotency_key=name or None
    )
    print(batch.name, flush=True)
    sys.stdin.read()
"""


@dataclass
class Line:
    """A Gemini behind a real port, whose creates stop where they are told to."""

    stop: str = ""
    """`unheard`: a create is never looked at; `unanswered`: its batch is made, and nobody hears of it."""
    fake: FakeGemini = field(default_factory=FakeGemini)
    stopped: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    creates: int = 0

    def answer(self, request: httpx2.Request) -> httpx2.Response | None:
        """Answer one request, or stand still until it is over."""
        create = request.url.path.endswith(":asyncBatchEmbedContent")
        reply = None if create and self.stop == "unheard" else self.fake(request)
        self.creates += create and reply is not None
        if create and self.stop:
            self.stopped.set()
            assert self.over.wait(120)
            return None
        return reply


@contextmanager
def listening(line: Line) -> Iterator[str]:
    """Put it behind a port of this machine; return its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {"x-goog-api-key": "the-key"} if self.headers["x-goog-api-key"] == KEY else {}
            request = httpx2.Request(
                self.command, f"https://{HOST}{self.path}", headers=headers, content=body
            )
            reply = line.answer(request)
            self.close_connection = True
            if reply is not None:
                self.send_response(reply.status_code)
                self.send_header("Content-Length", str(len(reply.content)))
                self.end_headers()
                self.wfile.write(reply.content)

        do_POST = do_GET  # noqa: N815  (the library's name)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        line.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def killed(line: Line, url: str, data: Path, name: str) -> None:
    """Submit in a process of its own and kill it where the line stops, or once it has the batch."""
    command = [sys.executable, "-c", SUBMIT, url, str(data), KEY, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if line.stop:
            assert line.stopped.wait(120)
        else:
            assert child.stdout.readline()
        child.kill()
    line.stop = ""


def submitted(url: str, data: Path, name: str, date: float | None = None) -> str:
    """Submit the same from here; return the name of the batch."""
    with Client("gemini", base_url=url, api_key=KEY, data=data) as client:
        now = time.time() if date is None else date
        set_environment(client, Environment(chance=lambda: 0.0, date=lambda: now))
        return client.async_batch_embed_contents(
            ["one", "two words"], display_name="Test", idempotency_key=name or None
        ).name


@pytest.mark.parametrize("name", ["", "mine"], ids=["without a key", "with a key"])
def test_a_batch_whose_reply_died_with_its_process(tmp_path: Path, name: str) -> None:
    """The same call finds it in the list; with a key any later one does, without one it is another submit."""
    line = Line("unanswered")
    with listening(line) as url:
        killed(line, url, tmp_path, name)
        (made,) = line.fake.jobs
        assert submitted(url, tmp_path, name) == made
        assert line.creates == 1
        assert (submitted(url, tmp_path, name) == made) is bool(name)
    assert line.creates == (1 if name else 2)
    assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "journal").iterdir())


def test_a_create_that_died_on_its_way(tmp_path: Path) -> None:
    """It is not sent again before it is sure that nobody has heard of it, and then once."""
    line, begun = Line("unheard"), time.time()
    with listening(line) as url:
        killed(line, url, tmp_path, "")
        for date in (begun + 60, begun + 60 + APART, begun + OLD - 1):
            with pytest.raises(Unavailable, match="not known whether the batch was created"):
                submitted(url, tmp_path, "", date)
        assert line.creates == 0
        made = submitted(url, tmp_path, "", time.time() + OLD)
        assert [made] == list(line.fake.jobs)
    assert line.creates == 1


def test_a_process_that_died_with_its_batch(tmp_path: Path) -> None:
    """It had the batch: without a key the same call is another submit, and nothing is looked for."""
    line = Line()
    with listening(line) as url:
        killed(line, url, tmp_path, "")
        submitted(url, tmp_path, "")
    assert line.creates == 2
    assert not [one for one in line.fake.seen if one.method == "GET" and one.url.path.endswith("/batches")]
