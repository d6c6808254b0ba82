"""What comes back to a call, bounded: an answer never takes more memory than the call it answers allows.

A few kilobytes of gzip can stand for gigabytes, and a stream need not end. Both colours of the client feed
what arrives, piece by piece and decoded, to an `IncomingAnswer`, which knows when it is too much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from embatch.client.calls import Reply
from embatch.errors import Internal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from embatch.client.calls import Call

TOO_LARGE: Final = "ANSWER_TOO_LARGE"
"""Reason of an `Internal` for an answer that was given up: asking again would bring the same."""
REFUSAL_BYTES: Final = 1 << 20
"""Of the body of an error no more is read: an envelope is far smaller, and the status says most."""
PLAIN_BYTES: Final = 64 << 20
"""Decoded bytes up to which it does not matter how well an answer was compressed."""
MOST_RATIO: Final = 100
"""Beyond them: most decoded bytes for each that arrived. Vectors as text come to about 5, a bomb to 1,000."""
ENCODINGS: Final = "gzip"
"""What a call says that it takes; anything else is refused, also in layers."""


class IncomingAnswer:
    """The body of one answer while it arrives.

    Args:
        call: what is answered.
        status: the HTTP status.
        headers: by name, in any case.

    Raises:
        Internal: it comes in an encoding that was not asked for.
    """

    def __init__(self, call: Call, status: int, headers: Mapping[str, str]) -> None:
        self._call, self._status = call, status
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._good = 200 <= status < 300
        self._sink = call.sink if status == 200 else None
        self._pieces: list[bytes] = []
        self._size = 0
        encoding = self._headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", ENCODINGS):
            raise Internal(
                "the service answered in an encoding that was not asked for: is something between it and us?",
                reason=TOO_LARGE,
            )
        if self._sink is not None:
            self._sink.begin()

    def feed(self, piece: bytes, arrived: int) -> bool:
        """Take decoded bytes; return whether more is wanted.

        Args:
            piece: the next bytes.
            arrived: bytes of the body so far as they came over the line.

        Raises:
            Internal: the answer is larger than any to such a call.
        """
        self._size += len(piece)
        if not self._good:
            self._pieces.append(piece[: max(0, REFUSAL_BYTES - self._size + len(piece))])
            return self._size < REFUSAL_BYTES
        if self._size > max(PLAIN_BYTES, MOST_RATIO * arrived):
            raise Internal(
                f"the service's answer unpacks to more than {MOST_RATIO} times its size: it was given up",
                reason=TOO_LARGE,
            )
        if self._sink is not None:
            self._sink.feed(piece)
            return True
        if self._size > self._call.most:
            raise Internal(
                f"the service's answer has more than {self._call.most} bytes: it was given up",
                reason=TOO_LARGE,
            )
        self._pieces.append(piece)
        return True

    def reply(self, via: str = "") -> Reply:
        """Return the complete answer; `via` is what an error has to say of the way."""
        return Reply(self._status, self._headers, b"".join(self._pieces), via)
