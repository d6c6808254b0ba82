"""How a client is set up: address, time-out, retries, an HTTP client of one's own, copies for one call."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from client_scripts import problem, scripted, unhurried, wired, wired_async

from embatch import AsyncClient, Client, ConnectionFailed, EmbatchError, InvalidArgument, Unavailable
from embatch.client.base import ClientOptions

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "batches/b1"
URL = "http://service"


def operation(state: str = "SUCCEEDED") -> httpx2.Response:
    """Return an operation in this state."""
    metadata = {"name": NAME, "model": "models/m", "state": f"BATCH_STATE_{state}"}
    return httpx2.Response(200, json={"name": NAME, "metadata": metadata})


def busy() -> httpx2.Response:
    """Return a refusal that is worth repeating."""
    return httpx2.Response(503, json=problem(503, "UNAVAILABLE", "not now"))


def timeouts(request: httpx2.Request) -> Any:
    """Return the seconds that a request has for each of its steps."""
    return request.extensions["timeout"]


@pytest.mark.parametrize(
    ("options", "connect", "read"),
    [({}, 10.0, 60.0), ({"timeout": 5}, 5.0, 5.0), ({"timeout": math.inf}, None, None)],
)
def test_the_time_out_is_of_every_step(options: dict[str, Any], connect: object, read: object) -> None:
    """By default it is the call's; as infinite, none."""
    handle, seen = scripted([operation()])
    with Client(URL, http_client=wired(handle), **options) as client:
        client.get_batch_status(NAME)
    assert (timeouts(seen[0])["connect"], timeouts(seen[0])["read"]) == (connect, read)


@pytest.mark.parametrize(("retries", "calls"), [(None, 6), (0, 1), (2, 3)])
def test_retries_are_as_many_as_were_wanted(retries: int | None, calls: int) -> None:
    """After the first try; the last refusal is raised."""
    handle, seen = scripted([busy() for _ in range(calls)])
    with Client(URL, http_client=wired(handle), max_retries=retries) as client:
        unhurried(client)
        with pytest.raises(Unavailable, match="not now"):
            client.get_batch_status(NAME)
    assert len(seen) == calls


def test_a_batch_is_awaited_through_as_many_failures_in_a_row() -> None:
    """A poll that succeeds begins the count anew."""
    handle, seen = scripted([busy(), operation("RUNNING"), busy(), operation("RUNNING"), busy(), busy()])
    with Client(URL, http_client=wired(handle), max_retries=1) as client:
        unhurried(client)
        with pytest.raises(Unavailable):
            client.await_batch_completion(NAME, poll_interval=0)
    assert len(seen) == 6


def test_a_copy_has_options_of_its_own_and_the_same_connections() -> None:
    """The client keeps its own; closing the copy closes nothing, closing the client both."""
    handle, seen = scripted([operation(), busy(), operation(), operation()])
    client = Client(URL, http_client=wired(handle), timeout=30, max_retries=4)
    unhurried(client)
    with client.with_options(timeout=5, max_retries=0) as copy:
        copy.get_batch_status(NAME)
        with pytest.raises(Unavailable):
            copy.get_batch_status(NAME)
    copy.get_batch_status(NAME)
    client.get_batch_status(NAME)
    assert [timeouts(request)["read"] for request in seen] == [5, 5, 5, 30]
    assert type(copy) is Client
    client.close()
    for one in (client, copy):
        with pytest.raises(InvalidArgument, match="closed"):
            one.get_batch_status(NAME)


def test_a_copy_of_the_other_colour() -> None:
    """It is made without awaiting, and is an AsyncClient."""

    async def main() -> list[float]:
        handle, seen = scripted([operation(), operation()])
        async with AsyncClient(URL, http_client=wired_async(handle)) as client:
            await client.with_options(timeout=5).get_batch_status(NAME)
            await client.get_batch_status(NAME)
        return [timeouts(request)["read"] for request in seen]

    assert asyncio.run(main()) == [5, 60]


def test_an_http_client_of_ones_own_is_used_and_left_open() -> None:
    """With what it sends by itself; redirects are not followed, for the key would go along."""
    away = httpx2.Response(302, headers={"Location": "http://elsewhere/"})
    handle, seen = scripted([operation(), away])
    http = httpx2.Client(
        transport=httpx2.MockTransport(handle), headers={"X-Team": "search"}, follow_redirects=True
    )
    with Client(URL, http_client=http, api_key="secret", max_retries=0) as client:
        client.get_batch_status(NAME)
        with pytest.raises(EmbatchError):
            client.get_batch_status(NAME)
    assert [request.headers["X-Team"] for request in seen] == ["search"] * 2
    assert [request.url.host for request in seen] == ["service"] * 2
    assert not http.is_closed
    http.close()


def test_an_http_client_that_is_closed_says_so() -> None:
    """Instead of an error of the HTTP library's."""
    http = wired(scripted([])[0])
    http.close()
    with (
        Client(URL, http_client=http) as client,
        pytest.raises(InvalidArgument, match="http_client is closed"),
    ):
        client.get_batch_status(NAME)


