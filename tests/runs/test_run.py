"""Runs against a real service: killed at any moment, retried, cached, certified, and refused where wrong."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Served, serving

from embatch import Client, DataLoss, FailedPrecondition, InvalidArgument, TaskType
from embatch.dtypes import Dtype
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from embatch.runs.progress import RunProgress, Summary

POISON = "embatch-poison:nan"
"""A text that the engine fails on, as it may not do another time."""
BLOCK = 25


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose engine takes its time, so that runs can be met while they work."""
    with serving(
        tmp_path_factory.mktemp("run") / "data",
        "--engine-option",
        "delay=0.02",
        "--engine-option",
        "poison=1",
    ) as served:
        yield served


@pytest.fixture
def client(service: Served) -> Iterator[Client]:
    """A client of it; whatever order the tests come in, each finds the service without batches."""
    with Client(service.url) as client:
        yield client
        _drop_all(client)


def _write(path: Path, texts: Sequence[str | None]) -> Path:
    lines = [
        b"{broken" if text is None else orjson.dumps({"text": text, "id": f"k{at}"})
        for at, text in enumerate(texts)
    ]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def _texts(count: int, word: str = "") -> list[str | None]:
    return [f"text {word} with the number {number}" for number in range(count)]


def _run(client: Client, source: Path | str, out: Path, **more: object) -> Summary:
    wishes = ("dimensions", "dtype", "task_type", "display_name")
    embed_options = EmbedOptions(**{name: more.pop(name) for name in wishes if name in more})  # type: ignore[arg-type]
    seen: list[RunProgress] = more.pop("seen", [])  # type: ignore[assignment]
    polled: Callable[[], object] = more.pop("polled", lambda: None)  # type: ignore[assignment]

    def show(standing: RunProgress) -> None:
        seen.append(standing)
        polled()

    options = RunOptions(out.parent / "data", **{"block_rows": BLOCK, **more})  # type: ignore[arg-type]
    return embed_dataset(client, open_source(source, None, "id"), str(out), embed_options, options, show)


def _stopped(client: Client, source: Path | str, out: Path, **more: object) -> set[str]:
    """Stop a run at its first poll, with nothing committed; return the names of all batches there are."""

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(client, source, out, polled=stop, **more)
    return {batch.name for batch in client.list_batches()}


def _drop_all(client: Client) -> None:
    for batch in client.list_batches():
        with contextlib.suppress(FailedPrecondition):  # it has ended
            client.cancel_batch(batch)
        client.delete_batch(batch)


