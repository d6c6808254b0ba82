"""What can be known before the first text is sent is said before, and leaves nothing behind."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from serving import serving

from embatch import Client, ConnectionFailed, InvalidArgument, TaskType
from embatch.runs.identity import differences
from embatch.runs.options import EmbedOptions, RunOptions
from embatch.runs.run import embed_dataset
from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embatch.runs.progress import Progress, RunProgress, Summary


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service whose model has 64 dimensions."""
    data = tmp_path_factory.mktemp("first") / "data"
    with serving(data, "--engine-option", "poison=1") as service, Client(service.url) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Texts of two blocks, one of which may be tried again."""
    lines = [f'{{"text":"{tmp_path.name} with the number {number}"}}\n' for number in range(7)]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(lines) + '{"text":"embatch-poison:nan"}\n', "utf-8")
    return path


def silent(standing: RunProgress) -> None:
    """Show nothing."""


def run(
    client: Client, source: Path, embed_options: EmbedOptions, shown: Progress = silent, rows: int = 4
) -> Summary:
    """Embed a file into `out.parquet` beside it."""
    out, options = source.parent / "out.parquet", RunOptions(source.parent / "data", block_rows=rows)
    return embed_dataset(client, open_source(source, None, None), str(out), embed_options, options, shown)


def left(source: Path) -> list[str]:
    """Return what lies beside the input."""
    return sorted(path.name for path in source.parent.iterdir() if path != source)


def test_dimensions_that_the_model_has_not_are_refused_first(client: Client, source: Path) -> None:
    """No batch is made and no ledger stays: another command is free to begin."""
    with pytest.raises(InvalidArgument, match="--dim 65: the vectors have 64 dimensions"):
        run(client, source, EmbedOptions(dimensions=(16, 65)))
    assert list(client.list_batches()) == []
    assert left(source) == []
    summary = run(client, source, EmbedOptions(dimensions=(64,), task_type=TaskType.CLUSTERING))
    assert (summary.rows, summary.dimensions) == (8, (64,))


def test_dimensions_of_a_run_that_has_begun(client: Client, source: Path) -> None:
    """Its vectors say how many there are; what was done stays for the command that is right."""
    run(client, source, EmbedOptions())
    with pytest.raises(InvalidArgument, match="--dim 65"):
        run(client, source, EmbedOptions(dimensions=(65,)))
    assert left(source) == ["out.parquet", "out.parquet.embatch"]
    assert run(client, source, EmbedOptions(dimensions=(8,))).resumed == 8


def test_a_target_that_cannot_be_reached_leaves_nothing(source: Path) -> None:
    """Nothing listens there."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with Client(nowhere, max_retries=1) as nobody, pytest.raises(ConnectionFailed, match="cannot reach"):
        run(nobody, source, EmbedOptions(dimensions=(16,)))
    assert left(source) == []
    with Client(nowhere, max_retries=1) as nobody, pytest.raises(ConnectionFailed, match="cannot reach"):
        run(nobody, source, EmbedOptions())
    assert left(source) == []


def test_a_run_that_was_handed_over_is_remembered(client: Client, source: Path) -> None:
    """However it ends: its batches wait for the same command, and another one hears what differs."""

    def stop(standing: RunProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(client, source, EmbedOptions(task_type=TaskType.CLUSTERING), stop)
    assert left(source) == ["out.parquet.embatch"]
    with pytest.raises(
        InvalidArgument,
        match=r"task type \(CLUSTERING then, none now\) and block rows \(4 then, 5 now\): give .*--restart",
    ):
        run(client, source, EmbedOptions(), rows=5)
    assert run(client, source, EmbedOptions(task_type=TaskType.CLUSTERING)).rows == 8


@pytest.mark.parametrize(
    ("then", "now", "begun", "beginning", "said"),
    [
        ({"model": "a"}, {"model": "a"}, {}, {}, []),
        ({"model": "a"}, {"model": "b"}, {}, {}, ["model (a then, b now)"]),
        ({"dimensions": None}, {"dimensions": 64}, {}, {}, ["dimensions (none then, 64 now)"]),
        ({"input": 1}, {"input": 2}, {}, {}, ["input"]),
        ({"input": 1}, {"input": 2}, {"place": "a"}, {"place": "a"}, ["input (a has changed since)"]),
        ({"input": 1}, {"input": 2}, {"place": "a"}, {"place": "b"}, ["input (a then, b now)"]),
        (
            {"input": 1, "model": "a"},
            {"input": 2, "model": None},
            {"place": "a", "input": {"input": "x", "text column": "body", "id column": None}},
            {"place": "a", "input": {"input": "x", "text column": "title", "id column": "id"}},
            [
                "text column (body then, title now)",
                "id column (none then, id now)",
                "model (a then, none now)",
            ],
        ),
        ({"model": "a"}, {"model": "a", "target": "x"}, {}, {}, ["target (none then, x now)"]),
        ({"model": "a", "target": "x"}, {"model": "a"}, {}, {}, ["target (x then, none now)"]),
    ],
)
def test_what_differs_is_named_old_and_new(
    then: dict[str, object],
    now: dict[str, object],
    begun: dict[str, object],
    beginning: dict[str, object],
    said: list[str],
) -> None:
    """Whatever the first call was, and also where its ledger does not say."""
    assert differences(then, now, begun, beginning) == said
