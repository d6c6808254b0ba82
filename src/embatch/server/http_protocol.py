"""The connection: uvicorn's h11 protocol with limits, deadlines, and an answer of ours to whatever happens.

Limits are held here because an application sees a request only once its head is complete: too late for a head
that never ends, and for a body that is refused by its announced length. What to refuse `api.limits` decides.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from embatch.api import problems
from embatch.api.auth import Access, Caller, judge_caller
from embatch.api.limits import (
    BodyCount,
    Bounds,
    HeldBodies,
    HeldBody,
    Refusal,
    bad,
    judge_head,
    overloaded,
    too_large_head,
)
from embatch.events import RequestRefused, emit

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send
    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle
    from uvicorn.server import ServerState

_RATE: Final = 1024
"""Bytes per second below which a body, or an answer that is not taken, counts as held back on purpose."""
_TURNED_AWAY: Final = 256
"""Connections beyond the most that are told so; further ones end without a word."""
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_LINGER_SECONDS: Final = 1.0
"""How long what still arrives is read and thrown away after a refusal. Closing at once would reset the
connection, and the reset can overtake the answer."""

_MUCH: Final = "the bodies of other requests take all the memory there is for them"


class GuardedConnection(h11.Connection):
    """h11's connection, which takes a request over a limit for one that breaks the protocol."""

    def __init__(
        self, bounds: Bounds, bodies: HeldBodies | None = None, access: Access | None = None
    ) -> None:
        super().__init__(h11.SERVER, bounds.header_bytes)
        self.bounds, self._access = bounds, access
        self.caller: Caller | None = None
        """Who sent the request under way; `None` where nobody is asked for a key."""
        self.refusal: Refusal | None = None
        """Why the peer was refused; set before the `RemoteProtocolError` is raised."""
        self.body = BodyCount(0)
        self._bodies = HeldBodies(bounds.held_bytes) if bodies is None else bodies
        self.held = HeldBody(self._bodies, 0)
        """What the body of the request under way holds; whoever works the request lets it go."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """As h11's; `RemoteProtocolError` also for what the bounds forbid."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = (
                too_large_head(self.bounds)
                if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                else bad("MALFORMED_HTTP", "this is not a well-formed HTTP/1.1 request")
            )
            raise
        if isinstance(event, h11.Request):
            self.body = BodyCount(self.bounds.body_limit(event.target))
            self.held = HeldBody(self._bodies, self.bounds.held_limit(event.target))
            self.refusal = self._judge(event)
        elif isinstance(event, h11.Data):
            self.refusal = self.body.add(event)
            # What still comes after the answer is thrown away, and nobody would let it go.
            answered = self.our_state is h11.DONE
            if self.refusal is None and not answered and not self.held.take(len(event.data)):
                self.refusal = overloaded(_MUCH)
        if self.refusal is not None:
            raise h11.RemoteProtocolError(self.refusal.reason, self.refusal.status)
        return event

    def _judge(self, head: h11.Request) -> Refusal | None:
        self.caller = None if self._access is None else judge_caller(head, self._access.keys)
        stranger = None if self.caller is None else self.caller.refusal
        return judge_head(head, self.bounds, stranger) or self._judge_room(head)

    def _judge_room(self, head: h11.Request) -> Refusal | None:
        """Refuse before it is sent a body that has no room now."""
        announced = int(dict(head.headers).get(b"content-length", b"0"))
        return None if self.held.fits(announced) else overloaded(_MUCH)


@dataclass(slots=True)
class Shared:
    """What the connections of one server share. Lives in one event loop."""

    bodies: HeldBodies
    idle: dict[GuardedProtocol, None] = field(default_factory=dict)
    """Connections without a request, the longest without one first."""
    access: Access | None = None
    """Whose requests are taken; `None`: anybody's."""