def _embed(service: Served, source: Path, out: Path) -> subprocess.Popen[str]:
    flags = ("--id", "id", "--block-rows", str(BLOCK), "--data", str(out.parent / "data"))
    return subprocess.Popen(
        [sys.executable, "-m", "embatch", "embed", str(source), "-o", str(out), "--to", service.url, *flags],
        env={**os.environ, "NO_COLOR": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _committed(out: Path) -> list[int]:
    try:
        lines = (out.parent / f"{out.name}.embatch" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    said = [orjson.loads(line) for line in lines[1:] if line.endswith(b"\n")]
    return [one["block"]["number"] for one in said if "block" in one]


def _until(process: subprocess.Popen[str], true: Callable[[], bool]) -> bool:
    """Wait until something is true or the process has ended; return whether it became true."""
    while process.poll() is None:
        if true():
            return True
        time.sleep(0.002)  # a file of another process gives no signal
    return False


def _has(out: Path, blocks: int) -> bool:
    return len(_committed(out)) >= blocks


def _past(moment: float) -> bool:
    return time.monotonic() > moment


@pytest.mark.parametrize(("rows", "times"), [(300, 4), pytest.param(600, 10, marks=pytest.mark.long)])
def test_kills_lose_nothing_and_change_nothing(
    service: Served, tmp_path: Path, rows: int, times: int
) -> None:
    """Wherever it dies, the same command goes on, commits each block once, and writes the same bytes."""
    texts = _texts(rows, "killed")
    texts[100], texts[201] = (
        None,
        POISON,
    )  # the second one can be tried again, so the ledger stays to be looked at
    source, out, chance = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet", random.Random(7)
    kills = 0
    while kills < times:
        seen = len(_committed(out))
        process = _embed(service, source, out)
        if _until(process, partial(_has, out, seen + chance.choice([0, 1, 1, 2]))):
            # Anywhere between two commits, not only right after one.
            _until(process, partial(_past, time.monotonic() + chance.random() * 0.3))
        assert process.poll() is None, f"it ended after {kills} kills: {process.communicate()[1]}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not out.exists()
        kills += 1
    assert _committed(out), "every kill came before the first commit"
    with _embed(service, source, out) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 3, said
    assert "had been done or handed over by an earlier call" in said
    assert _committed(out) == list(range(-(-rows // BLOCK)))
    with Client(service.url) as client:
        fresh = tmp_path / "fresh" / "out.parquet"
        fresh.parent.mkdir()
        summary = _run(client, source, fresh, cache=False)
        assert list(client.list_batches()) == []
    assert (summary.rows, summary.failed, summary.retryable) == (rows, 2, 1)
    assert out.read_bytes() == fresh.read_bytes()


def test_rows_keep_their_order_and_say_why_they_failed(client: Client, tmp_path: Path) -> None:
    """Duplicates are computed once, bad lines stand in their place, the metadata certifies the vectors."""
    texts = ["one", "two", None, "one", POISON, "three"] * 10
    source, out = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet"
    seen: list[RunProgress] = []
    summary = _run(client, source, out, block_rows=12, cache=False, seen=seen)
    assert (summary.rows, summary.failed, summary.retryable, summary.duplicates) == (
        60,
        20,
        10,
        30 + 10 - 5 - 5,
    )
    table = pq.read_table(out)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == [
        None if text is None else f"k{at}" for at, text in enumerate(texts)
    ]
    vectors: dict[str, list[float]] = {}
    for text, row in zip(texts, rows, strict=True):
        assert (row["error"] is None) == (row["embedding"] is not None) == (text not in (None, POISON))
        if text is not None and row["error"] is None:
            assert vectors.setdefault(text, row["embedding"]) == row["embedding"]
    assert len(vectors) == 3
    assert "line 3" in rows[2]["error"]
    certificate = orjson.loads(table.schema.metadata[b"embatch.certificate"])
    assert certificate["cosine_least"] == certificate["cosine_mean"] == 1.0
    assert certificate["compared"] > 3
    engine = orjson.loads(table.schema.metadata[b"embatch.engine"])
    assert engine["name"] == "hashing"
    assert orjson.loads(table.schema.metadata[b"embatch.provider"]) == {"v": 1, "name": "embatch"}
    assert orjson.loads(table.schema.metadata[b"embatch.request"]) == {
        "v": 1,
        "model": "models/test-model",
        "task_type": None,
        "prompt": None,
        "dimensions": [len(table["embedding"][0])],
        "dtype": "float32",
    }
    assert seen[-1].total_rows == 60
    assert [one.tokens for one in seen] == sorted(one.tokens for one in seen)
    assert list(client.list_batches()) == []
    assert summary.interactive_cpu_seconds is not None


def test_only_what_failed_is_tried_again(client: Client, tmp_path: Path) -> None:
    """The rest keeps its vectors; once nothing is left to retry, the ledger goes."""
    texts = _texts(60, "again")
    out, source = tmp_path / "out.parquet", tmp_path / "in.jsonl"
    texts[7] = texts[30] = POISON
    _write(source, texts)
    first = _run(client, source, out)
    assert (first.failed, first.retryable) == (2, 2)
    before = pq.read_table(out).to_pylist()
    again = _run(client, source, out, retry_failed=True)
    assert (again.rows, again.failed) == (60, 2)
    assert pq.read_table(out).to_pylist() == before
    # The same command without a flag finds everything done and embeds nothing.
    done = _run(client, source, out)
    assert (done.failed, done.resumed) == (2, 60)
    whole = _write(tmp_path / "whole.jsonl", _texts(60, "whole"))
    _run(client, whole, tmp_path / "whole.parquet")
    assert not (tmp_path / "whole.parquet.embatch").exists()
    with pytest.raises(FailedPrecondition, match="no failed row"):
        _run(client, whole, tmp_path / "whole.parquet", retry_failed=True)


def test_a_retry_keeps_what_a_database_holds(client: Client, tmp_path: Path) -> None:
    """The whole block is written again, with the vectors that its other rows had."""
    from qdrant_client import QdrantClient

    texts = _texts(30, "database")
    texts[7] = POISON
    source = open_source(_write(tmp_path / "in.jsonl", texts), None, "id")
    place = f"qdrant+file://{tmp_path}/store/texts"

    def points(*, retry_failed: bool) -> dict[int, Any]:
        options = RunOptions(tmp_path / "data", block_rows=BLOCK, retry_failed=retry_failed)
        assert embed_dataset(client, source, place, EmbedOptions(), options, lambda _: None).failed == 1
        store = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
        try:
            found, _ = store.scroll("texts", limit=100, with_vectors=True)
            return {int(point.id): point.vector for point in found}
        finally:
            store.close()

    before = points(retry_failed=False)
    assert len(before) == 29
    assert points(retry_failed=True) == before


def test_a_warm_cache_changes_nothing(client: Client, tmp_path: Path) -> None:
    """The second run is answered from the first, vector for vector."""
    source = _write(tmp_path / "in.jsonl", _texts(60, "cached"))
    cold = _run(client, source, tmp_path / "cold.parquet")
    assert cold.cached == 0
    warm = _run(client, source, tmp_path / "warm.parquet")
    assert warm.cached == 60
    without = _run(client, source, tmp_path / "without.parquet", cache=False)
    assert without.cached == 0
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("cold", "warm", "without")]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    # The hashing model has no prompts: a task type changes nothing of its texts.
    assert _run(client, source, tmp_path / "task.parquet", task_type=TaskType.CLUSTERING).cached == 60


def test_several_dimensions_and_forms_from_one_pass(client: Client, tmp_path: Path) -> None:
    """A finished run with failed rows is written out in another form without embedding anything."""
    texts = _texts(40, "forms")
    texts[3] = POISON
    source, out = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet"
    summary = _run(client, source, out, dimensions=(16, 64))
    assert summary.dimensions == (16, 64)
    table = pq.read_table(out)
    assert table.schema.field("embedding_16").type == pa.list_(pa.float32(), 16)
    narrow = np.array(table.column("embedding_16")[0].as_py())
    assert np.linalg.norm(narrow) == pytest.approx(1.0, abs=1e-6)
    again = _run(client, source, out, dimensions=(16,), dtype=Dtype.INT8)
    assert again.resumed == 40
    table = pq.read_table(out)
    assert table.schema.field("embedding").type == pa.list_(pa.int8(), 16)
    with pytest.raises(InvalidArgument) as error:
        _run(client, source, tmp_path / "wide.parquet", dimensions=(65,))
    assert error.value.field == "--dim"


def test_a_broken_engine_is_refused(tmp_path: Path) -> None:
    """Vectors that belong to other texts never get the output's name; the same command says so again."""
    with serving(tmp_path / "data", "--engine-option", "mixed=1") as service, Client(service.url) as client:
        source, out = _write(tmp_path / "in.jsonl", _texts(80, "mixed")), tmp_path / "out.parquet"
        for _ in range(2):
            with pytest.raises(DataLoss, match="reference path"):
                _run(client, source, out)
            assert not out.exists()
        rejected = tmp_path / "out.rejected.parquet"
        certificate = orjson.loads(pq.read_schema(rejected).metadata[b"embatch.certificate"])
        assert certificate["cosine_least"] < 0.9
        with pytest.raises(DataLoss):
            _run(client, source, out, retry_failed=True)
        # Whoever takes the risk can say so.
        assert _run(client, source, out, restart=True, threshold=-1.0).failed == 0


def test_a_model_that_changed_is_not_mixed_in(tmp_path: Path) -> None:
    """A run that began under other numerics does not go on; --restart begins anew."""
    texts = _texts(60, "changed")
    texts[1] = POISON
    source, out = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet"
    with serving(tmp_path / "data", "--engine-option", "poison=1") as service, Client(service.url) as client:
        _run(client, source, out)
    with (
        serving(tmp_path / "data", "--engine-option", "max_tokens=100") as service,
        Client(service.url) as client,
    ):
        ledger = tmp_path / "out.parquet.embatch" / "ledger.jsonl"
        lines = ledger.read_bytes().splitlines(keepends=True)
        ledger.write_bytes(b"".join(lines[:2]))  # as if it had been stopped after the first block
        with pytest.raises(FailedPrecondition, match="--restart"):
            _run(client, source, out)
        assert _run(client, source, out, restart=True).rows == 60


def test_another_input_under_the_same_output_is_refused(client: Client, tmp_path: Path) -> None:
    """A changed file is another run: what was done of the old one is not mixed with the new one."""
    texts = _texts(30, "input")
    texts[0] = POISON
    source, out = _write(tmp_path / "in.jsonl", texts), tmp_path / "out.parquet"
    _run(client, source, out)
    _write(source, _texts(31, "input"))
    with pytest.raises(InvalidArgument, match="--restart"):
        _run(client, source, out)
    assert _run(client, source, out, restart=True).rows == 31


def test_an_input_without_any_text_is_an_error(client: Client, tmp_path: Path) -> None:
    """Nothing is written, and nothing stays behind."""
    source = _write(tmp_path / "in.jsonl", ["", " "])
    with pytest.raises(InvalidArgument) as error:
        _run(client, source, tmp_path / "out.parquet")
    assert error.value.field == "IN"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "data") == ["in.jsonl"]


@pytest.fixture
def folder(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with 60 texts in the files of `in`, three blocks; the service has no batch."""
    _drop_all(client)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in "ab":
        _write(tmp_path / "in" / f"{name}.jsonl", _texts(30, f"{tmp_path.name} {name}"))
    return tmp_path


def test_a_respelled_command_finds_its_batches(client: Client, folder: Path) -> None:
    """They keep the name that the first call gave them, and the cache gets them all."""
    handed = _stopped(client, "in", folder / "out.parquet")
    assert {batch.display_name for batch in client.list_batches()} == {
        f"2 files of in rows {rows}" for rows in ("0-24", "25-49", "50-59")
    }
    seen: list[RunProgress] = []
    assert _run(client, "./in", Path("out.parquet"), display_name="other", seen=seen).rows == 60
    assert {one.batch.name for one in seen} == handed
    assert list(client.list_batches()) == []
    assert _run(client, "in", folder / "later.parquet").cached == 60


def test_a_restart_shares_no_batch_with_what_was(client: Client, folder: Path) -> None:
    """However it is spelled; what had been handed over stays where it is."""
    handed = _stopped(client, "in", folder / "out.parquet")
    _run(client, "./in", folder / "out.parquet", display_name="other", restart=True)
    assert {batch.name for batch in client.list_batches()} == handed


def test_two_outputs_of_one_input_share_no_batch(client: Client, folder: Path) -> None:
    """One that ends first takes nothing away from the other."""
    done: list[Summary] = []

    def other() -> None:
        if not done:
            done.append(_run(client, "in", folder / "other.parquet"))

    assert _run(client, "in", folder / "one.parquet", polled=other).rows == done[0].rows == 60
    assert (folder / "one.parquet").read_bytes() == (folder / "other.parquet").read_bytes()
    assert list(client.list_batches()) == []


def test_a_ledger_from_before_is_taken_up(client: Client, folder: Path) -> None:
    """It finds its batches as it always did; where it cannot, it says what to do."""
    out, log = folder / "out.parquet", folder / "out.parquet.embatch" / "ledger.jsonl"
    _stopped(client, "in", out)
    _drop_all(client)
    about = orjson.loads(log.read_bytes())
    del about["begun"]
    log.write_bytes(orjson.dumps(about) + b"\n")
    handed = _stopped(client, "in", out)
    with pytest.raises(FailedPrecondition, match=r"rows 0-24 were handed over.*--restart"):
        _run(client, "./in", out)
    seen: list[RunProgress] = []
    assert _run(client, "in", out, seen=seen).rows == 60
    assert {one.batch.name for one in seen} == handed


def test_a_database_that_lost_rows_between_calls_gets_them_again(client: Client, tmp_path: Path) -> None:
    """A collection that was deleted meanwhile is whole again, out of the ledger."""
    from qdrant_client import QdrantClient

    texts = _texts(60, "dropped")
    texts[7] = POISON
    source = open_source(_write(tmp_path / "in.jsonl", texts), None, "id")
    place = f"qdrant+file://{tmp_path}/store/texts"

    def points(drop: Any) -> dict[int, Any]:
        """Have a call of the run finished, and return the points before some, or all of them, are dropped."""
        options = RunOptions(tmp_path / "data", block_rows=BLOCK)
        embed_dataset(client, source, place, EmbedOptions(), options, lambda _: None)
        store = QdrantClient(path=str(tmp_path / "store"), force_disable_check_same_thread=True)
        try:
            found, _ = store.scroll("texts", limit=100, with_vectors=True)
            if drop:
                store.delete("texts", drop, wait=True)
        finally:
            store.close()
        if drop is None:
            shutil.rmtree(tmp_path / "store")
        return {int(point.id): point.vector for point in found}

    before = points(None)
    assert len(before) == 59
    assert points([30, 31]) == before
    assert points([]) == before
