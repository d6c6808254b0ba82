"""How a flow talks: one call with its repeats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from embatch.backoff import POLL, SUBMIT, Backoff
from embatch.client.calls import Call, Environment, work
from embatch.client.rate import Budget
from embatch.client.repeating import repeatable
from embatch.errors import ConnectionFailed, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.client.calls import Exchange, Flow, Reply, T
    from embatch.client.journal import Journal
    from embatch.client.providers.provider import Capabilities, Provider, Target
    from embatch.errors import EmbatchError
    from embatch.wire.private import WantedModel


_KEY = 8
"""Characters below which no key is looked for in an answer: it would be found in any word."""


@dataclass(frozen=True, slots=True)
class Session:
    """On what terms a flow talks: where to, how patient, with whose clock and chance."""

    target: Target
    outside: Environment = field(default_factory=Environment)
    submit: Backoff = SUBMIT
    poll: Backoff = POLL
    known: dict[str, str] = field(default_factory=dict)
    """What the service said of itself (its `model`), so that a query is one call; emptied on reconnecting."""
    budget: Budget = field(default_factory=Budget)
    """How fast texts are embedded at once."""
    wanted: dict[str, WantedModel] = field(default_factory=dict)
    """What the names stand for that the local service gave: a new one may have to be asked again."""
    journal: Journal | None = None
    """Where plain submits are written down that a provider would make twice; `None` for nowhere."""

    @property
    def provider(self) -> Provider:
        """Whose protocol is spoken."""
        return self.target.provider

    @property
    def can(self) -> Capabilities:
        """What the provider can do."""
        return self.target.provider.capabilities

    def send(self, call: Call, *, once: bool = False, backoff: Backoff | None = None) -> Flow[Reply]:
        """Send a call, repeat it while that can help, return its good reply.

        Args:
            call: what to send.
            once: the call must not take effect twice, so it is repeated only where the service refused it or
                cannot have seen it.
            backoff: how patiently; that of a submit by default.

        Raises:
            EmbatchError: what the service answered, or `ConnectionFailed`, once repeating cannot help or has
                not helped. Its `__cause__` is the last broken connection of an earlier attempt, if there was
                one.
        """
        patience = backoff or self.submit
        failures, lost, refused = 0, None, False
        while True:
            error: EmbatchError
            try:
                carried = yield from self._renewed()
                reply = yield call
                if reply.status == 401 and carried is not None and not refused:
                    # Its time may have been cut short. What was refused took no effect, so it is sent again.
                    refused = True
                    yield from self._renewed(carried)
                    call = replace(call, after=0.0)
                    continue
            except ConnectionFailed as failure:
                error, lost = failure, failure
            else:
                if 200 <= reply.status < 300:
                    return reply
                error = self.provider.read_error(self._without_key(reply))
            failures += 1
            delay = patience.delay(failures, self.outside.chance(), error.retry_after)
            if delay is None or not repeatable(call, error, once=once):
                raise error from (None if error is lost else lost)
            call = replace(call, after=delay)

    def _renewed(self, refused: Mapping[str, str] | None = None) -> Flow[Mapping[str, str] | None]:
        """Return what the next call carries where that has to be renewed, renewed if need be; else `None`."""
        credential = self.target.credential
        if credential is None:
            return None
        if refused is not None or not credential.fresh:
            yield from work(partial(credential.renew, refused))
        return credential.headers()

    def _without_key(self, reply: Reply) -> Reply:
        """Take the key out of an answer: Google tells of a suspended key by the key itself."""
        credential = self.target.credential
        for secret in (self.target.key, None if credential is None else credential.secret):
            if secret is not None and len(secret) >= _KEY:
                reply = replace(reply, body=reply.body.replace(secret.encode(), b"(the key)"))
        return reply

    def ask(self, exchange: Exchange[T], *, once: bool = False) -> Flow[T]:
        """Send a call as `send` does, and return what is read from its reply, or what is asked instead."""
        try:
            reply = yield from self.send(exchange.call, once=once)
        except NotFound:
            if exchange.instead is None:
                raise
        else:
            return exchange.read(reply.body)
        found = []
        for one in exchange.instead.exchanges:
            part = yield from self.ask(one, once=once)
            found.append(part)
        return exchange.instead.join(found)
