"""Runs that meet trouble: a full disk, a damaged ledger, a refusal; what was embedded is kept."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from serving import serving

from embatch import Client, DataLoss, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from embatch.dtypes import Dtype
from embatch.runs import locations
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.progress import RunProgress
from embatch.runs.run import embed_dataset
from embatch.runs.sinks import check_sink
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embatch.runs.progress import Summary

BLOCK = 25
ROW_BYTES = 4 * 64
"""Of a vector of the hashing engine."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service."""
    data = tmp_path_factory.mktemp("trouble") / "data"
    with serving(data, "--engine-option", "poison=1") as service, Client(service.url) as client:
        yield client


def write(path: Path, texts: Sequence[object]) -> Path:
    """Write JSONL with ids."""
    lines = [orjson.dumps({"text": text, "id": f"k{at}"}) + b"\n" for at, text in enumerate(texts)]
    path.write_bytes(b"".join(lines))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three blocks, one of them with a text to be tried again: the ledger stays when the run is done."""
    texts = [f"{tmp_path.name} with the number {number}" for number in range(60)]
    return write(tmp_path / "in.jsonl", [*texts[:30], "embatch-poison:nan", *texts[31:]])


def run(client: Client, source: Path, out: Path, **more: object) -> Summary:
    """Embed a file; `id_`, `model` and `seen` are what they say, the rest is conduct."""
    id_: str | None = more.pop("id_", "id")  # type: ignore[assignment]
    model: str | None = more.pop("model", None)  # type: ignore[assignment]
    seen: Callable[[RunProgress], object] = more.pop("seen", lambda _: None)  # type: ignore[assignment]
    options = RunOptions(out.parent / "data", **{"block_rows": BLOCK, **more})  # type: ignore[arg-type]

    def show(standing: RunProgress) -> None:
        seen(standing)

    return embed_dataset(client, open_source(source, None, id_), str(out), EmbedOptions(model), options, show)


# the disk


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Let this process write no file of more bytes: a quota, which is as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.parquet", "out.arrow", "out.jsonl", "out.npy"])
def test_a_full_disk_loses_no_work(client: Client, source: Path, tmp_path: Path, name: str) -> None:
    """It says what is kept and what to do; with room again nothing is embedded a second time."""
    out, partial = tmp_path / name, tmp_path / f"{name}.partial"
    vectors = BLOCK * ROW_BYTES
    with (
        pytest.raises(
            Unavailable, match=r"File too large.*kept in .*\.embatch.*same command goes on"
        ) as error,
        no_file_beyond(vectors * 7 // 4),  # a block of the ledger has room, all of them together have not
    ):
        run(client, source, out)
    assert name in error.value.message
    assert not out.exists()
    assert not partial.exists()
    summary = run(client, source, out)
    assert (summary.rows, summary.resumed, summary.earlier) == (60, 60, 60)
    assert out.exists()


def test_a_ledger_that_cannot_be_written_is_an_error_with_its_place(
    client: Client, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at its first line."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("embatch.runs.ledger.sync", full)
        with pytest.raises(Unavailable, match=r"out\.parquet is not finished.*No space left"):
            run(client, source, tmp_path / "out.parquet")
    assert run(client, source, tmp_path / "out.parquet").rows == 60


def test_what_is_in_the_way_is_found_before_anything_is_embedded(
    client: Client, source: Path, tmp_path: Path
) -> None:
    """A folder where the output shall be, also beside it; a file where its ledger shall be."""
    for name in ("a.parquet", "b.rejected.jsonl", "c.ids.parquet", "d.parquet.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "e.lance").write_bytes(b"")
    for name in ("a.parquet", "b.jsonl", "c.npy", "d.parquet", "e.lance"):
        with pytest.raises(InvalidArgument, match="give the output another name") as error:
            run(client, source, tmp_path / name)
        assert error.value.field == "--out"
        assert not (tmp_path / f"{name}.embatch").exists()
    (tmp_path / "f.parquet.embatch").write_bytes(b"mine")
    with pytest.raises(InvalidArgument, match=r"f\.parquet\.embatch is a file.*move it"):
        run(client, source, tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet.embatch").read_bytes() == b"mine"


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library asks for the bucket's region before anything is opened."""

    def lost(_: str) -> None:
        raise OSError("When resolving region for bucket 'bucket': could not connect")

    monkeypatch.setattr(locations, "from_uri", lost)
    with pytest.raises(Unavailable, match=r"s3://bucket/in\.jsonl cannot be reached: When") as error:
        open_source("s3://bucket/in.jsonl", None, None)
    assert error.value.field == "IN"
    with pytest.raises(Unavailable, match=r"s3://bucket/out\.parquet cannot be reached") as error:
        check_sink("s3://bucket/out.parquet", (), Dtype.FLOAT32)
    assert error.value.field == "--out"


