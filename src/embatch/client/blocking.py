"""How the blocking client runs flows: in the calling thread, and some at a time in threads of their own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx2

from embatch.client.base import BaseClient
from embatch.client.calls import Await, Reply, Together, Work
from embatch.client.receiving import IncomingAnswer
from embatch.client.together import Stopped, run_in_threads

if TYPE_CHECKING:
    import threading

    from embatch.client.calls import Flow, Step, T
    from embatch.client.connection import Connection


class BlockingClient(BaseClient):
    """What runs the flows that `Client` is made of."""

    _connection: Connection

    def _run(self, flow: Flow[T], stop: threading.Event | None = None) -> T:
        try:
            step = next(flow)
            while True:
                try:
                    reply = self._do(step, stop)
                except Exception as error:  # noqa: BLE001  (the flow judges it, and raises it if it is final)
                    step = flow.throw(error)
                else:
                    step = flow.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result

    def _do(self, step: Step, stop: threading.Event | None) -> Reply:
        if isinstance(step, Work):
            step.do()
            return Reply()
        if isinstance(step, Await):
            raise self._asynchronous(step)
        if isinstance(step, Together):
            run_in_threads(step, self._run)
            return Reply()
        if stop is not None:
            if stop.wait(step.after):
                raise Stopped
        elif step.after > 0:
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
