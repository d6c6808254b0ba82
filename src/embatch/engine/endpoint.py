"""One OpenAI-style `/embeddings` endpoint over HTTP: ask, try again with patience, check every answer.

No text, no key and no word of an answer enters a message: messages reach logs.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import httpx2
import numpy as np
import orjson

from embatch import network
from embatch.backoff import Backoff, http_date, retry_after
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

PATIENCE: Final = Backoff(first=0.5, limit=10.0, attempts=6)
CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 60.0
"""Longest silence of an endpoint that works."""
ANSWER_BYTES: Final = 256 << 20
"""No answer to a micro-batch is this large."""
_REJECTED: Final = frozenset({400, 413, 422})
_PASSING: Final = frozenset({408, 409, 425, 429})


class Rejected(Exception):
    """The endpoint does not take these texts: too long, too many, or something it will not have."""


class Unwell(Exception):
    """The endpoint does not work, or not for us. No text is to blame, as far as this can be seen."""

    def __init__(self, message: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status of the last answer; `None` if there was none, or it could not be read."""
        self.retry_after = retry_after
        """Seconds the endpoint asked for; `None` if it did not."""

    @property
    def passing(self) -> bool:
        """Whether it may be well in a moment."""
        return self.status is None or self.status >= 500 or self.status in _PASSING


class Endpoint:
    """Thread-safe. Times are seconds of `clock`; `wait` sleeps; `chance` draws from [0, 1) for the jitter."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None,
        wait: Callable[[float], object],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.url = _address(url)
        self._model, self._wait, self._clock, self._chance = model, wait, clock, chance
        self.compact = True
        """Whether vectors are asked for as base64, a third of the bytes; lists are understood too."""
        way = network.route(self.url)
        self._hint = way.hint
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=None),
            verify=way.verify,
            proxy=way.proxy,
            trust_env=False,
        )

    def embed(self, texts: Sequence[str], deadline: float, dimensions: int | None) -> NDArray[np.float32]:
        """Return float32 (texts, dimensions) in the order of the texts; numbers may be NaN or infinite.

        Args:
            texts: at least one.
            deadline: time of `clock` after which nothing more is tried.
            dimensions: how many numbers a vector has to have; `None` takes what comes.

        Raises:
            Rejected: the endpoint does not take the texts.
            Unwell: it did not answer, or with something else than one vector a text, for too long.
        """
        failures = 0
        while True:
            try:
                return _vectors(self._post(texts, deadline), len(texts), dimensions)
            except Unwell as error:
                failures += 1
                pause = PATIENCE.delay(failures, self._chance(), error.retry_after) if error.passing else None
                if pause is None or self._clock() + pause >= deadline:
                    raise
                self._wait(pause)

    def close(self) -> None:
        """Close the connections; calls under way fail. Repeating is safe."""
        self._client.close()

    def _post(self, texts: Sequence[str], deadline: float) -> bytes:
        """Return the body of a good answer."""
        left = deadline - self._clock()
        if left <= 0:
            raise Unwell("the endpoint is too slow")
        message: dict[str, Any] = {"model": self._model, "input": texts}
        if self.compact:
            message["encoding_format"] = "base64"
        try:
            with self._client.stream(
                "POST",
                self.url,
                content=orjson.dumps(message),
                headers={"Content-Type": "application/json"},
                timeout=httpx2.Timeout(min(READ_SECONDS, left), connect=min(CONNECT_SECONDS, left)),
            ) as answer:
                _judge(answer)
                return self._read(answer, deadline)
        except (httpx2.HTTPError, RuntimeError) as error:  # a closed client raises RuntimeError
            hint = self._hint + (network.trusting() if "CERTIFICATE_VERIFY_FAILED" in str(error) else "")
            raise Unwell(
                f"the endpoint cannot be reached or broke off{hint} ({type(error).__name__})"
            ) from None

    def _read(self, answer: httpx2.Response, deadline: float) -> bytes:
        # The read limit of the client counts silence only: bytes that trickle would never end.
        held = bytearray()
        for part in answer.iter_bytes():
            held += part
            if len(held) > ANSWER_BYTES:
                raise Unwell("the endpoint's answer is too large", status=answer.status_code)
            if self._clock() >= deadline:
                raise Unwell("the endpoint is too slow")
        return bytes(held)


def _address(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidArgument(
            "--engine-url must be the base address of an endpoint, such as http://127.0.0.1:8000/v1",
            field="engine-url",
        )
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path if path.endswith("/embeddings") else f"{path}/embeddings"))


def _judge(answer: httpx2.Response) -> None:
    """Raise unless the status is that of a good answer."""
    status = answer.status_code
    if status == 200:
        return
    if status in _REJECTED:
        raise Rejected(f"the endpoint answered {status}")
    hints = {
        401: ": set EMBATCH_ENGINE_KEY",
        403: ": the key in EMBATCH_ENGINE_KEY may not do this",
        404: ": --engine-url or --model is not what it serves",
    }
    raise Unwell(
        f"the endpoint answered {status}{hints.get(status, '')}",
        status=status,
        retry_after=retry_after(
            answer.headers.get("retry-after"), http_date(answer.headers.get("date")) or datetime.now(UTC)
        ),
    )


def _vectors(body: bytes, count: int, dimensions: int | None) -> NDArray[np.float32]:
    """Return one vector a text, each put where its index says. Raises Unwell for any other answer."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise _wrong("not JSON") from None
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise _wrong("without a list of embeddings")
    places = [one.get("index") for one in data]
    # By type and not by isinstance: True is an int.
    if any(type(place) is not int for place in places) or sorted(places) != list(range(count)):
        raise _wrong(f"with {len(data)} embeddings for {count} texts, or with wrong indices")
    found = [_one(one.get("embedding")) for one in data]
    sizes = {len(vector) for vector in found}
    expected = dimensions or len(found[0])
    if sizes != {expected} or not expected:
        raise _wrong(f"with {min(sizes)} to {max(sizes)} dimensions instead of {expected}")
    vectors = np.empty((count, expected), np.float32)
    vectors[places] = found
    return vectors


def _one(said: object) -> NDArray[np.float32]:
    if isinstance(said, str):
        try:
            return np.frombuffer(base64.b64decode(said, validate=True), "<f4").astype(np.float32)
        except (binascii.Error, ValueError):  # not base64, or not whole numbers of four bytes
            raise _wrong("with an embedding that is not base64 of float32") from None
    if not isinstance(said, list) or not all(type(number) in (float, int, type(None)) for number in said):
        raise _wrong("with an embedding that is no list of numbers")
    with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, which no one accepts
        return np.array([np.nan if number is None else number for number in said], np.float64).astype(
            np.float32
        )


def _wrong(how: str) -> Unwell:
    # Not passing: a program that answers wrongly now will do so again.
    return Unwell(f"the endpoint answered {how}", status=200)
