"""How a connection leaves: through which proxy, and by which certificates its other end is known.

A loopback address or a socket is this machine itself: no proxy is asked and no certificate is read for it,
whatever the environment says. Elsewhere HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, SSL_CERT_FILE and
SSL_CERT_DIR count as everywhere. What is wrong with one of them is told by its name and never by its value,
which may hold a password.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from embatch.errors import InvalidArgument

_CERTIFICATES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")
MALFORMED: Final = (ValueError, ImportError, httpx2.InvalidURL)
"""What httpx raises, instead of an error of its own, for a variable that names no proxy it can use."""
_SYSTEM: Final = "the proxy settings of the system"


@dataclass(frozen=True, slots=True)
class NetworkRoute:
    """The way to one address: what an `httpx2.Client`, or an HTTP transport, is made with.

    Either takes no variable of the environment by itself then: give it `trust_env=False`.
    """

    verify: ssl.SSLContext
    """Certificates for the other end; reading those of the world takes 0.2 seconds, so only where they are
    needed."""
    proxy: str | None = None
    variable: str | None = None
    """The variable that named the proxy; `None` where there is none."""

    @property
    def hint(self) -> str:
        """What an error of this way has to say of it: empty, or words in brackets after a blank."""
        return "" if self.variable is None else f" (through the proxy that {self.variable} names)"


def nobody() -> ssl.SSLContext:
    """Return certificates that trust nobody and cost nothing: for connections without TLS."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def route(url: str) -> NetworkRoute:
    """Return the way to an address, as the environment has it now.

    Args:
        url: `http://…` or `https://…`.

    Raises:
        InvalidArgument: a variable that counts for this address names no proxy, or no certificates that can
            be read; the message and `field` say which.
    """
    parts = urlsplit(url)
    verify = certificates() if parts.scheme == "https" else nobody()
    if is_loopback(parts.hostname or ""):
        return NetworkRoute(verify)
    proxy, variable = _proxy(parts.scheme, parts.netloc.rpartition("@")[2])
    return NetworkRoute(verify, proxy, variable)


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine itself."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    # A connection to 0.0.0.0 or :: ends here too.
    return address.is_loopback or address.is_unspecified


def certificates() -> ssl.SSLContext:
    """Return the certificates that the environment names, else the system's.

    Raises:
        InvalidArgument: they cannot be read.
    """
    try:
        return httpx2.create_ssl_context()
    except OSError as error:  # also ssl.SSLError: a file that holds none
        variable = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
        raise InvalidArgument(
            f"{variable or 'the system'} names no certificates that can be read"
            f" ({error.strerror or type(error).__name__}): mend{' or unset' if variable else ''} it",
            field=variable,
        ) from None


def trusting() -> str:
    """Return what an error of an unknown certificate has to say: which variable names the known ones."""
    variable = next((name for name in _CERTIFICATES if os.environ.get(name)), None)
    return "" if variable is None else f" (its certificate against those that {variable} names)"


def _proxy(scheme: str, place: str) -> tuple[str | None, str | None]:
    """Return the proxy for a host and the variable that names it."""
    known = getproxies()
    kind = next((kind for kind in (scheme, "all") if known.get(kind)), None)
    if kind is None or proxy_bypass(place):
        return None, None
    address, variable = known[kind], _spelled(f"{kind}_proxy")
    address = address if "://" in address else f"http://{address}"
    try:
        parsed = httpx2.Proxy(address).url
    except (ValueError, httpx2.InvalidURL):
        parsed = httpx2.URL("")
    if not parsed.host or not 0 < (parsed.port or 1) < 1 << 16:
        raise InvalidArgument(
            f"{variable} does not hold the address of a proxy such as http://host:3128: mend or unset it",
            field=variable,
        )
    if parsed.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise InvalidArgument(
            f"{variable} names a SOCKS proxy, which needs one more package: pip install socksio; "
            "or unset it, or name the host in NO_PROXY",
            field=variable,
        )
    return address, variable


def _spelled(name: str) -> str:
    """Return a variable of this name as the environment spells it; the lower case wins, as everywhere."""
    spelled = (name, *sorted(one for one in os.environ if one.lower() == name))
    return next((one for one in spelled if os.environ.get(one)), _SYSTEM)


def hub() -> NetworkRoute:
    """Return the way to the Hugging Face Hub, whose library reads the environment by itself.

    What it makes of a variable that is wrong is any error, or that a file is not there: ask here first.

    Raises:
        InvalidArgument: as `route`.
    """
    return route(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
