"""One OpenAI-style `/embeddings` endpoint over HTTP: ask, try again with patience, check every answer.

No text, no key and no word of an answer enters a message: messages reach logs.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from typing import TYPE_CHECKING, Any, Final

import httpx2
import orjson

from embatch import network
from embatch.backoff import Backoff, wait_asked
from embatch.engine import answers
from embatch.engine.answers import Expected, OtherModel, WrongAnswer
from embatch.engine.protocol import EndpointTrouble
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from embatch.engine.answers import EndpointAnswer

KEY: Final = "EMBATCH_ENGINE_KEY"
PATIENCE: Final = Backoff(first=0.5, limit=10.0, attempts=6)
ONCE: Final = Backoff(attempts=1)
CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 60.0
"""Longest silence of an endpoint that works."""
ANSWER_BYTES: Final = 256 << 20
"""No answer to a micro-batch is this large, whatever was expected."""
_REJECTED: Final = frozenset({400, 413, 422})
_PERHAPS: Final = frozenset({424, 500})
"""Statuses of programs that broke on something: a text, or anything else. TEI says 424."""
_LIMITS: Final = frozenset({408, 429, 503, 504})
_PASSING: Final = frozenset({408, 409, 424, 425, 429})
_HINTS: Final = {
    401: f": set {KEY}",
    403: f": the key in {KEY} may not do this",
    404: ": --engine-url or --model is not what it serves",
    405: ": --engine-url is not the address of an embeddings endpoint",
    407: ": the proxy on the way wants to be shown who asks",
}


class Rejected(Exception):
    """The endpoint does not take these texts: too long, too many, or something it will not have."""


class Unwell(Exception):
    """The endpoint does not work, or not for us. No text is to blame, as far as this can be seen."""

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, slow: bool = False
    ) -> None:
        super().__init__(message)
        self.slow = slow
        """Whether time ran out before the answer was there."""
        self.status = status
        """HTTP status of the last answer; `None` if there was none, or it could not be read."""
        self.retry_after = retry_after
        """Seconds the endpoint asked for; `None` if it did not."""

    @property
    def passing(self) -> bool:
        """Whether it may be well in a moment."""
        return self.status is None or self.status >= 500 or self.status in _PASSING

    @property
    def perhaps_too_much(self) -> bool:
        """Whether fewer texts at once may be answered: a limit, or the time that many take."""
        return self.slow or self.status in _LIMITS

    @property
    def perhaps_a_text(self) -> bool:
        """Whether a program may say so that breaks on one text and is well for all others."""
        return self.status in _PERHAPS


class Changed(Unwell):
    """It works, and answers as another model than before."""


class Endpoint:
    """Thread-safe. Times are seconds of `clock`; `wait` sleeps; `chance` draws from [0, 1) for the jitter.

    Raises:
        InvalidArgument: the address or the key makes no sense.
        EndpointTrouble: the environment names proxies or certificates that cannot be used.
    """

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
        way = _way(self.url)
        self._through = way.hint
        self._client = _client(way, _bearer(key))

    def embed(
        self, texts: Sequence[str], deadline: float, expected: Expected, patience: Backoff = PATIENCE
    ) -> EndpointAnswer:
        """Return the vectors of at least one text.

        Args:
            texts: at least one.
            deadline: time of `clock` after which nothing more is tried.
            expected: what the answer has to be like.
            patience: how often and when it is tried.

        Raises:
            Rejected: the endpoint does not take the texts.
            Changed: it answered as another model than `expected`.
            Unwell: it did not answer, or with something else than one vector a text, for too long.
        """
        failures = 0
        while True:
            try:
                return answers.read(self._post(texts, deadline, expected), len(texts), expected)
            except OtherModel as error:
                raise Changed(f"the endpoint answered {error}", status=200) from None
            except WrongAnswer as error:
                # Not passing: a program that answers wrongly now will do so again.
                raise Unwell(f"the endpoint answered {error}", status=200) from None
            except Unwell as error:
                failures += 1
                pause = patience.delay(failures, self._chance(), error.retry_after) if error.passing else None
                if pause is None or self._clock() + pause >= deadline:
                    raise
                self._wait(pause)

    def close(self) -> None:
        """Close the connections; calls under way fail. Repeating is safe."""
        self._client.close()

    def _post(self, texts: Sequence[str], deadline: float, expected: Expected) -> bytes:
        """Return the body of a good answer."""
        left = deadline - self._clock()
        if left <= 0:
            raise Unwell("the endpoint is too slow", slow=True)
        message: dict[str, Any] = {"model": self._model, "input": texts}
        if self.compact:
            message["encoding_format"] = "base64"
        try:
            content = orjson.dumps(message)
        except TypeError:  # half a character, which no JSON holds
            raise Rejected("a text is not Unicode") from None
        try:
            with self._client.stream(
                "POST",
                self.url,
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=httpx2.Timeout(min(READ_SECONDS, left), connect=min(CONNECT_SECONDS, left)),
            ) as answer:
                _judge(answer)
                return self._read(answer, deadline, min(ANSWER_BYTES, expected.most_bytes(len(texts))))
        except (Rejected, Unwell):
            raise
        except Exception as error:  # noqa: BLE001  (no text is to blame for what the way there can raise)
            raise Unwell(
                f"the endpoint cannot be reached or broke off{self._through} ({_cause(error)})",
                slow=isinstance(error, httpx2.ReadTimeout),
            ) from None

    def _read(self, answer: httpx2.Response, deadline: float, most: int) -> bytes:
        # The read limit of the client counts silence only: bytes that trickle would never end.
        unpacked = _Unpacked(answer.headers.get("content-encoding", ""))
        held = bytearray()
        for part in answer.iter_raw():
            held += unpacked.take(part, most + 1 - len(held))
            if len(held) > most:
                # Perhaps another model's, whose vectors are far longer.
                raise Changed("the endpoint's answer is too large", status=answer.status_code)
            if self._clock() >= deadline:
                raise Unwell("the endpoint is too slow", slow=True)
        return bytes(held)


class _Unpacked:
    """The bytes of a body that was packed though nobody asked for it: no more of them than are wanted."""

    def __init__(self, encoding: str) -> None:
        self._gzip = None
        if encoding.strip().lower() in {"gzip", "x-gzip", "deflate"}:
            self._gzip = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding.strip().lower() not in {"", "identity"}:
            raise Unwell("the endpoint answered in a compression that was not asked for", status=200)

    def take(self, part: bytes, most: int) -> bytes:
        """Return what a part unpacks to, up to `most` bytes, at least one."""
        if self._gzip is None:
            return part
        try:
            return self._gzip.decompress(part, most)
        except zlib.error:
            raise Unwell("the endpoint answered in a broken compression", status=200) from None


def _address(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):  # ValueError: an IDNA label that is none
        parsed = httpx2.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise InvalidArgument(
            "--engine-url must be the base address of an endpoint, such as http://127.0.0.1:8000/v1",
            field="engine-url",
        )
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path if path.endswith("/embeddings") else f"{path}/embeddings"))


def _bearer(key: str | None) -> dict[str, str]:
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise InvalidArgument(f"{KEY} holds characters that no key has", field="engine-key")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _way(url: str) -> network.NetworkRoute:
    try:
        return network.route(url)
    except InvalidArgument as error:
        raise EndpointTrouble(f"the endpoint cannot be asked: {error.message}") from None


def _client(way: network.NetworkRoute, headers: dict[str, str]) -> httpx2.Client:
    return httpx2.Client(
        headers={"Accept-Encoding": "identity", **headers},
        verify=way.verify,
        proxy=way.proxy,
        limits=httpx2.Limits(max_connections=None),
        trust_env=False,
    )


def _judge(answer: httpx2.Response) -> None:
    """Raise unless the status is that of a good answer."""
    status = answer.status_code
    if status == 200:
        return
    if status in _REJECTED:
        raise Rejected(f"the endpoint answered {status}")
    hint = ": --engine-url leads to another address" if 300 <= status < 400 else _HINTS.get(status, "")
    raise Unwell(
        f"the endpoint answered {status}{hint}", status=status, retry_after=wait_asked(answer.headers)
    )


def _cause(error: BaseException) -> str:
    """Return in a word or two what went wrong on the way, from the error at the bottom of it."""
    seen: BaseException | None = error
    while seen is not None:
        match seen:
            case ssl.SSLCertVerificationError():
                return f"its certificate is not trusted: {seen.verify_message}{network.trusting()}"
            case ssl.SSLError():
                return f"TLS fails: {seen.reason}"
            case socket.gaierror():
                return "its name is not known"
            case ConnectionRefusedError():
                return "nobody listens there"
        seen = seen.__cause__ or seen.__context__
    return type(error).__name__
