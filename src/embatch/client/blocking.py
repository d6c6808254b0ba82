"""How the blocking client drives a flow: every step on the calling thread."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx2

from embatch.client.base import BaseClient
from embatch.client.calls import Await, Pause, Reply, Work
from embatch.client.receiving import IncomingAnswer

if TYPE_CHECKING:
    from embatch.client.calls import Flow, Step, T
    from embatch.client.connection import Connection


class BlockingClient(BaseClient):
    """What `Client` is made of beside its operations."""

    _connection: Connection

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._do(step)
                except Exception as error:  # noqa: BLE001  (the flow judges it, and raises it if it is final)
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _do(self, step: Step) -> Reply:
        if isinstance(step, Work):
            step.do()
            return Reply()
        if isinstance(step, Await):
            raise self._asynchronous(step)
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return Reply()
        if step.after > 0:
            time.sleep(step.after)
        try:
            http = self._connection.http()
            with http.stream(**self._request(step)) as response:
                answer = IncomingAnswer(step, response.status_code, response.headers)
                for piece in response.iter_bytes():
                    if not answer.feed(piece, response.num_bytes_downloaded):
                        break
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._translated(error, step) from error
        return answer.reply(self._connection.via)
