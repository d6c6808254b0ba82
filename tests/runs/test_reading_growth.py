"""Reading takes time that is that of its input: four times as much takes about four times as long."""

from __future__ import annotations

import io
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from growth import MOST, growth

from embatch.errors import InvalidArgument
from embatch.jsontext import split_lines
from embatch.runs.sources import kinds, open_source
from embatch.runs.sources.globs import Glob

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def reading(path: Path) -> Callable[[], object]:
    """Return what reads every row of a file."""
    named = None if path.suffix == ".txt" else "text"
    return lambda: [None for _ in open_source(path, named, None).blocks()]


LINES: dict[str, tuple[str, Callable[[int], str]]] = {
    "jsonl": (".jsonl", lambda n: '{"text":"some words","n":1}\n' * n),
    "jsonl, broken": (".jsonl", lambda n: '{"text":"some words\n' * n),
    "jsonl, other keys": (".jsonl", lambda n: "".join(f'{{"text":"a","key {at}":1}}\n' for at in range(n))),
    "jsonl, many keys": (
        ".jsonl",
        lambda n: '{"text":"a",' + ",".join(f'"k{at}":{at}' for at in range(n)) + "}\n",
    ),
    "jsonl, one line": (".jsonl", lambda n: '{"text":"' + '\\"' * n + '"}\n'),
    "jsonl, depth": (".jsonl", lambda n: ('{"text":"' + '\\"' * 50 + "[" * 900 + "\n") * n),
    "csv": (".csv", lambda n: "text,n\n" + "some words,1\n" * n),
    "csv, values of lines": (".csv", lambda n: "text,n\n" + '"some\nwords\n",1\n' * n),
    "csv, one value": (".csv", lambda n: 'text,n\n"' + "words\n" * n + '",1\n'),
    "csv, a stray quote": (".csv", lambda n: 'text,n\n"stray,1\n' + "some words,1\n" * n),
    "csv, stray quotes": (".csv", lambda n: "text,n\n" + '"stray,1\n' * n),
    "csv, quotes at the end": (".csv", lambda n: "text,n\n" + 'x,"\n' * n),
    "csv, quotes in pairs": (".csv", lambda n: "text,n\n" + '"a""\n""b""\n' * n),
    "csv, stray and sound": (".csv", lambda n: "text,n\n" + ('"stray,1\n' + "some words,1\n" * 50) * n),
    "csv, too many values": (".csv", lambda n: "text,n\n" + "a," * n + "\n"),
    "csv, a wide header": (".csv", lambda n: "text" + ",c" * n + "\n"),
    "csv, quotes alone": (".csv", lambda n: "text,n\n" + '"' * n + "\n"),
    "text": (".txt", lambda n: "some words\n" * n),
    "text, blank": (".txt", lambda n: "\n" * n),
    "text, carriage returns": (".csv", lambda n: "text\r" + "a\r" * n),
}


@pytest.mark.parametrize("what", LINES)
def test_lines(tmp_path: Path, what: str) -> None:
    """Sound ones, broken ones, and such as only somebody means to write."""
    ending, content = LINES[what]
    names = itertools.count()

    def make(size: int) -> Callable[[], object]:
        path = tmp_path / f"{next(names)}{ending}"
        path.write_text(content(size))
        return reading(path)

    assert growth(make, 200) < MOST


class Dripping(io.BytesIO):
    """A stream that gives little at a time."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        del size
        return super().read(64)


def test_one_long_line() -> None:
    """It is put together once, not with every block that comes."""

    def make(size: int) -> Callable[[], object]:
        return lambda: list(split_lines(Dripping(b"x" * size), 1 << 30))

    assert growth(make, 1 << 16) < MOST


@pytest.mark.parametrize("what", ["groups", "columns", "batches", "words", "faults"])
def test_tables(tmp_path: Path, what: str) -> None:
    """Many row groups, columns, record batches, values of a dictionary, or rows that fail."""

    def make(size: int) -> Callable[[], object]:
        path = tmp_path / f"{size}{'.arrow' if what in ('batches', 'words') else '.parquet'}"
        match what:
            case "groups":
                pq.write_table(pa.table({"text": ["a"] * size}), path, row_group_size=1)
            case "columns":
                names = {f"c{at}": pa.array([1], pa.int8()) for at in range(size)}
                pq.write_table(pa.table({**names, "text": ["a"]}), path)
            case "faults":
                pq.write_table(pa.table({"text": pa.array([None] * size, pa.string())}), path)
            case _:
                words = [f"word {at}" for at in range(size)]
                column = pa.array(words)
                table = pa.table({"text": column.dictionary_encode() if what == "words" else column})
                with pa.ipc.new_file(str(path), table.schema) as writer:
                    writer.write_table(table, 1 if what == "batches" else 1000)
        return reading(path)

    assert growth(make, 50) < MOST


def test_small_blocks_of_bad_rows(tmp_path: Path) -> None:
    """A row a block, all of them failing."""

    def make(size: int) -> Callable[[], object]:
        path = tmp_path / f"{size}.txt"
        path.write_text("\n" * size)
        return lambda: [None for _ in open_source(path, None, None).blocks(1)]

    assert growth(make, 200) < MOST


@pytest.mark.parametrize(
    "glob",
    [
        lambda n: "/d/" + "**/" * n + "x*",
        lambda n: "/d/" + "*a" * n + "b",
        lambda n: "/d/" + "**a" * n + "b",
        lambda n: "/d/" + "?*" * n + "[!a]",
        lambda n: "/d/**/" + "*a*/" * n + "b",
    ],
)
def test_globs(glob: Callable[[int], str]) -> None:
    """However many stars one has, and however nearly the path is one that it names."""
    pattern = glob(5)

    def make(size: int) -> Callable[[], object]:
        paths = ["/d/" + "a" * size, "/d/" + "a/" * size, "/d/" + "xa/" * size]
        return lambda: [Glob(pattern).names(path) for path in paths]

    assert growth(make, 100) < MOST


def test_folders(tmp_path: Path) -> None:
    """Files, hidden ones, links to files and links in a circle."""
    names = itertools.count()

    def make(size: int) -> Callable[[], object]:
        root = tmp_path / str(next(names))
        for at in range(size):
            folder = root / f"f{at % 10}" / f"g{at}"
            folder.mkdir(parents=True)
            (folder / "a.jsonl").write_bytes(b'{"text":"a"}\n')
            (folder / "up").symlink_to("..")
            (folder / "b.jsonl").symlink_to("a.jsonl")
            (folder / "_c.jsonl").touch()
        return lambda: open_source(root, None, None)

    assert growth(make, 20) < MOST


@pytest.mark.parametrize("unit", [b"\x00", b"a\x00", b"\xff\x01", b"[", b"\x00\x00\x00a", bytes(range(256))])
def test_first_bytes(unit: bytes) -> None:
    """What a file is takes a look, whatever its bytes are."""

    def make(size: int) -> Callable[[], object]:
        content = unit * (size // len(unit))

        def look() -> None:
            for _ in range(200):  # of a head, which is small: large ones are held up by memory
                try:
                    kinds.check("in.jsonl", content, content)
                except InvalidArgument:
                    continue

        return look

    assert growth(make, 1000) < MOST


def test_texts_of_one_view(tmp_path: Path) -> None:
    """Sizes are read, not texts."""

    def make(size: int) -> Callable[[], object]:
        path = tmp_path / f"{size}.arrow"
        table = pa.table({"text": pa.array(np.arange(size).astype(str).tolist(), pa.string_view())})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
        return reading(path)

    assert growth(make, 1000) < MOST
