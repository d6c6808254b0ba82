"""Rows that only their user can mend: told by file and line, and no matter for another try."""

from __future__ import annotations

import bz2
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import serving

from embatch import Client, FailedPrecondition
from embatch.errors import Code, Reason, RequestError
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source
from embatch.runs.sources.whereabouts import whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embatch.runs.progress import Summary

EMPTY = "the text is empty: leave it out or fill it"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service whose engine can be made to fail on a text."""
    data = tmp_path_factory.mktemp("mending") / "data"
    with serving(data, "--engine-option", "poison=1") as service, Client(service.url) as client:
        yield client


def run(client: Client, source: Path, *, retry_failed: bool = False, block_rows: int = 3) -> Summary:
    """Embed a file or folder into `out.jsonl` beside it."""
    out = source.parent / "out.jsonl"
    options = RunOptions(source.parent / "data", retry_failed=retry_failed, block_rows=block_rows)
    return embed_dataset(
        client, open_source(source, "text", None), str(out), EmbedOptions(), options, lambda _: None
    )


def jsonl(path: Path) -> Path:
    """Texts of which the second and the last are empty, after a blank line."""
    path.write_text('{"text":"a"}\n\n{"text":""}\n{"text":"b"}\n{"text":"c"}\n{"text":" \\n"}\n', "utf-8")
    return path


def test_empty_texts_are_for_the_user(client: Client, tmp_path: Path) -> None:
    """They are named, the ledger goes, and there is nothing to try again; mended, the same command works."""
    source, ledger = jsonl(tmp_path / "in.jsonl"), tmp_path / "out.jsonl.embatch"
    summary = run(client, source)
    assert (summary.rows, summary.failed, summary.retryable) == (5, 2, 0)
    assert summary.to_mend == [f"in.jsonl, line 3: {EMPTY}", f"in.jsonl, line 6: {EMPTY}"]
    assert not ledger.exists()
    with pytest.raises(FailedPrecondition, match="no failed row"):
        run(client, source, retry_failed=True)
    assert not ledger.exists()
    source.write_text('{"text":"a"}\n{"text":"mended"}\n', "utf-8")
    assert run(client, source).failed == 0


def test_what_may_succeed_is_told_apart(client: Client, tmp_path: Path) -> None:
    """Only that is tried again, as often as is asked for, and the others stay named."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text":"a"}\n{"text":"embatch-poison:nan"}\n{"text":""}\n{"text":"b"}\n', "utf-8")
    for retry_failed in (False, True, True):
        summary = run(client, source, retry_failed=retry_failed)
        assert (summary.failed, summary.retryable) == (2, 1)
        assert summary.to_mend == [f"in.jsonl, line 3: {EMPTY}"]
    assert (tmp_path / "out.jsonl.embatch").exists()


def test_the_first_of_many_are_named(client: Client, tmp_path: Path) -> None:
    """The count says how many there are."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"text":"a"}\n' + '{"text":""}\n' * 20, "utf-8")
    summary = run(client, source)
    assert summary.failed == 20
    assert summary.to_mend == [f"in.jsonl, line {line}: {EMPTY}" for line in range(2, 7)]


def csv(path: Path) -> Path:
    """The same in CSV, where a record has lines of its own."""
    path.write_text('id,text\n1,a\n2,"b\nb"\n3,\n4,"c\n\nc"\n5," "\n', "utf-8")
    return path


def table(path: Path) -> Path:
    """The same in Parquet."""
    pq.write_table(pa.table({"text": ["a", "", "b", None]}), path)
    return path


def stream(path: Path) -> Path:
    """The same as an Arrow stream, which does not say how many rows it has."""
    rows = pa.table({"text": ["a", "", "b", None]})
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
        writer.write_table(rows)
    return path


def compressed(path: Path) -> Path:
    """The same as compressed lines."""
    path.write_bytes(bz2.compress(b'{"text":"a"}\n{"text":""}\n'))
    return path


@pytest.mark.parametrize(
    ("made", "name", "places"),
    [
        (csv, "in.csv", ["in.csv, line 5", "in.csv, line 9"]),
        (table, "in.parquet", ["in.parquet, row 1", "in.parquet, row 3"]),
        (stream, "in.arrows", ["in.arrows, row 1", "in.arrows, row 3"]),
        (compressed, "in.jsonl.bz2", ["in.jsonl.bz2, line 2"]),
    ],
)
def test_places_in_every_format(
    client: Client, tmp_path: Path, made: Callable[[Path], Path], name: str, places: list[str]
) -> None:
    """By the first line of a record, or the row of a table."""
    summary = run(client, made(tmp_path / name))
    assert [said.partition(":")[0] for said in summary.to_mend] == places


def test_a_folder_names_its_files(client: Client, tmp_path: Path) -> None:
    """A name may be there twice: the path tells."""
    for folder in "ab":
        (tmp_path / "in" / folder).mkdir(parents=True)
        jsonl(tmp_path / "in" / folder / "part.jsonl")
    summary = run(client, tmp_path / "in", block_rows=4)
    assert [said.partition(":")[0] for said in summary.to_mend] == [
        f"{folder}/part.jsonl, line {line}" for folder in "ab" for line in (3, 6)
    ]


def test_plain_text_says_its_lines(tmp_path: Path) -> None:
    """Every line is a row."""
    source = tmp_path / "in.txt"
    source.write_text("a\n\nb\n", "utf-8")
    assert whereabouts(open_source(source, None, None), [1, 2]) == {1: "in.txt, line 2", 2: "in.txt, line 3"}
    (tmp_path / "other.txt").write_text("c\n\n", "utf-8")
    assert whereabouts(open_source(tmp_path, None, None), [4]) == {4: "other.txt, line 2"}


def test_each_reason_says_whether_another_try_can_help() -> None:
    """What is at fault in the content stays so; of a foreign service that gives no reason the code tells."""
    may_help = {reason for reason in Reason if RequestError(Code.INTERNAL, reason, "").retryable}
    assert {reason.name for reason in may_help} == {
        "MODEL_CHANGED",
        "ENGINE_CRASH",
        "ENGINE_HANG",
        "ENGINE_BAD_OUTPUT",
        "CANCELLED",
        "EXPIRED",
        "DATA_LOSS",
    }
    assert not RequestError(Code.INVALID_ARGUMENT, None, "").retryable
    assert RequestError(Code.RESOURCE_EXHAUSTED, None, "").retryable
    assert RequestError(Code.INTERNAL, None, "").retryable
