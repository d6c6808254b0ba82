"""Arrow files that are damaged: an error that names the file, and no end of the process."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from embatch.runs.sources import open_source

if TYPE_CHECKING:
    from pathlib import Path

READ = """
import sys
from embatch.errors import InvalidArgument
from embatch.runs.sources import open_source
for place in sys.argv[3:]:
    try:
        for rows in open_source(place, sys.argv[1], sys.argv[2]).blocks(7):
            rows.ids.to_pylist()
        print("read")
    except InvalidArgument as error:
        assert "damaged" in str(error), error
        print("refused")
"""
ROWS = 30


def columns() -> dict[str, pa.Array[pa.Scalar[pa.DataType]]]:
    """Return columns of every layout that holds texts."""
    texts = pa.array([f"text number {at} is long enough" for at in range(ROWS)])
    return {
        "text": texts,
        "large": texts.cast(pa.large_string()),
        "view": texts.cast(pa.string_view()),
        "dictionary": texts.dictionary_encode(),
        "list": pa.array([[f"a{at}"] * (at % 3) for at in range(ROWS)]),
        "struct": pa.array([{"a": f"{at}"} for at in range(ROWS)]),
    }


@pytest.mark.parametrize(
    ("text", "id_"),
    [("text", "list"), ("large", "text"), ("view", "struct"), ("dictionary", "large"), ("text", "view")],
)
def test_a_damaged_file_ends_no_process(tmp_path: Path, text: str, id_: str) -> None:
    """Lengths and places that lead out of the file are never followed, whichever bytes are wrong."""
    whole = tmp_path / "whole.arrow"
    table = pa.table({name: columns()[name] for name in (text, id_)})
    with pa.ipc.new_file(str(whole), table.schema) as writer:
        writer.write_table(table, 13)
    content, drawn = whole.read_bytes(), random.Random(5)
    places = []
    for number in range(200):
        wrong = bytearray(content)
        for _ in range(drawn.choice([1, 2, 4])):
            wrong[drawn.randrange(8, len(wrong))] = drawn.choice([0, 1, 127, 128, 255])
        place = tmp_path / f"damaged-{number}.arrow"
        place.write_bytes(wrong)
        places.append(str(place))
    done = subprocess.run(
        [sys.executable, "-c", READ, text, id_, *places],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == {"read", "refused"}


def test_texts_that_are_not_utf_8_fail_alone_in_every_layout(tmp_path: Path) -> None:
    """A file that is whole but for that is read: its other rows are what they were."""
    for name, kind in (("text", pa.string()), ("large", pa.large_string()), ("dictionary", None)):
        plain = pa.array([b"one", b"\xff", b"three"], pa.large_binary() if name == "large" else pa.binary())
        texts: Any = plain.view(kind or pa.string())
        if kind is None:
            texts = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), texts)
        path = tmp_path / f"{name}.arrow"
        table = pa.table({"text": texts, "id": pa.array(["a", "b", "c"])})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
        (rows,) = open_source(path, "text", "id").blocks()
        assert rows.texts == ["one", None, "three"]
        assert rows.ids.to_pylist() == ["a", "b", "c"]
        assert set(rows.faults) == {1}
