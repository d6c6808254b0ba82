"""What the command line shows of others' words, which options it refuses, and what it says of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest
from serving import serving

from embatch import Client, cli
from embatch.cli.crowding import Crowding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Served

NAME = "[bold]x[/bold] [/] \x1b[31mred\x1b]0;title\x07\nerror: forged \u202egpj.exe \u2028 \x9b2J"
SHOWN = r"[bold]x[/bold] [/] \x1b[31mred\x1b]0;title\x07\nerror: forged \u202egpj.exe \u2028 \x9b2J"
NOBODY = ("--to", "http://127.0.0.1:9")
"""A service that nobody may ask: what is refused here is refused before anything is sent."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with a batch whose name is a trap."""
    with serving(tmp_path_factory.mktemp("shown") / "data") as served, Client(served.url) as client:
        client.async_batch_embed_contents(["one"], display_name=NAME)
        client.async_batch_embed_contents([f"text {n}" for n in range(1_500)], display_name=NAME)
        yield served


def run(*arguments: object) -> int:
    """Run a command in this process; return its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def test_names_are_shown_and_not_obeyed(service: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, no markup, small batches and those of files alike; as JSON they are what they are."""
    assert run("list", "--to", service.url) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "name"
    assert len(lines) == 2
    assert all(line.endswith(SHOWN) for line in lines)
    assert run("list", "--json", "--to", service.url) == 0
    said = capsys.readouterr().out
    assert [orjson.loads(line)["display_name"] for line in said.split("\n")[:-1]] == [NAME, NAME]
    assert not set(said) & set("\x1b\x07\u202e\u2028\x9b")


