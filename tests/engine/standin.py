"""An OpenAI-style embeddings endpoint on the loopback, whose answers the test writes.

    with standing_in() as endpoint:
        endpoint.script.append(Answer(503, headers={"Retry-After": "7"}))    # once, then as usual
        endpoint.usual = lambda call: Answer(200, reply(call, form="float"))    # from now on

Usual answers are the hashing engine's vectors, so that equal texts have equal ones.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np

from embatch.engine import hashing
from embatch.engine.protocol import EngineSpec, Shape
from embatch.engine.remote import RemoteEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

DIMENSIONS = 64
KEY = "sk-a-secret-that-nobody-shall-read"


@dataclass(frozen=True)
class Call:
    """One request the endpoint got."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        return list(self.body["input"])


@dataclass(frozen=True)
class Answer:
    """What the endpoint says. No status: it hangs up without a word."""

    status: int | None = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None
    """`Content-Length`, where it shall be another than there is."""


@dataclass
class StandIn:
    """The endpoint. `calls` are in order of arrival."""

    url: str
    calls: list[Call] = field(default_factory=list)
    script: deque[Answer] = field(default_factory=deque)
    """Answers to the next requests; when it is empty, `usual` answers."""
    usual: Callable[[Call], Answer] = field(default=lambda call: Answer(200, reply(call)))
    asked: threading.Event = field(default_factory=threading.Event)
    """Set when a request has arrived."""

    def answer(self, call: Call) -> Answer:
        """Return what to say to a request."""
        self.calls.append(call)
        chosen = self.script.popleft() if self.script else self.usual(call)
        self.asked.set()
        return chosen


@cache
def vector(text: str) -> NDArray[np.float32]:
    """Return the float32 vector of a text, length 1."""
    spec = EngineSpec("hashing", "stand-in", options={"dimensions": str(DIMENSIONS)})
    return hashing.load(spec).forward([text], Shape(1, 1)).reshape(DIMENSIONS)


def compact(numbers: Any) -> str:
    """Return base64 of float32, little-endian."""
    return base64.b64encode(np.asarray(numbers, "<f4").tobytes()).decode()


def reply(call: Call, form: str | None = None) -> bytes:
    """Return the right answer, in the form that was asked for, or in another one."""
    form = form or call.body.get("encoding_format", "float")
    data = [
        {
            "object": "embedding",
            "index": place,
            "embedding": compact(vector(text)) if form == "base64" else floats,
        }
        for place, text in enumerate(call.texts)
        for floats in [vector(text).tolist()]
    ]
    return body(data)


def body(data: object, **more: object) -> bytes:
    """Return an answer around this data, with other or further members."""
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return json.dumps({"object": "list", "data": data, "model": "stand-in", "usage": usage, **more}).encode()


@contextlib.contextmanager
def standing_in() -> Iterator[StandIn]:
    """Run the endpoint on a free port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            said = endpoint.answer(Call(self.path, dict(self.headers.items()), json.loads(content)))
            if said.status is None:
                self.close_connection = True
                return
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header(
                "Content-Length", str(len(said.body) if said.promised is None else said.promised)
            )
            self.end_headers()
            with contextlib.suppress(OSError):  # whoever has read enough hangs up
                self.wfile.write(said.body)
            if said.promised is not None:
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        endpoint = StandIn(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []
        self.engines: list[RemoteEngine] = []
        """Closed when the test has ended."""

    def look(self) -> float:
        """Return the time."""
        return self.now

    def wait(self, seconds: float) -> None:
        """Let the time pass."""
        self.waits.append(seconds)
        self.now += seconds


def start(endpoint: StandIn, clock: Clock, model: str = "stand-in", **options: str) -> RemoteEngine:
    """Return an engine with a key, which waits without waiting; jitter is always half."""
    spec = EngineSpec("remote", model, url=endpoint.url, options=options)
    loaded = RemoteEngine(spec, key=KEY, wait=clock.wait, clock=clock.look, chance=lambda: 0.5)
    clock.engines.append(loaded)
    return loaded


def always(answer: Answer) -> Callable[[Call], Answer]:
    """Return what says the same to everything."""
    return lambda _: answer
