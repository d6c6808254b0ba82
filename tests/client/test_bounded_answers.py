"""Answers that are too much: what a service sends is bounded before it fills the memory of who asked."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pytest
from client_scripts import play, problem, session, unhurried
from raw_server import Told, answering

from embatch import AsyncClient, Batch, BatchStats, Client, DataLoss, EmbatchError, Internal, State
from embatch.client import flows
from embatch.client.calls import ANSWER_BYTES, Call, Reply
from embatch.client.providers.gemini import GEMINI
from embatch.client.providers.provider import Target
from embatch.client.readers import LINE_BYTES, Buffer, ResponseLines
from embatch.client.receiving import MOST_RATIO, PLAIN_BYTES, REFUSAL_BYTES, IncomingAnswer
from embatch.errors import WORDS, printable
from embatch.wire.google.read_errors import parse_error

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "batches/b"
OPERATION: dict[str, Any] = {
    "name": NAME,
    "metadata": {"name": NAME, "model": "models/m", "state": "BATCH_STATE_RUNNING"},
}


def done(requests: int) -> Batch:
    """Return a finished batch."""
    stats = BatchStats(requests, requests)
    return Batch(NAME, "models/m", State.COMPLETED, "b", 0, None, None, None, stats)


def asked(url: str, *, colour: str) -> EmbatchError | Batch:
    """Return what asking for a batch comes to in one of the colours."""

    async def other() -> Batch:
        async with AsyncClient(url) as client:
            unhurried(client)
            return await client.get_batch_status(NAME)

    try:
        if colour == "async":
            return asyncio.run(other())
        with Client(url) as client:
            unhurried(client)
            return client.get_batch_status(NAME)
    except EmbatchError as error:
        return error


def bomb(size: int) -> bytes:
    """Return gzip of so many blanks, made in pieces."""
    packer, packed = zlib.compressobj(9, wbits=31), []
    packed += [packer.compress(b" " * (1 << 20)) for _ in range(size >> 20)]
    return b"".join([*packed, packer.flush()])


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_bomb_is_given_up_and_not_asked_for_again(colour: str) -> None:
    """Some kilobytes of gzip that stand for hundreds of megabytes end in one error, after one call."""
    with answering(Told(body=bomb(4 * PLAIN_BYTES), headers={"Content-Encoding": "gzip"})) as server:
        error = asked(server.url, colour=colour)
    assert isinstance(error, Internal)
    assert "unpacks to more than" in error.message
    assert len(server.asked) == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "x-unheard-of"])
def test_an_encoding_that_nobody_asked_for_is_refused(colour: str, encoding: str) -> None:
    """Layers multiply, and what a library can unpack depends on what else is installed."""
    with answering(Told(headers={"Content-Encoding": encoding})) as server:
        error = asked(server.url, colour=colour)
    assert isinstance(error, Internal)
    assert "encoding" in error.message
    assert server.said[0]["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("encoding", ["gzip", "identity", None])
def test_an_honest_answer_arrives_packed_or_not(colour: str, encoding: str | None) -> None:
    """As a proxy may pack it."""
    body = orjson.dumps(OPERATION)
    told = Told(body=gzip.compress(body) if encoding == "gzip" else body)
    told.headers = {} if encoding is None else {"Content-Encoding": encoding}
    with answering(told) as server:
        found = asked(server.url, colour=colour)
    assert isinstance(found, Batch)
    assert found.state is State.PROCESSING


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_of_an_endless_error_the_beginning_is_read(colour: str) -> None:
    """Its status says what it is; a page of megabytes adds nothing."""
    with answering(Told(404, b"<html>" + b"x" * (8 * REFUSAL_BYTES))) as server:
        error = asked(server.url, colour=colour)
    assert isinstance(error, EmbatchError)
    assert error.message == "the service answered HTTP 404 without a word"


def fed(call: Call, size: int, arrived: Callable[[int], int], piece: int = 1 << 20) -> int:
    """Feed blanks to an answer; return how many bytes it kept."""
    answer = IncomingAnswer(call, 200, {})
    for count in range(piece, size + 1, piece):
        answer.feed(b" " * piece, arrived(count))
    return len(answer.reply().body)


def test_what_is_large_and_honest_is_taken() -> None:
    """Text of vectors packs to a fifth; up to the bound of its call nothing is in the way."""
    call = Call("GET", "/", most=ANSWER_BYTES)
    assert fed(call, ANSWER_BYTES, lambda count: count // 20) == ANSWER_BYTES
    with pytest.raises(Internal, match="given up"):
        fed(call, ANSWER_BYTES + (1 << 20), lambda count: count)
    with pytest.raises(Internal, match=f"more than {MOST_RATIO} times"):
        fed(call, PLAIN_BYTES + (1 << 20), lambda count: count // 1000)


def test_the_results_of_a_whole_batch_fit() -> None:
    """10,000 embeddings of 3,072 dimensions as Google writes them, twice in one answer."""
    call = next(flows.get(session(Target("http://service", GEMINI)), NAME))
    assert isinstance(call, Call)
    assert 2 * 10_000 * 3072 * len("-0.0123456789012345678,") < call.most


def test_a_stream_of_results_is_as_long_as_its_batch_allows() -> None:
    """However it is packed or not, it need not end."""
    buffer = Buffer(0)
    buffer.feed(b"x" * ANSWER_BYTES)
    with pytest.raises(DataLoss, match="given up"):
        buffer.feed(b"x")
    buffer.begin()
    buffer.feed(b"x")
    assert buffer.content == b"x"


def test_a_line_of_results_ends() -> None:
    """And there are not more lines than results."""
    lines = ResponseLines(10)
    for _ in range(LINE_BYTES // 4096):
        lines.feed(b"x" * 4096)
    with pytest.raises(DataLoss, match="a line of the results"):
        lines.feed(b"x")
    lines.begin()
    line = b'{"key": "a", "error": {"code": 3, "message": "no"}}\n\n'
    lines.feed(line * 10)
    assert len(lines.rows()) == 10
    with pytest.raises(DataLoss, match="two for each request"):
        lines.feed(line * 11)


def test_lines_are_the_same_however_they_are_cut() -> None:
    """Pieces of one byte, of seven, of all."""
    content = b"".join(b'{"key": "k%d", "error": {"code": 3, "message": "no"}}\r\n' % at for at in range(40))
    for size in (1, 7, len(content)):
        lines = ResponseLines(40)
        for begin in range(0, len(content), size):
            lines.feed(content[begin : begin + size])
        assert [row.key for row in lines.rows()] == [f"k{at}" for at in range(40)]


def results(columns: dict[str, Any], **options: Any) -> bytes:
    """Return an Arrow stream of these columns."""
    batch = pa.RecordBatch.from_pydict(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def row(**more: Any) -> dict[str, Any]:
    """Return the columns of one result."""
    empty = pa.array([None], pa.string())
    return {
        "index": pa.array([0], pa.int64()),
        "key": empty,
        "metadata": empty,
        "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "tokens": pa.array([1], pa.int32()),
        "truncated": pa.array([False]),
        "error_code": pa.array([None], pa.int32()),
        "error_reason": empty,
        "error_message": empty,
        **more,
    }


def read(content: bytes) -> Any:
    """Read a stream as the results of a batch of one request."""
    return play(flows.results(session(), done(1), None, partial=False), [Reply(200, {}, content)])


def test_a_stream_of_results_is_what_it_seems() -> None:
    """One that would unpack to more, or has other columns, or offsets that do not hold, is damaged."""
    assert read(results(row())).value.embeddings[0].values.tolist() == [1.0, 2.0]
    packed = results(row(key=pa.array(["k" * 100_000])), compression="zstd")
    size = 0x12345
    whole = results(row(key=pa.array(["k" * size])))
    broken = whole.replace(struct.pack("<ii", 0, size), struct.pack("<ii", 0, size * 1000))
    assert broken != whole
    assert read(whole).error is None
    wide = pa.array([[0.0] * ((1 << 16) + 1)], pa.list_(pa.float32()))
    for content in (
        packed,
        results(row(embedding=pa.array(["text"]))),
        results(row(metadata=pa.array(["{no json"]))),
        broken,
        results(row(embedding=wide)),
        results({"index": pa.array([0])}),
        b"",
    ):
        assert isinstance(read(content).error, DataLoss)


def test_a_number_of_requests_that_cannot_be_takes_no_room() -> None:
    """It is the service's word."""
    played = play(
        flows.results(session(Target("http://service", GEMINI)), done(1 << 40), None, partial=False),
        [
            Reply(
                200,
                {},
                orjson.dumps({"name": NAME, "metadata": {**OPERATION["metadata"], "output": output()}}),
            )
        ],
    )
    assert isinstance(played.error, DataLoss)
    assert "no batch has" in played.error.message


def output() -> Any:
    """Return inlined results."""
    return {"inlinedResponses": {"inlinedResponses": [{"response": {"embedding": {"values": [1.0]}}}]}}


@pytest.mark.parametrize("text", ["\x1b[2Jgone", "a\nb\r\tc", "\x00", "\x9b31m", "\u202egnp.exe", "\ud800"])
def test_a_services_words_hold_no_control_characters(text: str) -> None:
    """A terminal would obey them; they are shown as escapes, in the message, the field and the reason."""
    details = {"fieldViolations": [{"field": text, "reason": text}]}
    body = orjson.dumps(problem(400, "INVALID_ARGUMENT", text, details)) if text != "\ud800" else b""
    error = parse_error(400, {}, body)
    for words in (error.message, error.field or "", error.reason or "", printable(text)):
        assert words.isprintable(), words


def test_a_services_words_are_cut() -> None:
    """A megabyte of them is no message."""
    error = parse_error(400, {}, orjson.dumps(problem(400, "INVALID_ARGUMENT", "<p>" * 1_000_000)))
    assert len(error.message) <= WORDS + 1
