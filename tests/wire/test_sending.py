"""What cannot be sent is refused by the client, before anything is, with the request and the field."""

from __future__ import annotations

import io
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pytest

from embatch.batch import Request, TaskType
from embatch.client.payload import blocks, request
from embatch.errors import InvalidArgument
from embatch.jsontext import encodable
from embatch.shard import rows_of
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.arrow.write_requests import StreamWriter
from embatch.wire.gemini import write_requests

LIKE = Request("")


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("key", {"key": "a\ud800"}),
        ("title", {"title": "\udfff", "task_type": TaskType.RETRIEVAL_DOCUMENT}),
        ("metadata", {"metadata": {"t": ["\ud800"]}}),
        ("metadata", {"metadata": {"\ud800": 1}}),
        ("metadata", {"metadata": {"s": {1, 2}}}),
        ("metadata", {"metadata": [1]}),
    ],
)
@pytest.mark.parametrize("count", [3, 1500])
def test_a_request_that_json_cannot_say(field: str, said: dict[str, Any], count: int) -> None:
    """However many there are: inline and in a file."""
    given: list[str | Request] = [Request(f"text {at}") for at in range(count)]
    given[2] = Request("two", **said)
    with pytest.raises(InvalidArgument, match=rf"requests\[2\]\.{field}") as refused:
        list(blocks(given, LIKE, 1000))
    assert refused.value.field == f"requests[2].{field}"


def test_a_text_with_a_lone_surrogate_still_fails_alone() -> None:
    """It is sent as no text; metadata may be any mapping."""
    metadata = MappingProxyType({"n": 10**20})
    kept = request(Request("\ud800", key="k", metadata=metadata), 0, LIKE)
    body = write_requests.create_body("m", "d", 0, [kept])
    assert b'"text":null' in body
    assert b'"n":100000000000000000000' in body


def test_what_is_no_requests_is_refused_too() -> None:
    """A display name has the same letters."""
    with pytest.raises(InvalidArgument, match="lone surrogate"):
        write_requests.create_body("m", "\ud800", 0, [Request("a")])


def test_a_text_of_a_stream_that_is_not_utf_8_fails_alone() -> None:
    """Ours writes a lone surrogate so, another writer whatever it had; all beside it is as it was."""
    requests = [Request("good"), Request("lone \ud800", key="k"), Request(None), Request("also good")]
    file = io.BytesIO()
    writer = StreamWriter(file)
    writer.write(requests)
    writer.finish()
    file.seek(0)
    (batch,) = read_batches(file, 100)
    rows = list(rows_of(batch))
    assert [row.key for row in rows] == [None, "k", None, None]
    assert [row.text and encodable(row.text) for row in rows] == [True, False, None, True]
    assert (rows[0].text, rows[3].text) == ("good", "also good")


def test_a_stream_that_is_wrong_elsewhere_is_refused() -> None:
    """A key that is not UTF-8 could not be echoed."""
    said = {"text": pa.array(["a"]), "key": pa.array([b"\xff"], pa.binary()).view(pa.string())}
    batch = pa.RecordBatch.from_pydict(said)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InvalidArgument, match="not a readable Arrow stream"):
        list(read_batches(io.BytesIO(sink.getvalue().to_pybytes()), 100))
