"""Integers of any length keep their digits, on every way that metadata and keys take."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch import jsontext
from embatch.batch import Request
from embatch.errors import InvalidArgument
from embatch.shard import RequestRow
from embatch.wire.arrow import read_results, write_results
from embatch.wire.arrow.read_requests import read_batches
from embatch.wire.arrow.write_requests import StreamWriter
from embatch.wire.gemini import read_jsonl, read_requests, read_responses, write_requests, write_responses

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = {
    "id": 10**20 + 1,
    "deep": [{"n": -(2**63) - 1}, 2**64],
    "most": 2**64 - 1,
    "text": "9" * 40,
    "half": 0.5,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), st.sampled_from([None, 1]))
def test_what_goes_in_comes_out(value: dict[str, Any], indent: int | None) -> None:
    """Of whatever JSON says, in bytes and in text, however it is laid out."""
    assert jsontext.loads(jsontext.dumps(value)) == value
    assert jsontext.loads(json.dumps(value, indent=indent)) == value


@pytest.mark.parametrize(
    "said",
    [
        b'{"a":1',
        b'{"a":NaN, "b":99999999999999999999}',
        b'{"a":1e400}',
        b'{"a":[' + b"9" * 5000 + b"]}",
        b'{"a":"\\ud800","b":[18446744073709551616]}',
        b'{"a":' * 1010 + b"[18446744073709551616]" + b"}" * 1010,
        b'{"a":' * 120 + b"[18446744073709551616]" + b"}" * 120,
    ],
)
def test_what_is_no_json_is_not_read_by_either_reader(said: bytes) -> None:
    """The standard library would take some of these."""
    with pytest.raises(orjson.JSONDecodeError):
        jsontext.loads(said)


@pytest.mark.parametrize(
    "value", [{1, 2}, "\ud800", {"a": [10**20, "\ud800"]}, {"a": [10**20, float("nan")]}]
)
def test_what_json_cannot_say_is_a_value_error(value: object) -> None:
    """Also where an integer beyond 64 bits stands beside it."""
    with pytest.raises(ValueError, match="no JSON"):
        jsontext.dumps(value)


def _same(_: str) -> bool:
    return True


def test_metadata_of_a_body_keeps_its_digits() -> None:
    """From the client's body to the row of the service."""
    body = write_requests.create_body("m", "d", 0, [Request("a", metadata=BIG), Request("b")])
    rows = read_requests.create(body, "m", _same).rows
    assert rows is not None
    assert json.loads(rows[0].metadata or "") == BIG


def test_metadata_and_keys_of_lines_keep_their_digits() -> None:
    """A key that is a number becomes text of the same digits."""
    line = json.dumps(
        {"key": 10**20 + 1, "metadata": BIG, "request": {"content": {"parts": [{"text": "a"}]}}}
    )
    (row,) = read_jsonl.read_rows(io.BytesIO(line.encode()), 1 << 20, _same)
    assert (row.key, json.loads(row.metadata or "")) == (str(10**20 + 1), BIG)


def test_an_integer_that_no_field_takes_is_refused_by_name() -> None:
    """As before, whatever its length."""
    with pytest.raises(InvalidArgument) as refused:
        read_requests.embed(
            b'{"content":{"parts":[{"text":"a"}]},"outputDimensionality":100000000000000000001}', _same
        )
    assert refused.value.field == "outputDimensionality"


