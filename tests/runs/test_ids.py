"""Ids of every Arrow type: in which type they are kept, what two have in common, and the words for them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import reduce
from itertools import combinations, permutations, product
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from id_arrays import BIGGEST, EVERY, PRIMITIVE, array

from embatch.runs import ids

TYPES = [values.type for values in EVERY.values()]
PLAIN = [name for name in EVERY if "(" not in name or name in PRIMITIVE or name.startswith("dictionary")]
KEPT = list(dict.fromkeys(ids.kept(kind) for kind in TYPES))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("int64", [-(2**63), 2**63 - 1, None, 0]),
        ("uint64", [0, 2**64 - 1, None]),
        ("bool", [True, False, None]),
        ("half", [65504.0, -65504.0, 1.5, 0.0, -0.0, "NaN", "Infinity", "-Infinity", None]),
        ("decimal128(38,2)", [f"{'9' * 36}.99", f"-{'9' * 36}.99", None, "0.00"]),
        ("decimal128(5,-2)", ["9999900", "-9999900", None, "0"]),
        ("string_view", ["", "007", "7", "a\0b", "ab", r"a\u0000b", None, "é" * 40]),
        ("binary", ["", "00ff", None, "00"]),
        ("uuid", ["00010203-0405-0607-0809-0a0b0c0d0e0f", None, "00000000-0000-0000-0000-000000000000"]),
        ("fixed_size_binary(16)", ["000102030405060708090a0b0c0d0e0f", None, "0" * 32]),
        ("date32", ["-5877641-06-23", "+5881580-07-11", None, "1970-01-01"]),
        ("time32(s)", ["00:00:00", "23:59:59", None]),
        ("time64(ns)", ["00:00:00", "23:59:59.999999999", None]),
        ("duration(ms)", ["-PT9223372036854775.808S", "PT9223372036854775.807S", None, "PT0S", "PT0.001S"]),
        (
            "timestamp(ns,Mars/Olympus)",
            [
                "1677-09-21T00:12:43.145224192Z",
                "2262-04-11T23:47:16.854775807Z",
                None,
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00.000000001Z",
            ],
        ),
        ("timestamp(s,None)", ["-292277022657-01-27T08:29:52", "+292277026596-12-04T15:30:07"]),
        ("interval", ["P1M2DT0.000000003S", None, "P-1M0DT4611686018.427387904S", "P1M2DT-0.000000003S"]),
        ("null", [None, None, None]),
        ("large_list", [[1, 2], [], None, [None]]),
        ("fixed_size_list", [[1, 2], None, [None, 3]]),
        ("struct(bool)", [{"a": True}, None, {"a": None}]),
        ("map(bool)", [[["k0", True]], [], [["k1", False], ["k2", None]]]),
        ("list(uuid)", [["00010203-0405-0607-0809-0a0b0c0d0e0f"], []]),
        ("dictionary(int64)", [2**60, -1, None]),
        ("run_end_encoded", ["x", "x", None]),
    ],
)
def test_the_words_for_ids(name: str, words: list[Any]) -> None:
    """In JSON; a float that is no number is not null, and an instant needs no table of zones."""
    found = ids.as_json(EVERY[name])[: len(words)]
    assert found == words
    assert [type(value) for value in found] == [type(value) for value in words]


def test_a_struct_may_have_one_name_twice() -> None:
    """Then it is a list of pairs: an object would lose one of them."""
    twice = pa.StructArray.from_arrays([array([1, 2]), array(["x", None])], ["a", "a"])
    assert ids.as_json(twice) == [[["a", 1], ["a", "x"]], [["a", 2], ["a", None]]]


@pytest.mark.parametrize("name", EVERY)
def test_different_ids_have_different_words(name: str) -> None:
    """Also null and NaN, zero and minus zero; sliced, they have the words of the whole."""
    values = EVERY[name]
    words = [orjson.dumps(word) for word in ids.as_json(values)]
    assert [orjson.dumps(word) for word in ids.as_json(values.slice(1))] == words[1:]
    if name in PRIMITIVE and name != "null":  # none of these stands there twice
        assert len(set(words)) == len(values)


@given(st.integers(date.min.toordinal(), date.max.toordinal()), st.integers(0, 86_399_999_999))
def test_moments_are_those_of_the_calendar(day: int, microseconds: int) -> None:
    """Whatever Python can say of a date or a moment it says alike."""
    when = datetime.combine(date.fromordinal(day), datetime.min.time()) + timedelta(microseconds=microseconds)
    (moment,) = ids.as_json(array([when], pa.timestamp("us")))
    assert datetime.fromisoformat(moment) == when
    assert ids.as_json(array([when.date()], pa.date32())) == [when.date().isoformat()]
    (instant,) = ids.as_json(array([when.replace(tzinfo=UTC)], pa.timestamp("us", "Mars/Olympus")))
    assert datetime.fromisoformat(instant) == when.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        (pa.int64(), pa.string(), pa.string()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int8(), pa.uint8(), pa.int16()),
        (pa.int64(), pa.uint32(), pa.int64()),
        (pa.int64(), pa.uint64(), pa.decimal128(20, 0)),
        (pa.int64(), pa.float64(), pa.string()),
        (pa.float32(), pa.float64(), pa.float64()),
        (pa.decimal128(10, 2), pa.decimal128(38, 2), pa.decimal128(38, 2)),
        (pa.decimal128(38, 2), pa.decimal256(40, 2), pa.decimal256(40, 2)),
        (pa.decimal128(10, 2), pa.decimal128(10, 3), pa.string()),
        (pa.int64(), pa.decimal128(10, 2), pa.string()),
        (pa.date32(), pa.timestamp("us"), pa.string()),
        (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.string()),
        (pa.timestamp("us", "Europe/Berlin"), pa.timestamp("us", "+01:00"), pa.timestamp("us", "UTC")),
        (pa.timestamp("us"), pa.timestamp("ns"), pa.string()),
        (pa.binary(16), pa.uuid(), pa.uuid()),
        (pa.binary(16), pa.binary(20), pa.binary()),
        (pa.uuid(), pa.string(), pa.string()),
        (pa.binary(), pa.string(), None),
        (pa.binary(4), pa.int64(), None),
        (pa.bool_(), pa.int8(), pa.string()),
        (pa.null(), pa.date32(), pa.date32()),
        (pa.list_(pa.int64()), pa.string(), pa.string()),
    ],
)
def test_what_two_types_have_in_common(one: Any, other: Any, common: Any) -> None:
    """A type in which both keep their digits, else text; bytes have no words that are not somebody else's."""
    assert ids.joined(one, other) == ids.joined(other, one) == common


