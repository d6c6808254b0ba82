"""What a flow asks for and what it gets: calls and replies as values, and the shape of a flow.

A flow is a generator. It yields a `Call` ("send this, `after` seconds from now"), `Work` ("do this, off the
event loop if there is one"), `Await` ("this is the caller's, and asynchronous") or `Together` ("run these at
the same time") and receives a `Reply`, or has the error thrown in. It never awaits, sleeps or opens a socket
itself, so one flow serves both colours of the client and can be tested with `next()`, `send()` and `throw()`
alone.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.backoff import Backoff

T = TypeVar("T")

NOT_SENT: Final = "NOT_SENT"
"""Reason of a `ConnectionFailed` that came before the first byte was sent: nothing can have happened."""
QUICK: Final = 60.0
"""Seconds without a byte after which an ordinary call is given up."""
SLOW: Final = 600.0
"""The same for calls that embed or read much: the first one may have to load a model."""
ANSWER_BYTES: Final = 256 << 20
"""No answer to an ordinary call is this large, a hundred embeddings as text included."""
OUTPUT_BYTES: Final = 2 << 30
"""The same for one that brings the embeddings of a whole batch as text: 10,000 of 3,072 dimensions, twice."""


class BodySink(Protocol):
    """Where the body of a long answer goes, piece by piece, so that it is never held twice."""

    def begin(self) -> None:
        """A good answer begins: forget what an earlier, broken one brought."""
        ...

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `DataLoss` where they are more than there can be."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to be sent."""

    method: str
    path: str
    """Below the target's address (`/v1/batches/x`), or an absolute address that is its own credential, unless
    it is `signed`."""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    after: float = 0.0
    """Seconds to wait before sending."""
    patience: float = QUICK
    """Seconds without a byte after which the connection counts as lost."""
    sink: BodySink | None = None
    """Takes the body of an answer with status 200; `Reply.body` is then empty. It bounds what it keeps."""
    most: int = ANSWER_BYTES
    """Most bytes of a good answer without a sink, decoded; a larger one is an error."""
    signed: bool = False
    """Whether an absolute address is the provider's own too, and is shown who sends the call."""


@dataclass(frozen=True, slots=True)
class Work:
    """Blocking work between calls: writing files, decoding megabytes."""

    do: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Await:
    """Something of the caller's to be awaited: asyncio's colour does so, the blocking one refuses it."""

    what: Awaitable[object]
    argument: str
    """The one that it came of."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: any HTTP answer, whatever its status; empty after `Work` and `Await`."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""
    via: str = ""
    """What an error has to say of the way it came; empty for the straight one."""


@dataclass(frozen=True, slots=True)
class Together:
    """Flows to be run at the same time. The first error of one is thrown in, and no other is begun then."""

    flows: Sequence[Flow[None]]
    most: int
    """How many at a time."""


Step: TypeAlias = Call | Work | Await | Together
Flow: TypeAlias = Generator[Step, Reply, T]


@dataclass(frozen=True, slots=True)
class Exchange(Generic[T]):
    """One call and what is read from the body of its good reply."""

    call: Call
    read: Callable[[bytes], T]
    instead: Alternative[T] | None = None
    """What is asked instead where the answer is that there is no such thing; `None`: that is the answer."""


@dataclass(frozen=True, slots=True)
class Alternative(Generic[T]):
    """Another way to the same, in one call or several, one after the other."""

    exchanges: tuple[Exchange[T], ...]
    join: Callable[[Sequence[T]], T]
    """Makes one of what they bring, in their order."""


def work(function: Callable[[], T]) -> Flow[T]:
    """Run blocking work through the shell and return what it returns."""
    results: list[T] = []
    yield Work(lambda: results.append(function()))
    return results[0]


def together(flows: Sequence[Flow[T]], most: int) -> Flow[list[T]]:
    """Run flows at the same time, `most` of them at a time, and return what they return, in their order."""
    results: dict[int, T] = {}

    def kept(at: int, flow: Flow[T]) -> Flow[None]:
        results[at] = yield from flow

    yield Together([kept(at, flow) for at, flow in enumerate(flows)], most)
    return [results[at] for at in range(len(flows))]


@dataclass(frozen=True, slots=True)
class Environment:
    """What a flow takes from the world: time, chance and fresh names. Tests give their own."""

    clock: Callable[[], float] = time.monotonic
    """Seconds from any origin, never running backwards."""
    chance: Callable[[], float] = random.random
    """Uniform from [0, 1): the jitter of waits."""
    token: Callable[[], str] = lambda: secrets.token_hex(16)
    """A name nobody else has: the idempotency key of a submit."""


class Sender(Protocol):
    """How a flow of several calls talks: repeats and waits are those of a session (`retry.Session`)."""

    @property
    def outside(self) -> Environment:
        """Clock and chance."""
        ...

    @property
    def submit(self) -> Backoff:
        """How patiently calls are repeated."""
        ...

    @property
    def poll(self) -> Backoff:
        """How patiently one waits for what is not there yet."""
        ...

    def send(self, call: Call, *, once: bool = False, backoff: Backoff | None = None) -> Flow[Reply]:
        """Send a call, repeat it while that can help, return its good reply."""
        ...

    def ask(self, exchange: Exchange[T], *, once: bool = False) -> Flow[T]:
        """The same, and return what is read from the reply."""
        ...