@pytest.fixture(params=[None, 100_000])
def stack(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever the interpreter allows itself."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(request.param or before)
    yield
    sys.setrecursionlimit(before)


def nested(levels: int, inner: str = "1", *, lists: bool = False) -> str:
    """Return a JSON object of so many levels."""
    begin, end = ("[", "]") if lists else ('{"a":', "}")
    return '{"a":' + begin * (levels - 1) + inner + end * (levels - 1) + "}"


DEEP = [jsontext.DEPTH + 1, 200, 300, 990, 1005]


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("inner", ["1", "18446744073709551616", '"[{"'])
@pytest.mark.parametrize("lists", [True, False])
def test_metadata_of_most_levels_is_taken_on_every_way(inner: str, *, lists: bool) -> None:
    """And comes back, from the line, from the column, from the client."""
    text = nested(jsontext.DEPTH, inner, lists=lists)
    value = json.loads(text)
    assert jsontext.is_object(text)
    assert jsontext.dumps(value) == text.encode()
    write_requests.refuse_unsayable(Request("a", metadata=value), "requests[0]")
    (row,) = _lines(text)
    assert (row.fault, row.metadata) == (None, text)
    message = f'{{"response":{{"embedding":{{"values":[1]}}}},"metadata":{text}}}'
    assert jsontext.loads(message)["metadata"] == value


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("levels", DEEP)
@pytest.mark.parametrize("inner", ["1", "18446744073709551616"])
@pytest.mark.parametrize("lists", [True, False])
def test_deeper_metadata_is_taken_on_none(levels: int, inner: str, *, lists: bool) -> None:
    """Its line fails alone, its row fails alone, and the client says so before anything is sent."""
    text = nested(levels, inner, lists=lists)
    value: Any = int(inner)
    for _ in range(levels - 1):
        value = [value] if lists else {"a": value}
    value = {"a": value}
    assert not jsontext.is_object(text)
    with pytest.raises(ValueError, match="nests too deeply"):
        jsontext.dumps(value)
    with pytest.raises(InvalidArgument, match=f"requests\\[0\\].metadata .* {jsontext.DEPTH} levels"):
        write_requests.refuse_unsayable(Request("a", metadata=value), "requests[0]")
    bad, good = _lines(text, "{}")
    assert bad.fault is not None
    assert (bad.text, good.text, good.metadata) == (None, "text", "{}")


def test_metadata_nested_too_deeply_is_named_and_keeps_its_key() -> None:
    """So that its sender finds it."""
    (row,) = _lines(nested(jsontext.DEPTH + 1))
    assert row.key == "k0"
    assert "metadata nests too deeply: at most 100 levels" in str(row.fault)


def test_a_value_that_holds_itself_is_no_json() -> None:
    """Found in a moment, however often it does."""
    value: list[Any] = []
    value += [value, value, 10**20]
    with pytest.raises(ValueError, match="nests too deeply"):
        jsontext.dumps({"a": value})


def _lines(*metadata: str) -> list[RequestRow]:
    content = "".join(
        f'{{"key":"k{at}","metadata":{one},"request":{{"content":{{"parts":[{{"text":"text"}}]}}}}}}\n'
        for at, one in enumerate(metadata)
    )
    return list(read_jsonl.read_rows(io.BytesIO(content.encode()), 1 << 20, _same))


def result() -> pa.RecordBatch:
    """Return one result, with metadata that stands on several lines."""
    return pa.RecordBatch.from_pydict(
        {
            "index": pa.array([0], pa.int64()),
            "key": ["k"],
            "metadata": [json.dumps(BIG, indent=1)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2, np.float32)), 2),
            "tokens": pa.array([1], pa.int32()),
            "truncated": [False],
            "error_code": pa.array([None], pa.int32()),
            "error_reason": pa.array([None], pa.string()),
            "error_message": pa.array([None], pa.string()),
        }
    )


def test_metadata_of_results_keeps_its_digits() -> None:
    """On the line of a file, which is one line; in an operation; in the Arrow stream."""
    (line,) = write_responses.lines(result())
    assert line.count(b"\n") == 1
    assert read_responses.parse_line(line).metadata == BIG
    (item,) = write_responses.items(result())
    body = b'{"metadata":{"output":{"inlinedResponses":{"inlinedResponses":[' + item + b"]}}}}"
    (found,) = read_responses.parse_items(body) or []
    assert found.metadata == BIG
    (part,) = read_results.read_parts(
        b"".join(write_results.results_stream(iter([result()]), 2, None, "float32"))
    )
    assert part.metadata == [BIG]


def test_a_row_of_the_columns_keeps_its_digits() -> None:
    """The text of the metadata passes as it is."""
    sink = io.BytesIO()
    writer = StreamWriter(sink)
    writer.write([Request("a", metadata=BIG)])
    writer.finish()
    (piece,) = read_batches(io.BytesIO(sink.getvalue()), 1 << 20)
    assert RequestRow(*next(zip(*piece.to_pydict().values(), strict=True))).text == "a"
    assert json.loads(piece.column("metadata")[0].as_py()) == BIG