class GuardedProtocol(H11Protocol):
    """uvicorn's h11 protocol with limits and deadlines. Made by `guarded`."""

    bounds: ClassVar[Bounds]
    shared: ClassVar[Shared]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: GuardedConnection = GuardedConnection(self.bounds, self.shared.bodies, self.shared.access)
        self._application, self.app = self.app, self._answer
        self._deadline: asyncio.TimerHandle | None = None
        self._phase: object = None
        self._arrived = 0
        self._spent = 0.0
        """Seconds of this phase in which nobody but the peer was slow."""
        self._left = False
        self._taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the deadline for the first head, if there is room for one connection more."""
        super().connection_made(transport)
        if self._has_room():
            self.shared.idle[self] = None
            self._watch()

    def _has_room(self) -> bool:
        """Return whether this connection may stay, for which the longest idle one may have to go."""
        beyond = len(self.connections) - self.bounds.connections
        if beyond <= 0:
            return True
        oldest = next(iter(self.shared.idle), None)
        if oldest is not None:
            del self.shared.idle[oldest]
            oldest.timeout_keep_alive_handler()
            return True
        if beyond > _TURNED_AWAY:
            self.transport.abort()
        else:
            self._refuse(overloaded("there are too many connections"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self.shared.idle.pop(self, None)
        self._await_nothing()
        self._taken()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to be idle, unless the next request is here already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.shared.idle[self] = None

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the peer was refused: then it is thrown away until the connection ends."""
        self.shared.idle.pop(self, None)
        if not self._left:
            self._arrived += len(data)
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle what was parsed, then see what is awaited next."""
        super().handle_events()
        self._watch()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Have the application answer; what ends it from outside is answered, half an answer torn."""
        cycle: RequestResponseCycle = self.cycle
        held = self.conn.held
        if self.conn.caller is not None:
            scope["state"]["caller"] = self.conn.caller
        try:
            await self._application(scope, receive, send)
        except asyncio.CancelledError:  # the service has waited for its calls long enough
            if not cycle.response_started:
                await problems.answer(problems.leaving())(scope, receive, send)
        except Exception as error:  # noqa: BLE001  (the application has told of it, if it began to answer)
            if not cycle.response_started:
                await problems.bug(error)(scope, receive, send)
        finally:
            held.let_go()
        if cycle.response_started and not cycle.response_complete and not cycle.disconnected:
            self._tear(cycle)

    def _tear(self, cycle: RequestResponseCycle) -> None:
        """End an answer so that no client takes it for whole: its last chunk never comes."""
        cycle.disconnected = True
        if cycle.scope["http_version"] == "1.0":
            self._reset()
        else:
            self.transport.close()

    def _reset(self) -> None:
        """End the connection with a reset: without chunks a plain end is the end of the answer."""
        stream = self.transport.get_extra_info("socket")
        if stream is not None and stream.family != socket.AF_UNIX:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def pause_writing(self) -> None:
        """Give the peer a deadline for taking what was sent."""
        super().pause_writing()
        self._taken()
        self._await_taking(self.transport.get_write_buffer_size(), 0.0)

    def resume_writing(self) -> None:
        """Forget the deadline: it was taken."""
        self._taken()
        super().resume_writing()

    def _taken(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _await_taking(self, whole: int, spent: float) -> None:
        before = self.transport.get_write_buffer_size()

        def check() -> None:
            left, after = self.transport.get_write_buffer_size(), spent + self.bounds.receive_seconds
            slow = before - left < _RATE * self.bounds.receive_seconds
            if slow or self.bounds.overdue(after, whole - left):
                emit(RequestRefused(status=499, reason="SLOW_READER"))
                self._reset()
            else:
                self._await_taking(whole, after)

        self._taking = self.loop.call_later(self.bounds.receive_seconds, check)

    def send_400_response(self, msg: str) -> None:
        """Answer what the connection refused."""
        self._refuse(self.conn.refusal or bad("MALFORMED_HTTP", msg))

    def _watch(self) -> None:
        """Give the peer its deadline for what it is to send next: a head, a body, or nothing."""
        waiting = None
        if not self._left and not self.transport.is_closing():
            state = self.conn.their_state
            # Between two requests uvicorn's keep-alive time counts, until the first byte of the next head.
            if state is h11.SEND_BODY or (
                state is h11.IDLE and (self._arrived == 0 or self.conn.trailing_data[0])
            ):
                waiting = state
        if waiting is self._phase:
            return
        self._await_nothing()
        self._phase, self._spent = waiting, 0.0
        if waiting is not None:
            self._open_window()

    def _open_window(self) -> None:
        self._deadline = self.loop.call_later(
            self.bounds.receive_seconds, self._check, self._arrived, self.flow.read_paused
        )

    def _await_nothing(self) -> None:
        self._phase = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check(self, arrived_before: int, paused_before: bool) -> None:  # noqa: FBT001  (a timer's argument)
        """At the deadline: a head must be complete, a body must have come at a fair rate."""
        rate_met = self._arrived - arrived_before >= _RATE * self.bounds.receive_seconds
        # Reading is paused while the application is the slow one.
        paused = paused_before or self.flow.read_paused
        self._spent += 0.0 if paused else self.bounds.receive_seconds
        overdue = self.bounds.overdue(self._spent, self.conn.body.size)
        if self._phase is h11.SEND_BODY and (paused or (rate_met and not overdue)):
            self._open_window()
        elif self._arrived == 0:
            self.transport.close()
        else:
            seconds = self._spent if overdue else self.bounds.receive_seconds
            self._refuse(
                Refusal(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "TOO_SLOW",
                    f"the request did not arrive within {seconds:g} seconds",
                )
            )

    def _refuse(self, refusal: Refusal) -> None:
        """Answer if an answer is still possible, and close."""
        emit(RequestRefused(status=refusal.status.value, reason=refusal.reason))
        self._left = True
        self._await_nothing()
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        answerable = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # The application learns that its client has gone; what it still sends goes nowhere.
            cycle.disconnected = True
            cycle.message_event.set()
        if not answerable:
            self.transport.close()
            return
        self.transport.write(refusal.encode())
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)


def guarded(bounds: Bounds, access: Access | None = None) -> type[GuardedProtocol]:
    """Return the protocol class for uvicorn's `http=` that holds every connection to these bounds.

    With `access` a request without one of its keys is refused before its body; the application finds who
    asks, an `auth.Caller`, under `caller` in the scope's state.
    """
    shared = Shared(HeldBodies(bounds.held_bytes), access=access)
    return type("Guarded", (GuardedProtocol,), {"bounds": bounds, "shared": shared})
