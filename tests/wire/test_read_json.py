"""A large body is read piece by piece, and says what it would say in one piece."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from embatch.errors import InvalidArgument
from embatch.jsontext import BLOCK_BYTES, MOST_MARKS
from embatch.wire.gemini import read_requests
from embatch.wire.gemini.read_json import DEPTH, Body, load

LARGE = BLOCK_BYTES + 1000


def same(_: str) -> bool:
    """Take every model for the same."""
    return True


def elements(body: bytes | bytearray, depth: int = 2, name: str = "requests") -> list[Any]:
    """Return the list of a body."""
    read = Body(body, depth)
    return list(read.elements(read.value[name], name) or ())


def refused(body: bytes) -> InvalidArgument:
    """Return why a body of requests is refused."""
    with pytest.raises(InvalidArgument) as error:
        elements(body)
    return error.value


def many(count: int = 3000) -> list[dict[str, Any]]:
    """Return requests, some of which are longer than a block, with all that may stand in a text."""
    texts = [
        'a "quoted" text',
        "[{",
        "\\",
        '\\"',
        "}],",
        "",
        "\u00fc \U0001f600",
        "x" * BLOCK_BYTES,
        '"' * 70_000,
    ]
    return [
        {"text": texts[number % len(texts)] if number % 500 < 9 else f"{number}"} for number in range(count)
    ]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("ascii_", [True, False])
def test_a_list_in_pieces_is_the_list(indent: int | None, *, ascii_: bool) -> None:
    """However it is laid out, and with something before and behind it."""
    given = {"before": ["a", ["b"]], "requests": many(), "behind": {"c": [1, [2]]}}
    body = json.dumps(given, indent=indent, ensure_ascii=ascii_).encode()
    read = Body(body, 2)
    assert isinstance(read.value["requests"], str)
    assert {**read.value, "requests": None} == {**given, "requests": None}
    assert list(read.elements(read.value["requests"], "requests") or ()) == given["requests"]
    assert elements(bytearray(body)) == given["requests"]


@pytest.mark.parametrize("shift", range(-12, 4))
@pytest.mark.parametrize("end", [rb"\\", rb"\"", rb"\\\"", rb"\\\\", rb"\"[{", b"", rb"\u0022,"])
def test_an_escape_over_the_end_of_a_block_is_one(shift: int, end: bytes) -> None:
    """Wherever a block ends."""
    head = b'{"requests":["'
    body = head + b"x" * (BLOCK_BYTES + shift - len(head)) + end + b'","[","' + b"y" * BLOCK_BYTES + b'"]}'
    assert elements(body) == orjson.loads(body)["requests"]


def test_two_long_lists_and_short_ones_beside_them() -> None:
    """Each is read where it stands."""
    long = list(range(40_000))
    given = {"a": [1], "b": long, "c": [], "d": [[2]], "e": long[::-1], "f": {"g": [3]}}
    body = json.dumps(given).encode()
    read = Body(body, 2)
    assert {name: list(read.elements(read.value[name], name) or ()) for name in "abcde"} == {
        name: given[name] for name in "abcde"
    }


BROKEN = [
    (b"[1,", b"[1,,"),
    (b"[1,", b"[,1,"),
    (b"79999]", b"79999,]"),
    (b",40000,", b",40000 1,"),
    (b",40000,", b",,40000,"),
    (b",40000,", b",4\xff,"),
    (b",40000,", b',"\\ud800",'),
    (b",40000,", b",[1},"),
    (b",40000,", b",{1],"),
    (b",40000,", b",01,"),
    (b",40000,", b",NaN,"),
    (b",40000,", b',"\n",'),
    (b",40000,", b",\\,"),
    (b"79999]", b"79999}"),
    (b"79999]", b"79999"),
    (b"79999]}", b"79999]"),
    (b"79999]}", b"79999]}}"),
    (b'"z":1}', b'"z":}'),
    (b'"z":1}', b'"z":1,}'),
    (b'"z":1}', b'"z":"1}'),
    (b'{"requests":', b'{"requests"'),
]


@pytest.mark.parametrize(("sound", "broken"), BROKEN)
def test_what_is_no_json_is_refused_where_it_is_none(sound: bytes, broken: bytes) -> None:
    """With the place in the whole body, as one reader of it all would say."""
    body = b'{"requests":[' + b",".join(b"%d" % number for number in range(1, 80_000)) + b"]}"
    if b"z" in sound:
        body = body[:-1] + b',"z":1}'
    assert elements(body) == list(range(1, 80_000))
    assert body.count(sound) == 1
    body = body.replace(sound, broken)
    error = refused(body)
    assert error.reason in ("MALFORMED_JSON", "BAD_ENCODING")
    with pytest.raises(orjson.JSONDecodeError) as whole:
        orjson.loads(body)
    if "unexpected end" not in error.message and b"\xff" not in body:
        assert f"(char {whole.value.pos})" in error.message


def test_a_field_given_twice_is_refused_in_every_piece() -> None:
    """Also where it is far from its twin."""
    assert refused(json.dumps({"requests": many()}).encode()[:-3] + b',"text":1}]}').reason == "DUPLICATE_KEY"
    body = b'{"requests":[1],"a":"' + b"x" * LARGE + b'","requests":[2]}'
    assert refused(body).reason == "DUPLICATE_KEY"


@pytest.mark.parametrize("size", [0, LARGE])
def test_the_depth_of_a_body_is_one_whatever_its_size(size: int) -> None:
    """Its last level is taken, one more is refused; what stands in texts does not count."""
    pad = b'"a":"' + rb"[{\"" * (size // 4) + b'",'
    most = DEPTH - 1
    assert load(b"{" + pad + b'"b":' + b"[" * most + b"]" * most + b"}")
    assert Body(b"{" + pad + b'"b":' + b"[" * most + b"]" * most + b"}", 2).value
    for read in (load, lambda body: Body(body, 2)):
        with pytest.raises(InvalidArgument) as error:
            read(b"{" + pad + b'"b":' + b"[" * DEPTH + b"]" * DEPTH + b"}")
        assert error.value.reason == "TOO_DEEP"


def test_a_request_of_too_many_values_is_refused_by_its_number() -> None:
    """And as many in one more place of the body: as values they would take twenty times their bytes."""
    huge = [{"text": "a"}, {"metadata": [[]] * MOST_MARKS}, {"text": "b"}]
    error = refused(json.dumps({"requests": huge}).encode())
    assert (error.field, error.reason) == ("requests[1]", "TOO_MANY_VALUES")
    error = refused(json.dumps({"other": {"a": [0] * MOST_MARKS}, "requests": [1]}).encode())
    assert (error.field, error.reason) == ("body", "TOO_MANY_VALUES")
    with pytest.raises(InvalidArgument, match="brackets and commas"):
        load(json.dumps({"a": [0] * MOST_MARKS}).encode())
    assert load(json.dumps({"a": "[{," * MOST_MARKS, "b": [0] * (MOST_MARKS - 100)}).encode())


def test_commas_in_texts_are_no_values() -> None:
    """A text may have as many as it likes."""
    text = "a,b,[c],{d}," * MOST_MARKS
    assert elements(json.dumps({"requests": [{"text": text}] * 3}).encode()) == [{"text": text}] * 3


def test_no_more_requests_are_read_than_can_be_taken() -> None:
    """Twenty megabytes of requests of three bytes would be half a gigabyte of rows."""
    entries = b",".join([b'{"request":{}}'] * 100_000)
    body = b'{"batch":{"inputConfig":{"requests":{"requests":[' + entries + b"]}}}}"
    assert len(read_requests.create(body, "m", same, most=10).rows or ()) == 11
    assert len(read_requests.create(body, "m", same).rows or ()) == 100_000


def test_a_mark_is_not_to_be_guessed() -> None:
    """A text in the place of the list is a text."""
    assert Body(b'{"requests":"x"}', 2).elements("x", "requests") is None


def test_the_reader_can_be_stopped_between_pieces() -> None:
    """By whoever gives the pulse."""
    body = json.dumps({"requests": many()}).encode()
    assert Beats(1 << 30).read(body) == many()
    last = 0
    for beats in map(Beats, (2, 8, 32)):
        with pytest.raises(TimeoutError):
            beats.read(body)
        assert last < beats.taken < len(many()) or not beats.taken
        last = beats.taken


@pytest.mark.parametrize("letter", ["x", '"', "\u00e9", "\x01"])
def test_a_text_too_long_in_any_spelling_is_not_read_and_fails_alone(letter: str) -> None:
    """It stays too long; one that is within the limit as it is written shortest comes through."""
    limit = 30_000
    texts = ["before", letter * (10 * limit), "between", letter * (limit // 2), "behind"]
    entries = [{"request": {"content": {"parts": [{"text": text}]}}} for text in texts]
    body = json.dumps({"batch": {"inputConfig": {"requests": {"requests": entries}}}}).encode()
    rows = read_requests.create(body, "m", same, text_bytes=limit).rows or []
    found = [row.text or "" for row in rows]
    assert [found[at] for at in (0, 2, 3, 4)] == [texts[at] for at in (0, 2, 3, 4)]
    assert len(found[1].encode()) > limit
    row = read_requests.embed(json.dumps(entries[1]["request"]).encode(), same, limit)
    assert len((row.text or "").encode()) > limit


class Beats:
    """Reads a body until so many pulses have come."""

    def __init__(self, most: int) -> None:
        self.left, self.taken = most, 0

    def pulse(self) -> None:
        """Count one."""
        self.left -= 1
        if not self.left:
            raise TimeoutError

    def read(self, body: bytes) -> list[Any]:
        """Return the list of a body."""
        whole = Body(body, 2, self.pulse)
        found = []
        for element in whole.elements(whole.value["requests"], "requests") or ():
            found.append(element)
            self.taken = len(found)
        return found
