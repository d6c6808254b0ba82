"""Answers that are read while they are sent: whole, or an error, or visibly torn.

What fails before the head has gone out is an error in the envelope; so the first part is read before. What
fails later can only end the connection: without its last chunk no client takes the answer for whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fastapi.responses import StreamingResponse

from embatch.errors import Code, EmbatchError
from embatch.events import AnswerTorn, AnswerTornByFault, emit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import Send

T = TypeVar("T")


def begun(parts: Iterator[T]) -> Iterator[T]:
    """Return the same parts, the first of which has been read by now, while errors can be answered."""
    first = next(parts, None)

    def all_of_them() -> Iterator[T]:
        if first is not None:
            yield first
            yield from parts

    return all_of_them()


class StreamedResponse(StreamingResponse):
    """A streamed answer that an error of ours cuts off: logged by its name, and never completed."""

    async def stream_response(self, send: Send) -> None:
        """Send head and pieces; the end only after the last of them."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self.body_iterator:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except EmbatchError as error:
            ours = error.code in (Code.INTERNAL, Code.DATA_LOSS)
            torn = AnswerTornByFault if ours else AnswerTorn
            emit(torn(status=error.code.name, reason=error.reason, message=error.message))
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