def test_a_batch_that_is_watched_is_named_as_it_is(
    service: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name in the table at the end."""
    with Client(service.url) as client:
        batch = next(client.list_batches())
    assert run("watch", batch.name, "--to", service.url, "--interval", "0.05") == 0
    assert SHOWN in capsys.readouterr().out


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".nothing"])
def test_names_of_files_and_columns_are_shown(
    service: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """In whatever error they come up."""
    source = tmp_path / f"a\x1b[2J\nb{ending}"
    source.write_bytes(b'{"te\\u001bxt":"one"}\n' if ending == ".jsonl" else b"te\x1bxt,other\n1,2\n")
    column = "no\x1b]0;x\x07"
    assert run("embed", source, "-o", tmp_path / "out.jsonl", "--text", column, *NOBODY) == 2
    said = capsys.readouterr().err
    assert said.isprintable() or said.removesuffix("\n").isprintable()
    assert said.startswith("error: ")
    assert r"a\x1b[2J\nb" in said


def test_arguments_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A name that a shell put where a command or an option belongs."""
    for arguments in (
        ("\x1b[2J",),
        ("list", "\x1b[2J"),
        ("list", "--limit", "\x1b[2J\n"),
        ("list", "--\x1b[2J"),
    ):
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("embed", "IN", "-o", "OUT", "--dim", "0"), "--dim is out of range: it is 1 or more, not 0"),
        (("embed", "IN", "-o", "OUT", "--dim", "8", "--dim", "-1"), "--dim is out of range"),
        (
            ("embed", "IN", "-o", "OUT", "--threshold", "nan"),
            "--threshold is out of range: it is from -1 to 1",
        ),
        (("embed", "IN", "-o", "OUT", "--threshold", "1.1"), "--threshold is out of range"),
        (("embed", "IN", "-o", "OUT", "--block-rows", "-5"), "--block-rows is out of range"),
        (("embed", "IN", "-o", "OUT", "--priority", str(1 << 63)), "--priority is out of range"),
        (
            ("embed", "IN", "-o", "OUT", "--name", "x" * 513),
            "at most 512 whole characters and no NUL (--name)",
        ),
        (("embed", "IN", "-o", "OUT", "--name", "a\0b"), "no NUL (--name)"),
        (("embed", "IN", "-o", "OUT", "--name", " "), "--name is empty"),
        (("embed", "IN", "-o", "OUT", "--model", ""), "--model is empty"),
        (("embed", "IN", "-o", "OUT", "--dtype", "int4"), "--dtype is one of"),
        (("embed", "IN", "-o", "OUT", "--task-type", "x"), "--task-type"),
        (("embed", "IN", "-o", "out.csv"), "must end in"),
        (("submit", "IN", "--dim", "0"), "--dim is out of range"),
        (("submit", "IN", "--priority", str(-(1 << 63) - 1)), "--priority is out of range"),
        (("submit", "IN", "--name", ""), "--name is empty"),
        (("submit", "IN", "--model", ""), "--model is empty"),
        (("results", "batches/x", "-o", "OUT", "--dim", "0"), "--dim is out of range"),
        (("results", "batches/x", "-o", "out.csv"), "must end in"),
        (("results", "x", "-o", "OUT"), "a batch is named batches/{id} (NAME)"),
        (("watch", "batches/x", "--timeout", "-1"), "--timeout is out of range"),
        (("watch", "batches/x", "--interval", "nan"), "--interval is out of range"),
        (("watch", "batches/x", "--interval", "inf"), "--interval is out of range"),
        (("list", "--limit", "0"), "--limit is out of range"),
        (("cost", "IN", "--sample", "0"), "--sample is out of range"),
        (("cost", "IN", "--measure", "-1"), "--measure is out of range"),
        (("cost", "IN", "--model", " "), "--model is empty"),
        (("embed", "IN", "-o", "OUT", "--engine", "fast"), "--engine is for the local service"),
        (("submit", "IN", "--precision", "f32"), "--precision is for the local service"),
        (("cost", "IN", "--engine-option", "pooling=cls"), "--engine-option is for the local service"),
        (("embed", "IN", "-o", "OUT", "--to", "local", "--engine", "fast"), "engine must be one of"),
        (("submit", "IN", "--to", "local", "--engine-option", "x"), "takes NAME=VALUE"),
        (("list", "--to", "ftp://host"), "(--to)"),
    ],
)
def test_options_are_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Each is refused by its name with exit code 2, no service is asked, and nothing is written."""
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text":"one"}\n')
    places = {"IN": str(source), "OUT": str(tmp_path / "out.parquet")}
    to = () if "--to" in arguments else NOBODY
    assert run(*(places.get(argument, argument) for argument in arguments), *to) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("requests", [3, 1_500])
def test_more_dimensions_than_there_are(
    service: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], requests: int
) -> None:
    """However many texts there are, no batch is made of them."""
    source = tmp_path / "in.txt"
    source.write_text("".join(f"text {number}\n" for number in range(requests)), "utf-8")
    with Client(service.url) as client:
        before = len(list(client.list_batches()))
        assert run("submit", source, "--dim", "65", "--to", service.url) == 2
        assert len(list(client.list_batches())) == before
    assert "--dim 65: the model has 64 dimensions" in capsys.readouterr().err


def crowded(spent: list[float | None], load: float) -> list[str | None]:
    """Return what is said at polls a second apart, at each of which so many CPU seconds are spent."""
    now = iter(range(len(spent)))
    asked = iter(spent[::10])
    watching = Crowding(lambda: next(asked), lambda: float(next(now)), lambda: load, 2)
    return [watching() for _ in spent]


def test_starving_is_said_once() -> None:
    """Where the engines get hardly anything and the machine has more to do than cores."""
    said = crowded([0.1 * second for second in range(60)], 9.1)
    (line,) = [line for line in said if line is not None]
    assert said.index(line) == 10
    assert line.startswith(
        "other work holds this machine (load 9.1 on 2 cores): embedding gets 0.1 of a core"
    )


@pytest.mark.parametrize(
    ("spent", "load"),
    [
        ([1.8 * second for second in range(60)], 9.1),  # they have their share
        ([0.1 * second for second in range(60)], 0.4),  # the machine is idle: they wait for something else
        ([None] * 60, 9.1),  # the system does not tell
    ],
)
def test_nothing_is_said_of_a_machine_that_serves(spent: list[float | None], load: float) -> None:
    """Nor of one of which nothing is known."""
    assert set(crowded(spent, load)) == {None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("embed", "-", "-o", "out.parquet"), "it cannot be standard input"),
        (("submit", "-"), "it cannot be standard input"),
        (("embed", "in.jsonl", "-o", "-"), "it cannot be standard output"),
        (("embed", "in.jsonl", "-o", "out.parquet", "-x"), "-x"),
    ],
)
def test_a_dash_in_a_files_place(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """Neither stream can be read or written twice: one line says what to do, before anything starts."""
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
