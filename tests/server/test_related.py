"""Multipart uploads are read the same however the network cuts them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.api.multipart import RelatedReader, boundary_of
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOUNDARY = b"xyz"


async def cut(body: bytes, step: int) -> AsyncIterator[bytes]:
    """Yield a body in pieces."""
    for at in range(0, len(body), step):
        yield body[at : at + step]


def read(body: bytes, step: int = 7) -> tuple[bytes, str, bytes]:
    """Return the description, the type of the file's part, and the file."""

    async def all_of_it() -> tuple[bytes, str, bytes]:
        reader = RelatedReader(cut(body, step), BOUNDARY)
        described = await reader.metadata()
        kind = (await reader.file_head()).content_type
        return described, kind, b"".join([piece async for piece in reader.file()])

    return asyncio.run(all_of_it())


def body_of(described: bytes, content: bytes) -> bytes:
    """Return a well-formed body."""
    return (
        b"--xyz\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + described + b"\r\n"
        b"--xyz\r\nContent-Type: text/plain\r\nX-More: 1\r\n\r\n" + content + b"\r\n--xyz--\r\n"
    )


@given(st.binary(max_size=300), st.integers(1, 400))
def test_any_content_comes_through_however_it_is_cut(content: bytes, step: int) -> None:
    """Line breaks, dashes and half delimiters in a file are the file's own."""
    if b"\r\n--xyz" not in content:
        assert read(body_of(b"{}", content), step) == (b"{}", "text/plain", content)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--x", b"\r\n--xy", b"y"]), max_size=30))
def test_almost_delimiters_are_content(parts: list[bytes]) -> None:
    """Only the whole delimiter ends a part."""
    content = b"".join(parts)
    assert read(body_of(b"{}", content), 3)[2] == content


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no boundary at all", id="no boundary"),
        pytest.param(b"--xyz--\r\n", id="no part"),
        pytest.param(b"--xyz\r\n\r\n{}\r\n--xyz--\r\n", id="one part"),
        pytest.param(body_of(b"{}", b"a")[:-9], id="cut short"),
        pytest.param(
            body_of(b"{}", b"a").replace(b"--xyz--", b"--xyz\r\n\r\nb\r\n--xyz--"), id="three parts"
        ),
        pytest.param(b"--xyz\r\n" + b"A: b\r\n" * 100_000, id="endless head"),
        pytest.param(b"--xyz\r\n\r\n" + b"x" * 1_000_000, id="endless description"),
        pytest.param(b"--xyz\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n{}", id="a header of a megabyte"),
    ],
)
def test_a_malformed_body_is_the_clients_fault(body: bytes) -> None:
    """Every fault is an InvalidArgument."""
    with pytest.raises(InvalidArgument):
        read(body, 4096)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/related; boundary=abc", b"abc"),
        ('Multipart/Related; type="x"; boundary="a b"', b"a b"),
        ("multipart/related", None),
        ("multipart/form-data; boundary=abc", None),
        ("", None),
    ],
)
def test_the_boundary(content_type: str, boundary: bytes | None) -> None:
    """It is named in the Content-Type of multipart/related, quoted or not."""
    if boundary is None:
        with pytest.raises(InvalidArgument):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary
