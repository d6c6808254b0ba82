"""What the process of a service and its HTTP faces tell of."""

from __future__ import annotations

from embatch.events.emitting import FailureEvent, Level, ServiceEvent, event

# The API.


@event("request", "embatch.api", Level.INFO)
class RequestEnded(ServiceEvent):
    """An HTTP request was answered, or its client has gone."""

    method: str
    route: str | None
    """The pattern of the path, never the path; `None`: no route has it."""
    status: int
    """499: the client went before the answer. 503: the service ended before it."""
    ms: float
    """Milliseconds from the request's head to the end of its answer."""
    bytes_in: int
    """Bytes of the request's body, as far as it was read."""
    bytes_out: int
    """Bytes of the answer's body."""
    key: str | None = None
    """Id of the key that was shown; `None`: the service asks for none, or none of its own was."""
    torn: bool = False
    """Whether the answer ended before its last byte."""


@event("refused", "embatch.api", Level.INFO)
class RequestRefused(ServiceEvent):
    """A connection was over a limit, or what came was no HTTP: no application saw the request."""

    status: int
    """499: not answered, for the client takes nothing."""
    reason: str


@event("answer torn", "embatch.api", Level.WARNING)
class AnswerTorn(ServiceEvent):
    """A streamed answer was cut off in its midst by trouble that passes."""

    status: str
    reason: str | None
    message: str


@event("answer torn", "embatch.api", Level.ERROR)
class AnswerTornByFault(AnswerTorn):
    """A streamed answer was cut off in its midst by what is damaged, or by a bug."""


@event("error", "embatch.api", Level.ERROR)
class FaultAnswered(ServiceEvent):
    """A request got an error that is the service's fault: what is damaged, or could not be done."""

    status: str
    message: str


@event("bug", "embatch.api", Level.ERROR)
class BugAnswered(FailureEvent):
    """A request met an exception that nobody foresaw."""

    kind: str
    """The exception's type."""


# The process.


@event("listening", "embatch.server", Level.INFO)
class ServiceListening(ServiceEvent):
    """The service takes connections."""

    address: str
    pid: int


@event("keys travel in clear unless a TLS proxy stands before this address", "embatch.server", Level.WARNING)
class KeysInClear(ServiceEvent):
    """A service with keys listens where others than this machine can reach it, and speaks no TLS."""


@event("keys read", "embatch.server", Level.INFO)
class KeysRead(ServiceEvent):
    """The file of keys was read, at the start or when asked: what it holds counts from now on."""

    keys: int
    """How many it holds."""


@event("keys not read", "embatch.server", Level.ERROR)
class KeysNotRead(ServiceEvent):
    """The file of keys was to be read again and cannot be, or is wrong: the old keys go on counting."""

    reason: str
    """With the file and a line's number, and nothing of what stands there."""


@event("lingering", "embatch.server", Level.INFO)
class ServiceLingers(ServiceEvent):
    """The last client of a private service has gone; it ends when no other one comes in time."""

    seconds: float
    """How long it waits."""


@event("leaving", "embatch.server", Level.INFO)
class ServiceLeaving(ServiceEvent):
    """A signal began the graceful end."""

    signal: int


@event("leaving at once", "embatch.server", Level.WARNING)
class ServiceLeavingAtOnce(ServiceEvent):
    """A second signal ended the process without waiting."""

    signal: int


@event("ended", "embatch.server", Level.INFO)
class ServiceEnded(ServiceEvent):
    """The service has ended as it should, or because its storage is broken."""

    storage: str
    """`good` or `broken`."""


@event(
    "the storage failed, and what it holds is not known: the next start finds out",
    "embatch.server",
    Level.CRITICAL,
)
class StorageBroken(ServiceEvent):
    """The disk refused a commit in a way that leaves open what it holds; the service ends."""


@event("the connection that keeps the database to this service has broken", "embatch.server", Level.CRITICAL)
class DatabaseLost(ServiceEvent):
    """Another service may take the database now; this one ends."""


@event("event loop", "embatch.loop", Level.ERROR)
class LoopFailed(ServiceEvent):
    """The event loop had an error that it could hand to nobody."""

    message: str
    """asyncio's words, without arguments of calls."""
    exception: BaseException | None
