"""Whose a result is: by key or by the instance that comes back; and the table of regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest

from embatch import Code, DataLoss, InvalidArgument
from embatch.client.providers import vertex_regions, vertex_staging
from embatch.client.providers.vertex_results import keyed
from embatch.wire.vertex.read_requests import KeptRequest
from embatch.wire.vertex.read_responses import parse_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from embatch.wire.google.rows import ResponseRow
    from embatch.wire.vertex.read_responses import ResultLine


def kept(*instances: Mapping[str, object]) -> list[KeptRequest]:
    """Return requests as they were staged, keyed by their positions."""
    return [KeptRequest(f"r-{at}", one) for at, one in enumerate(instances)]


def result(number: float, instance: Mapping[str, object] | None) -> ResultLine:
    """Return the line of a vector that tells its number."""
    said = {"predictions": [{"embeddings": {"values": [number]}}], "status": ""}
    return parse_line(orjson.dumps(said if instance is None else {"instance": instance, **said}))


def told(rows: list[ResponseRow]) -> list[tuple[str | None, float]]:
    """Return keys and numbers."""
    return [(row.key, float(row.values[0]) if row.values is not None else np.nan) for row in rows]


def test_rows_go_to_whoever_asked_them() -> None:
    """In any order, whatever else the instance says, and in whichever spelling."""
    a, b = {"content": "a", "task_type": "CLUSTERING"}, {"content": "b"}
    lines = [result(2, {"content": "b", "key": "x"}), result(1, {"content": "a", "taskType": "CLUSTERING"})]
    assert told(keyed(lines, kept(a, b), 2)) == [("r-1", 2), ("r-0", 1)]


def test_equal_texts_take_their_rows_in_turn_and_by_their_options() -> None:
    """Alike in all, they are alike in their vectors; with other options they are told apart by these."""
    short, long = {"content": "a", "outputDimensionality": 1}, {"content": "a", "outputDimensionality": 2}
    lines = [result(2, {"content": "a", "output_dimensionality": 2}), result(1, short), result(1, short)]
    assert told(keyed(lines, kept(short, long, short), 3)) == [("r-1", 2), ("r-0", 1), ("r-2", 1)]
    with pytest.raises(DataLoss, match="no request of the batch asked for"):
        keyed([result(1, {"content": "a"})], kept(short, long), 2)


def test_a_row_too_many_is_held_against_all_that_asked_it() -> None:
    """Alike it is a repeat; otherwise nobody knows whose is whose, and all of them get a second one."""
    a, b = {"content": "a"}, {"content": "b"}
    rows = keyed([result(1, a), result(1, a), result(9, a), result(2, b)], kept(a, b, a), 3)
    assert told(rows) == [("r-0", 1), ("r-2", 1), ("r-0", 9), ("r-2", 9), ("r-1", 2)]


def test_a_row_that_nobody_asked_for_is_no_ones() -> None:
    """A text that was changed on its way would have the vector of another."""
    with pytest.raises(DataLoss, match="no request of the batch asked for"):
        keyed([result(1, {"content": "c"})], kept({"content": "a"}), 1)


def test_errors_of_nobody_fill_no_more_places_than_are_free() -> None:
    """Some files count the errors that others list; which of them says what changes nothing but a message."""
    good = parse_line(b'{"key": "r-0", "response": {"embedding": {"values": [1]}}}')
    stray = parse_line(b'{"error": {"code": 3, "message": "odd"}}')
    assert [row.key for row in keyed([stray, good, stray], None, 1)] == ["r-0"]
    rows = keyed([stray, good, stray], None, 2)
    assert [row.key for row in rows] == ["r-0", None]
    assert rows[1].error is not None
    assert rows[1].error.code is Code.INVALID_ARGUMENT
    assert len(keyed([stray, good, stray], None, 0)) == 3


def test_a_pair_that_is_not_known_is_a_note() -> None:
    """Known ones say nothing; the table has a date."""
    table = vertex_regions.DEFAULT
    assert table.note("gemini-embedding-001", "us-central1") is None
    assert table.note("gemini-embedding-2", "global") is None
    assert table.note("text-embedding-005", "asia-south1") is None
    for model, location in (
        ("gemini-embedding-001", "global"),
        ("text-embedding-005", "global"),
        ("new", "us"),
    ):
        note = table.note(model, location)
        assert note is not None
        assert table.date in note
        assert model in note


def test_the_table_can_be_replaced(tmp_path: Path) -> None:
    """Model by model, by a file that a variable names; what it does not name stays."""
    file = tmp_path / "regions.json"
    file.write_text('{"date": "2027-01", "new": ["us", "asia-*"], "gemini-embedding-001": ["mars"]}')
    table = vertex_regions.load(str(file))
    assert table.note("new", "asia-south1") is None
    assert table.note("gemini-embedding-001", "mars") is None
    assert "2027-01" in (table.note("gemini-embedding-001", "us-central1") or "")
    assert table.note("gemini-embedding-2", "eu") is None
    assert vertex_regions.load(None) is vertex_regions.DEFAULT


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"date": 7}', '{"date": "x", "m": "us"}', '{"date": "x", "m": [1]}']
)
def test_a_table_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    """With the variable's name, before anything is sent."""
    file = tmp_path / "regions.json"
    file.write_text(content)
    with pytest.raises(InvalidArgument, match="EMBATCH_REGIONS") as refused:
        vertex_regions.load(str(file))
    assert refused.value.field == "EMBATCH_REGIONS"
    with pytest.raises(InvalidArgument, match="cannot be read"):
        vertex_regions.load(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("given", "bucket", "prefix"),
    [("gs://my-bucket", "my-bucket", ""), ("gs://b.c/", "b.c", ""), ("gs://abc/a/b/", "abc", "a/b/")],
)
def test_a_staging_place_is_a_bucket_or_a_folder_in_one(given: str, bucket: str, prefix: str) -> None:
    """A slash at its end makes no difference."""
    assert vertex_staging.place(given) == vertex_staging.Place(bucket, prefix)


@pytest.mark.parametrize(
    "given", ["bucket", "s3://bucket", "gs://", "gs:///a", "gs://B", "gs://abc/a\nb", "gs://abc/*"]
)
def test_what_is_no_place_is_refused(given: str) -> None:
    """Naming the argument."""
    with pytest.raises(InvalidArgument, match="gs://bucket") as refused:
        vertex_staging.place(given)
    assert refused.value.field == "staging"


def test_only_folders_of_ours_are_known_by_their_files() -> None:
    """What a user, or another client, keeps elsewhere is never deleted."""
    mark = "a2" * 16
    for folder in (f"embatch-{mark}/", f"x/embatch-one-{mark}/"):
        assert vertex_staging.folder_of(f"gs://b/{folder}requests-12.jsonl") == ("b", folder)
        assert vertex_staging.rows_of(f"gs://b/{folder}requests-12.jsonl") == 12
    for other in (
        "gs://b/in.jsonl",
        f"gs://b/embatch-{mark}/in.jsonl",
        "gs://b/embatch-x/requests-1.jsonl",
        None,
    ):
        assert vertex_staging.folder_of(other) is None
    assert vertex_staging.rows_of("gs://b/in.jsonl") == vertex_staging.rows_of(None) == 0