def test_names_that_are_not_utf_8_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an output, of a folder above it, and of columns; other columns may be called as they like."""
    for place in ("out\udcff.parquet", f"{tmp_path}/\udcff/out.parquet"):
        with pytest.raises(InvalidArgument, match="is not UTF-8: give it another one") as error:
            check_sink(place, (), Dtype.FLOAT32)
        assert error.value.field == "--out"
    monkeypatch.chdir(tmp_path)
    Path("latin.csv").write_bytes("t\xe4xt,k\xe4y,text\na,b,c\n".encode("latin-1"))
    for text, id_, field in (("t\udce4xt", None, "--text"), ("text", "k\udce4y", "--id")):
        with pytest.raises(InvalidArgument, match=r"header of .* is not UTF-8") as error:
            open_source("latin.csv", text, id_)
        assert error.value.field == field
    (rows,) = open_source("latin.csv", None, None).blocks()
    assert rows.texts == ["c"]


# the ledger


@pytest.mark.parametrize("harm", ["gone", "cut", "flip"])
@pytest.mark.parametrize("done", [True, False])
def test_what_is_damaged_is_embedded_again_and_nothing_else(
    client: Client, source: Path, tmp_path: Path, harm: str, *, done: bool
) -> None:
    """The output is what it was, and one line says that rows were worked twice."""
    out, folder = tmp_path / "out.parquet", tmp_path / "out.parquet.embatch"
    run(client, source, out, cache=False)
    content = out.read_bytes()
    log, part = folder / "ledger.jsonl", folder / "part-000001-0.arrow"
    if not done:  # as if it had been stopped before the output was written
        log.write_bytes(log.read_bytes().rpartition(b'{"verdict"')[0])
        out.unlink()
    stored = bytearray(part.read_bytes())
    stored[len(stored) // 2] ^= 1
    if harm == "gone":
        part.unlink()
    else:
        part.write_bytes(stored if harm == "flip" else stored[:100])
    names: set[str] = set()
    summary = run(client, source, out, cache=False, seen=lambda standing: names.add(standing.batch.name))
    assert (summary.rows, summary.failed, summary.resumed, summary.earlier) == (60, 1, 35, 35)
    assert summary.notes == ["25 rows were done before and worked again: the ledger was damaged"]
    assert len(names) == 1
    assert out.read_bytes() == content
    assert sorted(path.name for path in folder.glob("part-*")) == [
        "part-000000-0.arrow",
        "part-000001-1.arrow",
        "part-000002-0.arrow",
    ]
    assert run(client, source, out, cache=False).notes == []


@pytest.mark.parametrize("harm", ["gone", "flip"])
def test_a_retry_of_what_is_damaged_says_what_to_do(
    client: Client, source: Path, tmp_path: Path, harm: str
) -> None:
    """The failed rows are not known any more: the run has to be finished first."""
    out, part = tmp_path / "out.parquet", tmp_path / "out.parquet.embatch" / "part-000001-0.arrow"
    run(client, source, out)
    stored = bytearray(part.read_bytes())
    stored[len(stored) // 2] ^= 1
    if harm == "gone":
        part.unlink()
    else:
        part.write_bytes(stored)
    with pytest.raises((FailedPrecondition, DataLoss), match="same command without --retry-failed"):
        run(client, source, out, retry_failed=True)
    assert run(client, source, out).retryable == 1
    assert run(client, source, out, retry_failed=True).retryable == 1


def test_a_refused_first_submit_leaves_nothing(client: Client, source: Path, tmp_path: Path) -> None:
    """The right command after it is not in the way of anything."""
    out = tmp_path / "out.parquet"
    with pytest.raises(NotFound, match="not served here"):
        run(client, source, out, model="typo")
    assert not (tmp_path / "out.parquet.embatch").exists()
    assert run(client, source, out).rows == 60
    with pytest.raises(InvalidArgument, match=r"another model.*--restart"):  # it has something to lose
        run(client, source, out, model="typo")
    assert (tmp_path / "out.parquet.embatch").exists()


def test_a_run_of_other_columns_is_told_which(client: Client, source: Path, tmp_path: Path) -> None:
    """The columns by their names, the files as the input."""
    out = tmp_path / "out.parquet"
    run(client, source, out)
    with pytest.raises(InvalidArgument, match=r"another id column \(id then, none now\): "):
        run(client, source, out, id_=None)
    write(source, ["other"])
    with pytest.raises(InvalidArgument, match=r"another input \(.*in\.jsonl has changed since\): "):
        run(client, source, out)
    with pytest.raises(
        InvalidArgument, match=r"another input \(.*since\) and id column \(id then, none now\): "
    ):
        run(client, source, out, id_=None)


def test_beginning_anew_and_retrying_exclude_each_other(client: Client, source: Path, tmp_path: Path) -> None:
    """Nothing is forgotten."""
    run(client, source, tmp_path / "out.parquet")
    with pytest.raises(InvalidArgument, match=r"--restart forgets") as error:
        run(client, source, tmp_path / "out.parquet", restart=True, retry_failed=True)
    assert error.value.field == "--retry-failed"
    assert run(client, source, tmp_path / "out.parquet", retry_failed=True).rows == 60


# the texts


def test_a_text_that_is_too_large_is_not_offered_again(client: Client, tmp_path: Path) -> None:
    """The same words would be refused again: nothing is left to do, and the ledger goes."""
    source = write(tmp_path / "in.jsonl", ["one", "x" * ((1 << 20) + 1), "two"])
    summary = run(client, source, tmp_path / "out.parquet")
    assert (summary.rows, summary.failed, summary.retryable) == (3, 1, 0)
    assert "split it" in pq.read_table(tmp_path / "out.parquet").column("error")[1].as_py()
    assert not (tmp_path / "out.parquet.embatch").exists()


def test_an_input_without_any_text_says_why(client: Client, tmp_path: Path) -> None:
    """Such as a column of numbers that was named as the text."""
    source = write(tmp_path / "in.jsonl", [1, 2, 3])
    with pytest.raises(InvalidArgument, match="no row that can be embedded: line 1: 'text' is not text"):
        run(client, source, tmp_path / "out.parquet")
    source = write(tmp_path / "in.jsonl", ["", " "])
    with pytest.raises(InvalidArgument, match="no row that can be embedded: the text is empty"):
        run(client, source, tmp_path / "out.parquet")


def test_what_was_done_before_is_told_apart(
    client: Client, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates are of one call: what was committed and what the service had finished stand by themselves."""
    out, seen = tmp_path / "out.parquet", list[RunProgress]()

    def stop(standing: RunProgress) -> None:
        if standing.rows > BLOCK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(client, source, out, seen=stop, cache=False)
    for batch in list(client.list_batches()):  # all that was handed over is worked meanwhile
        client.await_batch_completion(batch.name, timeout=60, poll_interval=0.01)
    # The service has this machine's clock, and nobody waits the second that is allowed for another one's.
    monkeypatch.setattr("embatch.runs.run.timedelta", lambda seconds: timedelta(seconds=0 * seconds))
    summary = run(client, source, out, seen=seen.append, cache=False)
    assert (summary.rows, summary.resumed) == (60, 60)
    assert all(one.rows == one.earlier_rows and one.tokens == one.earlier_tokens for one in seen)
    assert np.all(np.diff([one.earlier_tokens for one in seen if not one.settled]) > 0)
    assert summary.earlier == 60
