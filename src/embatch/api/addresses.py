"""The address by which a client reaches us, which may be that of a proxy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from fastapi import Request

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+/?")


def base_address(request: Request) -> str:
    """Return the address by which the client reached us: through a proxy, the one the proxy was called by.

    Anyone can send these headers, but only to get a wrong address back for themselves.
    """

    def forwarded(name: str) -> str:
        return request.headers.get(f"x-forwarded-{name}", "").partition(",")[0].strip()

    scheme = forwarded("proto").lower()
    host, prefix = forwarded("host"), forwarded("prefix")
    return "".join(
        (
            scheme if scheme in ("http", "https") else request.url.scheme,
            "://",
            host if _AUTHORITY.fullmatch(host) else request.headers.get("host", ""),
            prefix.rstrip("/") if _PREFIX.fullmatch(prefix) else "",
        )
    )
