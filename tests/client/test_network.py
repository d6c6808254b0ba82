"""Which proxy and which certificates a connection takes, and what is said of a variable that is wrong."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest
from client_scripts import unhurried
from raw_server import Told, answering

from embatch import AsyncClient, Client, ConnectionFailed, EmbatchError, InvalidArgument, Unavailable
from embatch.engine.answers import Expected
from embatch.engine.endpoint import Endpoint
from embatch.network import hub, is_loopback, route
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "http://127.0.0.1:1"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OTHER = "http://embatch.invalid:8080"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without any variable that counts."""
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def setting(text: str) -> Iterator[tuple[str, str]]:
    """Read `NAME=VALUE NAME=VALUE`."""
    for pair in text.split():
        name, _, value = pair.partition("=")
        yield name, value


ENVIRONMENTS = [
    "ALL_PROXY=socks5://127.0.0.1:1",
    "all_proxy=socks5h://127.0.0.1:1",
    "HTTP_PROXY=http://127.0.0.1:1 HTTPS_PROXY=http://127.0.0.1:1",
    "HTTP_PROXY=nonsense://x",
    "http_proxy=http://[",
    "ALL_PROXY=http://host:port",
    "HTTP_PROXY=http://127.0.0.1:1 NO_PROXY=[::1,http://[",
    "SSL_CERT_FILE=/none",
    "SSL_CERT_FILE=/dev/null",
    "SSL_CERT_DIR=/none",
]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_this_machine_is_reached_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """By both colours, by the engine that asks an endpoint, and by the sink for a Qdrant of one's own."""
    for name, value in setting(environment):
        monkeypatch.setenv(name, value)
    body = b'{"batches": [], "data": [{"index": 0, "embedding": [1.0]}], "result": {"exists": false}}'
    with answering(Told(body=body, headers={"Content-Type": "application/json"})) as server:
        local = server.url.replace("127.0.0.1", "localhost")
        for url in (server.url, local):
            with Client(url) as client:
                assert list(client.list_batches()) == []

            async def other(url: str) -> list[object]:
                async with AsyncClient(url) as client:
                    return [batch async for batch in client.list_batches()]

            assert asyncio.run(other(url)) == []
        endpoint = Endpoint(
            server.url, "m", key=None, wait=lambda _: None, clock=lambda: 0.0, chance=lambda: 0.0
        )
        assert endpoint.embed(["a"], 10.0, Expected()).vectors.tolist() == [[1.0]]
        endpoint.close()


@pytest.mark.parametrize("environment", ["ALL_PROXY=socks5://127.0.0.1:1", "SSL_CERT_FILE=/none"])
def test_a_socket_is_reached_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """As that of the local service."""
    for name, value in setting(environment):
        monkeypatch.setenv(name, value)
    with tempfile.TemporaryDirectory(dir="/tmp") as place, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}/s")
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as stream:
                stream.recv(4096)
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

        thread = threading.Thread(target=answer)
        thread.start()
        with Client(f"unix:{place}/s") as client:
            assert list(client.list_batches()) == []
        thread.join()


@pytest.mark.parametrize(
    ("environment", "url", "variable"),
    [
        ("ALL_PROXY=socks5://127.0.0.1:1", OTHER, "ALL_PROXY"),
        ("all_proxy=socks5h://127.0.0.1:1", OTHER, "all_proxy"),
        ("HTTP_PROXY=nonsense://secret@x", OTHER, "HTTP_PROXY"),
        ("http_proxy=http://", OTHER, "http_proxy"),
        ("HTTPS_PROXY=http://host:port", "https://embatch.invalid", "HTTPS_PROXY"),
        ("Http_Proxy=http://host:99999999", OTHER, "Http_Proxy"),
        ("SSL_CERT_FILE=/none", "https://embatch.invalid", "SSL_CERT_FILE"),
        ("SSL_CERT_FILE=/dev/null", "https://embatch.invalid", "SSL_CERT_FILE"),
        ("SSL_CERT_FILE=/none", "https://127.0.0.1:8443", "SSL_CERT_FILE"),
    ],
)
def test_elsewhere_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, environment: str, url: str, variable: str
) -> None:
    """And its value is not: it may hold a password."""
    for name, value in setting(environment):
        monkeypatch.setenv(name, value)

    async def other() -> None:
        async with AsyncClient(url) as client:
            await client.get_batch_status("batches/x")

    def sync() -> None:
        with Client(url) as client:
            client.get_batch_status("batches/x")

    for send in (sync, lambda: asyncio.run(other()), lambda: route(url)):
        with pytest.raises(InvalidArgument, match=variable) as refused:
            send()
        assert refused.value.field == variable
        assert "secret" not in str(refused.value)


def test_a_proxy_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is not there or answers in the service's place."""
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    with Client(OTHER) as client:
        unhurried(client)
        with pytest.raises(ConnectionFailed, match="through the proxy that HTTP_PROXY names"):
            client.get_batch_status("batches/x")
    with answering(Told(status=502, body=b"<html>bad gateway</html>")) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with Client(OTHER) as client:
            unhurried(client)
            with pytest.raises(Unavailable, match=r"HTTP 502 without a word .*HTTP_PROXY"):
                client.get_batch_status("batches/x")
        monkeypatch.setenv("NO_PROXY", "embatch.invalid")
        assert route(OTHER).proxy is None


def test_a_proxy_is_used_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme's own goes before ALL_PROXY, the lower case before the upper; NO_PROXY lets hosts out."""
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    assert (route(OTHER).proxy, route("https://host").variable) == ("http://all:1", "ALL_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "upper:2")
    assert route(OTHER).proxy == "http://upper:2"
    monkeypatch.setenv("http_proxy", "http://lower:3")
    assert (route(OTHER).proxy, route(OTHER).variable) == ("http://lower:3", "http_proxy")
    monkeypatch.setenv("NO_PROXY", "other.invalid, .invalid")
    assert route(OTHER).proxy is None
    assert route("http://service").proxy == "http://lower:3"
    assert route("http://127.8.9.10:80").proxy is None


@pytest.mark.parametrize("host", ["localhost", "LocalHost.", "127.0.0.1", "127.9.9.9", "::1", "[::1]",
                                  "::ffff:127.0.0.1", "0.0.0.0", "a.localhost"])  # fmt: skip  # noqa: S104
def test_this_machine(host: str) -> None:
    """By all its names."""
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.com", "128.0.0.1", "10.0.0.1", "::2", "127.0.0.1.evil.com"])
def test_other_machines(host: str) -> None:
    """Also those that look like this one."""
    assert not is_loopback(host)


def test_without_tls_nobody_is_trusted_and_with_it_the_system_is() -> None:
    """Reading the certificates of the world takes its time, and an empty store is never the wrong one."""
    assert route(OTHER).verify.get_ca_certs() == []
    assert route("https://host").verify.verify_mode is ssl.CERT_REQUIRED


def test_the_hub_and_its_data_sets_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their library would say that there is no such file."""
    monkeypatch.setenv("SSL_CERT_FILE", "/none")
    with pytest.raises(InvalidArgument, match="SSL_CERT_FILE"):
        open_source("hf://datasets/a/b/x.jsonl", None, None)
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    assert "HTTPS_PROXY" in hub().hint
    with pytest.raises(EmbatchError, match="through the proxy that HTTPS_PROXY names"):
        open_source("hf://datasets/a/b/x.jsonl", None, None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert hub().hint == ""
