"""A real corpus that every Python carries: the docstrings of the standard library, cut to passages.

`passages()` reads the sources of the running Python with `ast` (nothing is imported or run), keeps prose,
cuts long docstrings at paragraph ends to passages of at most 200 words, and drops repeats. The order and the
texts depend only on the version of Python.

Run it to write them as JSONL: `python examples/corpus.py corpus.jsonl [--count 3000]`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import sysconfig
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_WORDS, MOST_WORDS = 12, 200
SKIPPED = {"test", "tests", "idlelib", "turtledemo", "site-packages", "lib2to3", "idle_test", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage and where it stands, such as `json.decoder.JSONDecoder#1`."""

    id: str
    text: str


def passages(count: int = 3000) -> list[Passage]:
    """Return up to `count` passages, spread evenly over the standard library, in the order of their names."""
    everything: dict[str, Passage] = {}
    for name, docstring in sorted(_docstrings()):
        for number, text in enumerate(_cut(docstring), 1):
            if _is_prose(text):
                everything.setdefault(text, Passage(f"{name}#{number}", text))
    found = list(everything.values())
    if len(found) <= count:
        return found
    return [found[index * len(found) // count] for index in range(count)]


def _docstrings() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in the library's own sources
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        module = ".".join(part for part in parts if part != "__init__")
        yield from _walk(module, tree)


def _walk(
    name: str, node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
) -> Iterator[tuple[str, str]]:
    docstring = ast.get_docstring(node)
    if docstring:
        yield name, docstring
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(f"{name}.{child.name}", child)


def _cut(docstring: str) -> Iterator[str]:
    """Join paragraphs up to the limit of words; a longer paragraph is cut at the limit."""
    held: list[str] = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        words = paragraph.split()
        if held and len(held) + len(words) > MOST_WORDS:
            yield " ".join(held)
            held = []
        held += words
        while len(held) > MOST_WORDS:
            yield " ".join(held[:MOST_WORDS])
            held = held[MOST_WORDS:]
    if held:
        yield " ".join(held)


def _is_prose(text: str) -> bool:
    """Whether the passage reads as English rather than as code or a table."""
    words = text.split()
    plain = sum(word.strip(".,;:()'\"`*").isalpha() for word in words)
    return len(words) >= LEAST_WORDS and plain >= 0.7 * len(words) and ">>>" not in text


def main() -> None:
    """Write the corpus as JSONL with `id` and `text`."""
    parser = argparse.ArgumentParser(description="Write the standard library's docstrings as JSONL passages.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=3000)
    chosen = parser.parse_args()
    found = passages(chosen.count)
    with chosen.output.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"id": one.id, "text": one.text}) + "\n" for one in found)
    words = sum(len(one.text.split()) for one in found)
    sys.stderr.write(f"{len(found)} passages, {words} words, to {chosen.output}\n")


if __name__ == "__main__":
    main()
