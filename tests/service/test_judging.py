"""Requests are judged one by one: a fault fails its request alone, and everything can be stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_rig import DIMENSIONS, MODEL, tree

from embatch.batch import TaskType
from embatch.errors import Code, EmbatchError, InvalidArgument, Reason, RequestError
from embatch.service.cutting import ShardCutter
from embatch.service.intake import METADATA_BYTES, Draft, RequestValidator, ShardWriter, refuse
from embatch.settings import Settings
from embatch.shard import RequestRow
from embatch.store.blobs import FolderBlobs

if TYPE_CHECKING:
    from pathlib import Path

pytest_plugins = ("rig_fixture",)

SETTINGS = Settings(text_bytes=1000)
LONE = "\ud83d"
FAULTS = [
    (RequestRow(None), Reason.NOT_TEXT),
    (RequestRow(""), Reason.EMPTY_TEXT),
    (RequestRow(" \n\t\u2003"), Reason.EMPTY_TEXT),
    (RequestRow("x" * 1001), Reason.TEXT_TOO_LARGE),
    (RequestRow("ä" * 501), Reason.TEXT_TOO_LARGE),
    (RequestRow("x" * 600, title="x" * 600, task_type=TaskType.RETRIEVAL_DOCUMENT), Reason.TEXT_TOO_LARGE),
    (RequestRow(f"a{LONE}b"), Reason.BAD_UNICODE),
    (RequestRow("a", key=LONE), Reason.BAD_UNICODE),
    (RequestRow("a", metadata=f'{{"a":"{LONE}"}}'), Reason.BAD_UNICODE),
    (RequestRow("a", task_type=LONE), Reason.BAD_UNICODE),
    (RequestRow("a", title=LONE, task_type=TaskType.RETRIEVAL_DOCUMENT), Reason.BAD_UNICODE),
    (RequestRow("a", key="k" * 513), Reason.BAD_FIELD),
    (RequestRow("a", key="ä" * 257), Reason.BAD_FIELD),
    (RequestRow("a", key="a\0b"), Reason.BAD_FIELD),
    (RequestRow("a", metadata='{"a":"' + "x" * METADATA_BYTES + '"}'), Reason.BAD_FIELD),
    (RequestRow("a", task_type="DANCE"), Reason.BAD_FIELD),
    (RequestRow("a", title="b"), Reason.BAD_FIELD),
    (RequestRow("a", title="b", task_type=TaskType.CLUSTERING), Reason.BAD_FIELD),
    (RequestRow("a", dimensions=0), Reason.BAD_FIELD),
    (RequestRow("a", dimensions=-1), Reason.BAD_FIELD),
    (RequestRow("a", dimensions=DIMENSIONS + 1), Reason.BAD_FIELD),
    (RequestRow("a", dimensions=1 << 40), Reason.BAD_FIELD),
]
GOOD = [
    RequestRow("a"),
    RequestRow("a\0b"),
    RequestRow("x" * 1000),
    RequestRow("ä" * 500),
    RequestRow("a", key="k" * 512),
    RequestRow("a", key="ä" * 256, metadata='{"a":1}', dimensions=1),
    RequestRow("a", dimensions=DIMENSIONS),
    RequestRow("a", title="b", task_type=TaskType.RETRIEVAL_DOCUMENT),
    *(RequestRow("a", task_type=word) for word in TaskType),
]


@pytest.mark.parametrize(("row", "reason"), FAULTS)
def test_a_fault_of_content_fails_the_request_and_says_why(row: RequestRow, reason: Reason) -> None:
    """Each kind has its reason, the text is not kept, and the message does not repeat it."""
    judged = RequestValidator(MODEL, SETTINGS).judge(row)
    assert judged.text is None
    assert judged.fault is not None
    assert (judged.fault.code, judged.fault.reason) == (Code.INVALID_ARGUMENT, reason)
    assert len(judged.fault.message) < 200


@pytest.mark.parametrize("row", GOOD)
def test_a_good_request_is_left_as_it_is(row: RequestRow) -> None:
    """At every limit, and with every option."""
    assert RequestValidator(MODEL, SETTINGS).judge(row) == row


def test_the_first_request_with_a_key_has_it() -> None:
    """Later ones are faulty, whatever the first one is; requests without a key are many."""
    fault = RequestError(Code.INVALID_ARGUMENT, Reason.BAD_LINE, "line 1 is not JSON")
    judge = RequestValidator(MODEL, SETTINGS)
    given = [
        RequestRow("1", key="a"),
        RequestRow("2", key="a"),
        RequestRow(None, key="b", fault=fault),
        RequestRow("3", key="b"),
        RequestRow("", key="c"),
        RequestRow("4", key="c"),
        RequestRow("5"),
        RequestRow("6"),
    ]
    found = [row.fault and row.fault.reason for row in map(judge.judge, given)]
    twice = Reason.DUPLICATE_KEY
    assert found == [None, twice, Reason.BAD_LINE, twice, Reason.EMPTY_TEXT, twice, None, None]


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(["", " ", "a", LONE])
ROWS = st.builds(
    RequestRow,
    st.none() | TEXTS,
    key=st.none() | TEXTS,
    metadata=st.none() | TEXTS,
    task_type=st.none() | TEXTS | st.sampled_from(list(TaskType)),
    title=st.none() | TEXTS,
    dimensions=st.none() | st.integers(-(1 << 40), 1 << 40) | st.integers(1, DIMENSIONS),
    fault=st.none() | st.just(RequestError(Code.INVALID_ARGUMENT, Reason.BAD_LINE, "bad line")),
)


@given(st.lists(ROWS, max_size=20))
def test_whatever_comes_in_can_be_stored(rows: list[RequestRow]) -> None:
    """Every row stays in its place, has either a text or a fault, and no two good ones share a key."""
    judge, cutter = RequestValidator(MODEL, SETTINGS), ShardCutter(1 << 30, 1 << 30)
    judged = [judge.judge(row) for row in rows]
    for row in judged:
        assert cutter.add(row) is None
    shard = cutter.rest()
    stored = [] if shard is None else shard.to_pylist()
    assert [row["index"] for row in stored] == list(range(len(rows)))
    for given_row, row, kept in zip(rows, judged, stored, strict=True):
        assert (row.text is None) == (row.fault is not None) == (kept["error_code"] is not None)
        assert kept["text"] in (None, given_row.text)
        assert kept["key"] in (None, given_row.key)
        if row.fault is None:
            assert row == given_row
    keys = [row.key for row in judged if row.fault is None and row.key is not None]
    assert len(keys) == len(set(keys))


@given(st.lists(ROWS, max_size=12))
def test_judging_depends_on_the_rows_alone(rows: list[RequestRow]) -> None:
    """A file planned anew gives the same requests, faults included."""

    def judged() -> list[RequestRow]:
        judge = RequestValidator(MODEL, SETTINGS)
        return [judge.judge(row) for row in rows]

    assert judged() == judged()


def written(folder: Path, rows: list[RequestRow]) -> tuple[list[int], tuple[str, ...]]:
    """Write the shards of some requests; return what each asks for, and the notes."""
    cutter = ShardCutter(limit_requests=2)
    writer = ShardWriter(FolderBlobs(folder), "b", RequestValidator(MODEL, SETTINGS), cutter=cutter)
    return [shard.dimensions for shard in writer.shards(rows)], writer.notes()


def test_a_shard_knows_what_its_good_requests_ask_for(tmp_path: Path) -> None:
    """The native number is 0, differing ones -1; faulty requests have no say."""
    wishes = [None, None, 4, 4, 4, 2, None, 4]
    asked, _ = written(tmp_path, [RequestRow("a", dimensions=wish) for wish in wishes])
    assert asked == [0, 4, -1, -1]
    bad = RequestRow("")
    asked, _ = written(
        tmp_path, [RequestRow("a", dimensions=4), bad, bad, bad, RequestRow("a", dimensions=4)]
    )
    assert asked == [4, 4, 4]


def test_shards_are_the_same_files_whenever_they_are_written(tmp_path: Path) -> None:
    """The same requests give the same bytes."""
    rows = [RequestRow(f"text {at}", key=f"k{at % 7}", metadata='{"a":1}') for at in range(20)]
    for name in ("one", "two"):
        written(tmp_path / name, rows)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "one")) == 10


def test_notes_say_what_a_user_should_know(tmp_path: Path) -> None:
    """A task type without a prompt and fewer dimensions have a note each; nothing else has."""
    prompted = replace(MODEL, prompts={"CLUSTERING": "cluster: "})
    writer = ShardWriter(FolderBlobs(tmp_path), "b", RequestValidator(prompted, SETTINGS))
    rows = [
        RequestRow("a", task_type="CLUSTERING"),
        RequestRow("b", task_type="CLASSIFICATION", dimensions=4),
        RequestRow("", task_type="QUESTION_ANSWERING"),
    ]
    assert len(list(writer.shards(rows))) == 1
    first, second = writer.notes()
    assert "CLASSIFICATION" in first
    assert "dimensions" in second
    assert written(tmp_path, [RequestRow("a"), RequestRow("a", dimensions=DIMENSIONS)])[1] == ()


def test_a_note_says_that_the_default_prompt_stands_before_texts(tmp_path: Path) -> None:
    """They are not embedded as they are then."""
    prompted = replace(MODEL, prompts={"CLUSTERING": "cluster: ", "": "text: "})
    writer = ShardWriter(FolderBlobs(tmp_path), "b", RequestValidator(prompted, SETTINGS))
    writer.judge.judge(RequestRow("a", task_type="CLASSIFICATION"))
    assert writer.notes() == ("test has no prompt for CLASSIFICATION: its texts get its default prompt",)


@pytest.mark.parametrize(
    ("draft", "field"),
    [
        (Draft(display_name="x" * 513), "display_name"),
        (Draft(display_name="a\0b"), "display_name"),
        (Draft(display_name=LONE), "display_name"),
        (Draft(priority=1 << 63), "priority"),
        (Draft(priority=-(1 << 63) - 1), "priority"),
        (Draft(idempotency_key=""), "idempotency_key"),
        (Draft(idempotency_key="ä" * 257), "idempotency_key"),
        (Draft(idempotency_key="a\nb"), "idempotency_key"),
    ],
)
def test_a_draft_that_is_wrong_by_its_form_is_refused(draft: Draft, field: str) -> None:
    """The refusal names the field."""
    with pytest.raises(InvalidArgument) as caught:
        draft.check()
    assert caught.value.field == field


@pytest.mark.parametrize(
    "draft",
    [
        Draft(),
        Draft(display_name="ä" * 512, priority=(1 << 63) - 1, idempotency_key="ä" * 256),
        Draft(display_name="", priority=-(1 << 63), idempotency_key="a"),
    ],
)
def test_a_draft_at_its_limits_is_accepted(draft: Draft) -> None:
    """The limits themselves are allowed."""
    draft.check()


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (RequestRow("a", task_type="DANCE"), "task_type"),
        (RequestRow("a", dimensions=0), "output_dimensionality"),
        (RequestRow("a", dimensions=DIMENSIONS + 1), "output_dimensionality"),
    ],
)
def test_an_inline_request_with_a_wrong_option_is_refused(row: RequestRow, field: str) -> None:
    """Whole and at once, naming its place, and for dimensions the maximum."""
    with pytest.raises(InvalidArgument) as caught:
        refuse(row, 7, MODEL)
    assert caught.value.field == f"requests[7].{field}"
    if field == "output_dimensionality":
        assert str(DIMENSIONS) in caught.value.message


@given(ROWS)
def test_a_refusal_is_always_one_of_ours(row: RequestRow) -> None:
    """Whatever the row, it is refused by an InvalidArgument or not at all."""
    try:
        refuse(row, 0, MODEL)
    except EmbatchError as error:
        assert isinstance(error, InvalidArgument)  # noqa: PT017  (any other exception fails the test)