FORKING = """
import os
import httpx2
from client_scripts import wired
from embatch import Client, InvalidArgument
from test_options import operation

client = Client("http://service", http_client=wired(lambda _: operation("SUCCEEDED")))
reader, writer = os.pipe()
child = os.fork()
if not child:
    try:
        client.get_batch_status("batches/b1")
    except InvalidArgument as error:
        os.write(writer, (error.field or "").encode())
    os._exit(0)
os.waitpid(child, 0)
os.close(writer)
print(os.read(reader, 100).decode(), client.get_batch_status("batches/b1").done)
"""


def test_an_http_client_does_not_cross_a_fork() -> None:
    """Its connections are the parent's: a child makes its own."""
    # By a process of its own: libraries that other tests load do not like to be forked.
    told = subprocess.run(
        [sys.executable, "-c", FORKING],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert told.stdout == "http_client True\n"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": "1"}, "timeout"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"http_client": object()}, "http_client"),
        ({"base_url": 5}, "base_url"),
        ({"base_url": "host:8080"}, "base_url"),
        ({"base_url": "http://"}, "base_url"),
        ({"target": "http://one", "base_url": "http://other"}, "base_url"),
        ({"base_url": "http://one", "data": "/some/folder"}, "data"),
    ],
)
def test_a_wrong_option_is_named(kind: type, options: dict[str, Any], field: str) -> None:
    """At once, and not with the first call."""
    with pytest.raises(InvalidArgument, match=field) as refused:
        kind(**{"target": URL, **options} if "base_url" not in options else options)
    assert refused.value.field == field


def test_an_http_client_of_the_other_colour_is_refused() -> None:
    """It could not be used; the message says which it must be."""
    with pytest.raises(InvalidArgument, match=r"httpx2\.Client, not an AsyncClient"):
        Client(URL, http_client=wired_async(scripted([])[0]))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"httpx2\.AsyncClient, not a Client"):
        AsyncClient(URL, http_client=wired(scripted([])[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["local", "unix:/run/embatch.sock"])
def test_an_http_client_is_refused_where_it_would_not_get_there(target: str, tmp_path: Path) -> None:
    """It would call a port of this machine instead of the socket."""
    with pytest.raises(InvalidArgument, match="http_client goes with an address"):
        Client(target, data=tmp_path, http_client=wired(scripted([])[0]))


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"base_url": "http://host:8080/"}, "http://host:8080/v1/batches/b1"),
        (
            {"target": "gemini", "base_url": "https://gateway/google"},
            "https://gateway/google/v1beta/batches/b1",
        ),
    ],
)
def test_another_address(options: dict[str, str], url: str) -> None:
    """Alone it is a service's; with `gemini` something that speaks Google's protocol, key and all."""
    handle, seen = scripted([operation()])
    with Client(**options, api_key="secret", http_client=wired(handle)) as client:  # type: ignore[arg-type]
        client.get_batch_status(NAME)
    assert str(seen[0].url).partition("?")[0] == url
    assert seen[0].headers["x-goog-api-key"] == "secret"


def test_options_do_not_show_the_key() -> None:
    """A traceback with locals may print them."""
    assert "secret" not in repr(ClientOptions("local", None, "secret", None, None, None, None))


@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        (Client, httpx2.MockTransport(lambda _: operation())),
        (AsyncClient, httpx2.MockTransport(lambda _: operation())),
    ],
)
def test_the_older_way_works_for_one_release(kind: type, transport: object) -> None:
    """A warning at the caller's line names what takes its place."""
    with pytest.warns(DeprecationWarning, match="http_client=") as told:
        client = kind(URL, transport=transport)
    assert told[0].filename == __file__
    found = client.get_batch_status(NAME)
    assert (asyncio.run(found) if kind is AsyncClient else found).done
    with pytest.raises(InvalidArgument, match="not both"):
        kind(URL, transport=transport, http_client=transport)


def test_a_display_name_is_required() -> None:
    """Left out it is Python's own error, which names it; empty or blank ours."""
    submits: list[Callable[[Client], object]] = [
        lambda client: client.async_batch_embed_contents(["a"]),  # type: ignore[call-arg]
        lambda client: client.async_batch_embed_contents(["a"], display_name=""),
        lambda client: client.async_batch_embed_contents(["a"], display_name=" "),
    ]
    with Client(URL, http_client=wired(scripted([])[0])) as client:
        for submit, kind in zip(submits, (TypeError, InvalidArgument, InvalidArgument), strict=True):
            with pytest.raises(kind, match="display_name"):
                submit(client)


def test_nobody_listens_is_told_at_once_without_retries() -> None:
    """As a health check wants it."""
    client = Client("http://127.0.0.1:9", max_retries=0, timeout=5)
    with client, pytest.raises(ConnectionFailed, match="cannot reach"):
        client.get_batch_status(NAME)
