"""Everything that can go wrong, and what each error means for the caller.

    EmbatchError
    ├── InvalidArgument            the request is wrong; repeating it cannot help
    │   └── TooLarge               over a limit of size or count
    ├── NotFound                   no such batch or model
    │   └── NoSuchFile             no such file (the service; its clients see PermissionDenied)
    ├── AlreadyExists              the name or idempotency key is taken by something else
    ├── FailedPrecondition         right request, wrong moment (delete a running batch, …)
    │   ├── IllegalTransition      the state table has no such arrow
    │   └── BatchNotCompleted      results asked of a batch that has none yet
    ├── PermissionDenied           not yours, or a file that is missing or expired (client)
    ├── Unauthenticated            no key, or a wrong one
    ├── ResourceExhausted          a quota or rate; wait `retry_after`
    ├── Unavailable                the service cannot work now; safe to repeat
    │   ├── ConnectionFailed       the service could not be reached (client)
    │   └── EngineTrouble          no engine process comes up
    ├── BatchFailed                the batch ended FAILED (client)
    ├── BatchTimeout               the time limit of a wait passed; the batch goes on (client)
    ├── DataLoss                   stored bytes do not match their checksum; never served
    └── Internal                   a bug of ours

An error knows its consequence: whether repeating can help (`retryable`), its canonical code (`Code`, the
names and numbers of google.rpc.Code) and, where input is at fault, the `field`. User text never enters a
message: messages reach logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from embatch.escapes import visible

WORDS: Final = 1_000
"""Most characters of somebody else's message that become part of ours."""


def printable(words: str, most: int = WORDS) -> str:
    """Return somebody else's words as a message can carry them: one line, cut, control characters as escapes.

    A terminal obeys control characters, and what turns the direction of writing shows something else than
    stands there.
    """
    cut = words if len(words) <= most else f"{words[:most]}…"
    return visible(cut)


class Code(Enum):
    """Canonical codes: google.rpc.Code names and numbers, with the HTTP status each is answered by."""

    CANCELLED = (1, 499)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    ALREADY_EXISTS = (6, 409)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    ABORTED = (10, 409)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    DATA_LOSS = (15, 500)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        """The google.rpc number, as it stands in a request's error on the wire."""
        return self.value[0]

    @property
    def http(self) -> int:
        """The HTTP status this code is answered by."""
        return self.value[1]

    @classmethod
    def of_number(cls, number: int) -> Code:
        """Return the code of a google.rpc number; an unknown number reads as INTERNAL."""
        return next((code for code in cls if code.number == number), cls.INTERNAL)


class Reason(Enum):
    """Why one request failed, more exactly than its code: stable words for programs and tables."""

    BAD_LINE = "BAD_LINE"
    LINE_TOO_LONG = "LINE_TOO_LONG"
    BAD_ENCODING = "BAD_ENCODING"
    BAD_UNICODE = "BAD_UNICODE"
    EMPTY_TEXT = "EMPTY_TEXT"
    NOT_TEXT = "NOT_TEXT"
    TEXT_TOO_LARGE = "TEXT_TOO_LARGE"
    TOO_LONG = "TOO_LONG"
    UNSUPPORTED_PART = "UNSUPPORTED_PART"
    BAD_FIELD = "BAD_FIELD"
    DUPLICATE_KEY = "DUPLICATE_KEY"
    MODEL_MISMATCH = "MODEL_MISMATCH"
    MODEL_CHANGED = "MODEL_CHANGED"
    ENGINE_CRASH = "ENGINE_CRASH"
    ENGINE_HANG = "ENGINE_HANG"
    ENGINE_BAD_OUTPUT = "ENGINE_BAD_OUTPUT"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    DATA_LOSS = "DATA_LOSS"


_OF_CONTENT: Final = frozenset(
    {
        Reason.BAD_LINE,
        Reason.LINE_TOO_LONG,
        Reason.BAD_ENCODING,
        Reason.BAD_UNICODE,
        Reason.EMPTY_TEXT,
        Reason.NOT_TEXT,
        Reason.TEXT_TOO_LARGE,
        Reason.TOO_LONG,
        Reason.UNSUPPORTED_PART,
        Reason.BAD_FIELD,
        Reason.DUPLICATE_KEY,
        Reason.MODEL_MISMATCH,
    }
)
"""The request itself is at fault: whoever has the data must mend it."""
_REFUSALS: Final = frozenset({Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED})
"""The same of a foreign service, which gives no reason."""