@pytest.mark.parametrize("one", PLAIN)
def test_every_pair_of_types_keeps_every_id(one: str) -> None:
    """In the common type each id has the words that it had alone, but bytes that may become UUIDs."""
    for other in PLAIN:
        common = ids.joined(*(ids.kept(EVERY[name].type) for name in (one, other)))
        if common is None:
            continue
        values = EVERY[one]
        assert ids.holds(common, values.type)
        found = ids.as_kept(values, common)
        assert found.type == common
        alone, beside = ids.as_json(values), ids.as_json(found)
        if pa.types.is_decimal(common):
            alone = [None if word is None else str(word) for word in alone]
        elif common in (pa.string(), pa.large_string()):
            alone = ids.as_text(values).to_pylist()
        elif common in (pa.binary(), pa.large_binary(), pa.uuid()):
            alone, beside = ([(word or "-").replace("-", "") for word in words] for words in (alone, beside))
        assert alone == beside, other


@given(st.lists(st.sampled_from(KEPT), min_size=3, max_size=3, unique=True))
def test_the_order_of_files_does_not_matter(kinds: list[Any]) -> None:
    """Where every two types have something in common, all have the same, in whatever order they come."""
    if any(ids.joined(one, other) is None for one, other in combinations(kinds, 2)):
        return
    found = {reduce(ids.joined, order) for order in permutations(kinds)}
    assert len(found) == 1
    (common,) = found
    assert all(ids.holds(common, kind) for kind in kinds)


def test_a_union_is_no_id() -> None:
    """Nobody says what of it an id would be; it is refused, also within a list."""
    union: Any = pa.dense_union([pa.field("a", pa.int64())])
    for refused in (union, pa.list_(union), pa.struct([("u", union)]), pa.map_(pa.string(), union)):
        with pytest.raises(ids.Unkept):
            ids.kept(refused)
        assert not ids.holds(pa.string(), refused)


def test_no_text_loses_its_nul() -> None:
    """Where no NUL can be it is written out, and no two texts become one."""
    texts = ["".join(parts) for parts in product(["\0", "\\", "u0000", "x", ""], repeat=5)]
    written = [ids.without_nul(text) for text in texts]
    assert not any("\0" in text for text in written)
    assert len(set(written)) == len(set(texts))
    assert ids.without_nul("C:\\users\\u000") == "C:\\users\\u000"
    assert ids.without_nul("a\0") == r"a\u0000"


def test_what_is_not_utf8_is_found() -> None:
    """At any depth: no writer of Arrow checks it."""
    bad = pa.Array.from_buffers(pa.binary(), 3, array([b"a", b"\xff", b""]).buffers()).view(pa.string())
    assert ids.broken(bad) == [1]
    assert ids.broken(bad.slice(2)) == []
    listed = pa.ListArray.from_arrays(array([0, 2, 3], pa.int32()), bad)
    assert ids.broken(listed) == [0]
    assert ids.broken(pa.StructArray.from_arrays([bad], ["a"])) == [1]
    assert ids.broken(pa.MapArray.from_arrays(array([0, 1, 3], pa.int32()), array(["x"] * 3), bad)) == [1]


def test_the_longest_way_back() -> None:
    """The last moment that Arrow can hold is further away than any library of dates goes."""
    assert ids.as_json(array([BIGGEST], pa.int64()).view(pa.duration("ns"))) == ["PT9223372036.854775807S"]
