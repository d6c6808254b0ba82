"""How fast texts are embedded at once: a budget of requests and tokens a minute, by what a service lets pass.

Google counts each text of a call as a request, and refuses what is beyond a project's quota, which it does
not tell. So the last minute is kept in mind: what would be more than the rate waits until enough of it is
past. A refusal halves what passed, each answer gives some of it back, up to the rate that the caller named.

Times are seconds of the caller's clock, handed in.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embatch.client import arguments
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Request

MINUTE: Final = 60.0
_GROWTH: Final = 0.1
"""Share of what was answered by which the next minute's may be more: a tenth a minute."""
_BYTES: Final = 4
"""Bytes of UTF-8 a token, by which the tokens of a text are estimated before anybody has counted them."""
_COUNTS: Final = range(1, 1 << 53)


@dataclass(frozen=True, slots=True)
class Load:
    """What a call takes of a minute's budget."""

    requests: float
    tokens: float


ANY: Final = Load(math.inf, math.inf)
_LEAST: Final = Load(100, 10_000)
"""A minute's budget is not lowered below one full call, so that no query waits for it."""


def load_of(requests: Sequence[Request]) -> Load:
    """Return what a call with these texts takes: each is a request, its tokens are estimated."""
    return Load(
        len(requests), sum(1 + len((one.text or "").encode(errors="replace")) // _BYTES for one in requests)
    )


def checked(rate: object) -> Load:
    """Return a rate as a caller gives it: requests a minute, or requests and tokens a minute; `None`: any.

    Raises:
        InvalidArgument: it is none of these.
    """
    if rate is None:
        return ANY
    if not isinstance(rate, tuple | list):
        return Load(arguments.whole("rate", rate, _COUNTS), math.inf)
    if len(rate) != 2:
        raise InvalidArgument("rate is requests a minute, or requests and tokens a minute", field="rate")
    requests, tokens = (arguments.whole("rate", one, _COUNTS) for one in rate)
    return Load(requests, tokens)


class Budget:
    """What may be sent when. Threads may share one.

    Args:
        rate: most of a minute; infinite where nobody knows.
    """

    def __init__(self, rate: Load = ANY) -> None:
        self._most = self._limit = rate
        self._sent: deque[tuple[float, Load]] = deque()
        self._requests = self._tokens = 0.0
        self._next = self._lowered = -math.inf
        self._lock = threading.Lock()

    @property
    def most(self) -> Load:
        """The most that one call should take."""
        return self._most

    def book(self, load: Load, now: float) -> float:
        """Return when a call is to be sent, which is booked for then: now, or later.

        A call that alone takes more than a minute's budget has a minute for itself.
        """
        with self._lock:
            at = max(now, self._next)
            while self._sent and self._sent[0][0] + MINUTE <= at:
                self._forget()
            while self._sent and not self._fits(load):
                at = self._forget() + MINUTE
            self._sent.append((at, load))
            self._requests, self._tokens = self._requests + load.requests, self._tokens + load.tokens
            self._next = at
            return at

    def refused(self, load: Load, sent: float, now: float, wait: float | None) -> None:
        """Take less, for the service has refused a call; several that went out together are one refusal.

        Where nothing had passed within the minute, somebody else took what there was, which says nothing of
        how much there is.

        Args:
            load: the call's.
            sent: when it was booked for.
            now: the time.
            wait: seconds that the service asks to be left alone; `None` if it does not say.
        """
        with self._lock:
            self._next = max(self._next, now + (wait or 0.0))
            if (sent, load) in self._sent:
                self._sent.remove((sent, load))
                self._requests, self._tokens = self._requests - load.requests, self._tokens - load.tokens
            passed = [one for at, one in self._sent if at <= now]
            if sent < self._lowered or not passed:
                return
            self._lowered = now
            requests, tokens = sum(one.requests for one in passed), sum(one.tokens for one in passed)
            self._limit = Load(
                min(self._most.requests, max(_LEAST.requests, min(self._limit.requests, requests) / 2)),
                min(self._most.tokens, max(_LEAST.tokens, min(self._limit.tokens, tokens) / 2)),
            )
            if wait is not None:  # whoever says when there is room knows better than the minute
                self._sent.clear()
                self._requests = self._tokens = 0.0

    def answered(self, load: Load) -> None:
        """Take some more the next time, for the service has answered a call."""
        with self._lock:
            self._limit = Load(
                min(self._most.requests, self._limit.requests + _GROWTH * load.requests),
                min(self._most.tokens, self._limit.tokens + _GROWTH * load.tokens),
            )

    def _fits(self, load: Load) -> bool:
        return (
            self._requests + load.requests <= self._limit.requests
            and self._tokens + load.tokens <= self._limit.tokens
        )

    def _forget(self) -> float:
        """Take out what was sent first, a minute later; return when that was."""
        at, load = self._sent.popleft()
        self._requests, self._tokens = self._requests - load.requests, self._tokens - load.tokens
        return at


def cut(requests: Sequence[Request], most: Load) -> list[Sequence[Request]]:
    """Return the requests in blocks that a minute's budget has room for; one at least in each."""
    blocks: list[Sequence[Request]] = []
    begin, taken = 0, Load(0, 0)
    for at, one in enumerate(requests):
        load = load_of([one])
        grown = Load(taken.requests + load.requests, taken.tokens + load.tokens)
        if at > begin and (grown.requests > most.requests or grown.tokens > most.tokens):
            blocks.append(requests[begin:at])
            begin, grown = at, load
        taken = grown
    return [*blocks, requests[begin:]]
