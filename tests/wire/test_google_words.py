"""Google's words stand in its rooms of `wire` and nowhere else: whoever needs one takes it from there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import embatch

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(embatch.__file__).parent
WIRES = tuple(SOURCE / "wire" / room for room in ("gemini", "google", "vertex"))
CAMEL = re.compile(r"\b[a-z]{2,}(?:[A-Z][a-z0-9]+)+\b")
BEGINNINGS = ("BATCH_STATE_", "JOB_STATE_", "google.rpc", "X-Goog-")


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and content of each string, docstrings left out, and each name that is given or used."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield node.lineno, text
            case ast.Constant(value=bytes(data)):
                yield node.lineno, data.decode("latin-1")
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield node.lineno, name


def words_of_the_wire() -> set[str]:
    """Return all names that the wire reads or writes."""
    found: set[str] = set()
    for path in (path for wire in WIRES for path in wire.rglob("*.py")):
        for _, text in texts(ast.parse(path.read_text())):
            found |= set(CAMEL.findall(text))
    return found


def foreign(text: str, words: set[str]) -> list[str]:
    """Return what of a text is Google's."""
    named = [word for word in CAMEL.findall(text) if word in words]
    return named + [word for word in BEGINNINGS if word.lower() in text.lower()]


def test_the_list_has_googles_names() -> None:
    """Fields of every kind of message, verbs of paths, names of queries."""
    assert {
        *("displayName", "taskType", "outputDimensionality", "inputConfig", "batchStats", "sizeBytes"),
        *("embedContent", "asyncBatchEmbedContent", "updateEmbedContentBatch", "countTokens"),
        *("pageSize", "pageToken", "nextPageToken", "updateMask", "fieldViolations", "retryDelay"),
        *("webhookConfig", "inlineData", "embedContentConfig"),
    } <= words_of_the_wire()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('field = f"batch.{name}.displayName"', ["displayName"]),
        ('path = b"/models/m:embedContent"', ["embedContent"]),
        ('call(pageToken="2")', ["pageToken"]),
        ('headers["x-goog-upload-status"]', ["X-Goog-"]),
        ('kind = "type.googleapis.com/google.rpc.BadRequest"', ["google.rpc"]),
        ('word = "BATCH_STATE_RUNNING"', ["BATCH_STATE_"]),
        ('"""As displayName."""\nname = "display_name"  # displayName', []),
    ],
)
def test_a_word_is_found_wherever_code_has_it(source: str, found: list[str]) -> None:
    """In a string of any kind, in a piece of one, and as an argument; docstrings and comments may say it."""
    words = words_of_the_wire()
    assert [word for _, text in texts(ast.parse(source)) for word in foreign(text, words)] == found


def test_no_google_word_stands_outside_its_wire() -> None:
    """No field, code, path, header or query: another protocol comes beside this one."""
    words = words_of_the_wire()
    assert [
        f"{path.relative_to(SOURCE)}:{line}: {word}"
        for path in sorted(SOURCE.rglob("*.py"))
        if not {*WIRES} & {*path.parents}
        for line, text in texts(ast.parse(path.read_text()))
        for word in foreign(text, words)
    ] == []
