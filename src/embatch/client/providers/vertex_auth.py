"""Application default credentials: tokens that end, found and renewed by google-auth.

Tokens are kept in memory, never shown, and renewed when they are about to end, or once where a call was
refused with one. What google-auth asks for over the network it asks by our own HTTP client, so that the
proxies and certificates of the environment count as everywhere.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from typing import TYPE_CHECKING, Any, Final

import httpx2

from embatch import network
from embatch.client.calls import NOT_SENT
from embatch.errors import ConnectionFailed, InvalidArgument, Unauthenticated
from embatch.wire.vertex import routes

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final = 60.0
_REMEDY: Final = (
    "run `gcloud auth application-default login`, or name the file of a service account in "
    "GOOGLE_APPLICATION_CREDENTIALS"
)
_WORD: Final = re.compile(r"[a-z_]{1,64}")
"""What the name of an OAuth error is made of; no token is."""


class ApplicationDefault:
    """What shows Google who sends a call. Shared by threads; nothing is looked up before the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: Any = None

    @property
    def fresh(self) -> bool:
        """Whether there is a token that does not end at once."""
        return self._found is not None and bool(self._found.valid)

    @property
    def secret(self) -> str | None:
        """The token, `None` before the first one."""
        return None if self._found is None else self._found.token

    def headers(self) -> Mapping[str, str]:
        """Return what a call carries; empty before the first token."""
        token = self.secret
        if token is None:
            return {}
        headers = {"Authorization": f"Bearer {token}"}
        project = getattr(self._found, "quota_project_id", None)
        return headers if project is None else {**headers, routes.USER_PROJECT: project}

    def renew(self, refused: Mapping[str, str] | None) -> None:
        """Get a token; blocks. Another thread that got one meanwhile has done it.

        Args:
            refused: what a call carried that was refused; `None` where a token has ended, or there is none.

        Raises:
            Unauthenticated: there are no credentials, or they are refused.
            ConnectionFailed: who gives tokens cannot be reached.
        """
        with self._lock:
            if self.fresh and (refused is None or refused != self.headers()):
                return
            try:
                self._renew()
            except Exception as error:  # noqa: BLE001  (each is judged, and raised)
                failed = _translated(error)
            else:
                return
        # Not where it was caught: what google-auth raised would go on with it, and may hold a token.
        raise failed

    def _renew(self) -> None:
        import google.auth  # noqa: PLC0415  (an extra)

        request = _requests()
        if self._found is None:
            self._found, _ = google.auth.default(scopes=[routes.SCOPE], request=request)
        self._found.refresh(request)


def check_installed() -> None:
    """Raise `InvalidArgument` where google-auth is not there."""
    try:
        found = importlib.util.find_spec("google.auth")
    except ModuleNotFoundError:  # there is no `google` at all
        found = None
    if found is None:
        raise InvalidArgument(
            'the vertex target needs google-auth: pip install "embatch[gcp]"', field="target"
        )


def _requests() -> Any:
    """Return how google-auth sends its requests: by ours."""
    from google.auth import exceptions, transport  # noqa: PLC0415

    class _Response(transport.Response):
        def __init__(self, answer: httpx2.Response) -> None:
            self._answer = answer

        @property
        def status(self) -> int:
            return self._answer.status_code

        @property
        def headers(self) -> Mapping[str, str]:
            return self._answer.headers

        @property
        def data(self) -> bytes:
            return self._answer.content

    class _Requests(transport.Request):
        def __call__(
            self,
            url: str,
            method: str = "GET",
            body: bytes | None = None,
            headers: Mapping[str, str] | None = None,
            timeout: float | None = None,
            **_: object,
        ) -> _Response:
            way = network.route(url)
            try:
                with httpx2.Client(proxy=way.proxy, verify=way.verify, trust_env=False) as http:
                    answer = http.request(
                        method, url, content=body, headers=headers, timeout=timeout or _SECONDS
                    )
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise exceptions.TransportError(type(error).__name__) from None  # type: ignore[no-untyped-call]
            return _Response(answer)

    return _Requests()


def _translated(error: Exception) -> Exception:
    """Return our error for one of google-auth's. It may hold a token: nothing is quoted but a word."""
    from google.auth import exceptions  # noqa: PLC0415

    if isinstance(error, exceptions.DefaultCredentialsError):
        return Unauthenticated(f"vertex finds no application default credentials: {_REMEDY}")
    if isinstance(error, exceptions.TransportError) or (
        isinstance(error, exceptions.GoogleAuthError) and error.retryable
    ):
        return ConnectionFailed("whoever gives tokens for vertex cannot be reached", reason=NOT_SENT)
    if isinstance(error, exceptions.GoogleAuthError):
        said = next((one.get("error") for one in error.args if isinstance(one, dict)), None)
        word = f" ({said})" if isinstance(said, str) and _WORD.fullmatch(said) else ""
        return Unauthenticated(f"the application default credentials are refused{word}: {_REMEDY}")
    return error