@dataclass(frozen=True, slots=True)
class RequestError:
    """Why one request of a batch has no embedding.

    `message` names the fault and the remedy and never repeats the text.
    """

    code: Code
    reason: Reason | None
    """`None` where a foreign service named no reason we know."""
    message: str

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed another time; one with a fault in its content never does."""
        return self.code not in _REFUSALS if self.reason is None else self.reason not in _OF_CONTENT


class FailedRows(UserWarning):
    """An array of embeddings has rows of NaN where requests failed, and nobody said that it may."""


class EmbatchError(Exception):
    """Anything embatch reports. `str(error)` says what is wrong and what to do about it."""

    code: ClassVar[Code] = Code.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        """Path of the field at fault as the caller wrote it (`batch.inputConfig`); `None` if none is."""
        self.reason = reason
        """A stable word more exact than the code, such as `EMPTY_BATCH`; `None` where the code says all."""
        self.retry_after = retry_after
        """Seconds after which repeating makes sense; `None` when unknown."""

    def __str__(self) -> str:
        """Return the message, with the field at fault where it does not name it."""
        named = self.field is None or self.field in self.message
        return self.message if named else f"{self.message} ({self.field})"


class InvalidArgument(EmbatchError):
    """The request is wrong: repeating it unchanged cannot help. `field` names the place."""

    code = Code.INVALID_ARGUMENT


class TooLarge(InvalidArgument):
    """Over a limit of bytes or counts; the message names the limit and the way round it. HTTP 413."""


class NotFound(EmbatchError):
    """No such batch or model."""

    code = Code.NOT_FOUND


class NoSuchFile(NotFound):
    """No such file: never uploaded, deleted or expired. Of the service alone: see `PermissionDenied`."""

    def __init__(
        self,
        message: str,
        *,
        file_id: str | None = None,
        field: str | None = None,
        reason: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, field=field, reason=reason, retry_after=retry_after)
        self.file_id = file_id
        """Without `files/`; `None` where a name cannot be a file's."""


class AlreadyExists(EmbatchError):
    """The name, or the idempotency key with another body, is taken."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(EmbatchError):
    """A right request at the wrong moment; the message says what has to happen first."""

    code = Code.FAILED_PRECONDITION


class IllegalTransition(FailedPrecondition):
    """The transition table has no such arrow: the batch is already in a final state."""


class BatchNotCompleted(FailedPrecondition):
    """The batch is not COMPLETED; `partial=True` reads what a stopped one finished."""


class PermissionDenied(EmbatchError):
    """Not allowed. To a client also a file that is missing: Google's wire does not tell the two apart."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(EmbatchError):
    """No key, or a wrong one."""

    code = Code.UNAUTHENTICATED


class ResourceExhausted(EmbatchError):
    """A quota or rate limit: repeat after `retry_after` seconds."""

    code = Code.RESOURCE_EXHAUSTED
    retryable = True


class Unavailable(EmbatchError):
    """The service cannot work just now; repeating is safe."""

    code = Code.UNAVAILABLE
    retryable = True


class ConnectionFailed(Unavailable):
    """The service could not be reached, or the connection broke before an answer came."""


class EngineTrouble(Unavailable):
    """No engine process comes up, or it dies before its first success: no request is to blame."""


class BatchFailed(EmbatchError):
    """The batch ended FAILED; the message is the service's reason."""

    code = Code.FAILED_PRECONDITION


class BatchTimeout(EmbatchError):
    """The time limit of a wait passed. The batch itself goes on and can be awaited again."""

    code = Code.DEADLINE_EXCEEDED
    retryable = True


class DataLoss(EmbatchError):
    """Stored bytes do not match their SHA-256. They are never served."""

    code = Code.DATA_LOSS


class Internal(EmbatchError):
    """A bug of ours, or an answer of a foreign service that makes no sense."""

    code = Code.INTERNAL
