"""The connection: uvicorn's h11 protocol with limits and deadlines.

They are held here because an application sees a request only once its head is complete: too late for a head
that never ends, and for a body that is refused by its announced length. What to refuse `api.limits` decides.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from embatch.api.limits import BodyCount, Bounds, Refusal, bad, judge_head, too_large_head

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import RequestResponseCycle
    from uvicorn.server import ServerState

_RATE: Final = 1024
"""Bytes per second below which a body counts as held back on purpose."""
_LINGER_SECONDS: Final = 1.0
"""How long what still arrives is read and thrown away after a refusal. Closing at once would reset the
connection, and the reset can overtake the answer."""

_log = logging.getLogger("embatch.api")


class GuardedConnection(h11.Connection):
    """h11's connection, which takes a request over a limit for one that breaks the protocol."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(h11.SERVER, bounds.header_bytes)
        self.bounds = bounds
        self.refusal: Refusal | None = None
        """Why the peer was refused; set before the `RemoteProtocolError` is raised."""
        self._body = BodyCount(0)

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
            self._body = BodyCount(self.bounds.body_limit(event.target))
            self.refusal = judge_head(event, self.bounds)
        elif isinstance(event, h11.Data):
            self.refusal = self._body.add(event)
        if self.refusal is not None:
            raise h11.RemoteProtocolError(self.refusal.reason, self.refusal.status)
        return event


class GuardedProtocol(H11Protocol):
    """uvicorn's h11 protocol with limits and deadlines. Made by `guarded`."""

    bounds: ClassVar[Bounds]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn: GuardedConnection = GuardedConnection(self.bounds)
        self._deadline: asyncio.TimerHandle | None = None
        self._phase: object = None
        self._arrived = 0
        self._left = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the deadline for the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._await_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the peer was refused: then it is thrown away until the connection ends."""
        if not self._left:
            self._arrived += len(data)
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle what was parsed, then see what is awaited next."""
        super().handle_events()
        self._watch()

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
        self._phase = waiting
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
        if self._phase is h11.SEND_BODY and (rate_met or paused_before or self.flow.read_paused):
            self._open_window()
        elif self._arrived == 0:
            self.transport.close()
        else:
            self._refuse(
                Refusal(
                    HTTPStatus.REQUEST_TIMEOUT,
                    "TOO_SLOW",
                    f"the request did not arrive within {self.bounds.receive_seconds:g} seconds",
                )
            )

    def _refuse(self, refusal: Refusal) -> None:
        """Answer if an answer is still possible, and close."""
        _log.info("refused", extra={"fields": {"status": refusal.status.value, "reason": refusal.reason}})
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


def guarded(bounds: Bounds) -> type[GuardedProtocol]:
    """Return the protocol class for uvicorn's `http=` that holds every connection to these bounds."""
    return type("Guarded", (GuardedProtocol,), {"bounds": bounds})
