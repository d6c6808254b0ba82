"""A corpus to measure with: real English of mixed length, made from what this environment already holds.

    .venv/bin/python benchmarks/corpus.py -o corpus.jsonl [--count 20000] [--seed 0]

The texts are docstrings, comments and documentation of the standard library and of the packages pinned in
`requirements/dev.lock`, cut at sentence ends to passages whose lengths are log-normal: half have less than
about 80 tokens, few have many hundreds. One in twenty is an exact copy of another, as in corpora people have.
Nothing is downloaded, imported or run. The same Python, lock, platform and seed give the same texts; another
seed takes other files and cuts them elsewhere. It is technical English: more tokens a word than news.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import statistics
import sys
import sysconfig
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
CORPUS: Final = 20_000
"""Texts of the corpus of which benchmarks take the first; they stand in random order."""
REPEATED: Final = 0.05
"""The share of the texts that are copies of others."""
WORDS: Final = (3.85, 0.9)
"""Mean and deviation of the logarithm of a passage's words, before it runs on to the end of its sentence."""
LEAST_WORDS, MOST_WORDS, RUN_ON = 8, 600, 15
OF_ONE_FILE: Final = 25
"""Passages taken of one file while there are others: a large one shall not be the whole of a small corpus."""
SKIPPED: Final = frozenset({"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"})
DOCUMENTS: Final = frozenset({".md", ".rst", ""})
"""Suffixes of whole documents; a package's `METADATA`, which holds its README, has none."""
LONG_STRINGS: Final = re.compile(r'"""(.*?)"""', re.DOTALL)
COMMENTS: Final = re.compile(r"(?m)(?:^[ \t]*#.*\n)+")


def passages(count: int = CORPUS, seed: int = 0, files: Iterable[Path] | None = None) -> list[str]:
    """Return `count` texts without line breaks, copies among them, in a random order that the seed decides.

    `files`: what they are cut from; `None` takes all `sources`.

    Raises:
        ValueError: this environment does not hold so many; the message says how many it does.
    """
    random = Random(seed)
    wanted = count - round(count * REPEATED)
    files = sources() if files is None else list(files)
    random.shuffle(files)
    read: set[str] = set()
    found: dict[str, None] = {}
    rest: list[str] = []
    for file in files:
        if len(found) >= wanted:
            break
        pieces = list(_cut(_paragraphs(file, read), random))
        random.shuffle(pieces)
        found.update(dict.fromkeys(pieces[:OF_ONE_FILE]))
        rest += pieces[OF_ONE_FILE:]
    if len(found) < wanted:
        random.shuffle(rest)
        found.update(dict.fromkeys(rest))
    if len(found) < wanted:
        raise ValueError(
            f"count: {wanted} distinct passages are wanted, and the files here give {len(found)}; "
            "`python3 run.py setup` installs every package of the lock"
        )
    distinct = list(islice(found, wanted))
    texts = distinct + random.choices(distinct, k=count - wanted)
    random.shuffle(texts)
    return texts


def distinct_passages(count: int) -> list[str]:
    """Return at least `count` different passages, of a corpus that is larger where more are wanted.

    Raises:
        ValueError: as `passages`.
    """
    return list(dict.fromkeys(passages(max(CORPUS, round(1.06 * count)))))


def sources() -> list[Path]:
    """Return the files that are read, in an order that does not depend on where they are installed."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [(path.relative_to(library).as_posix(), path) for path in library.rglob("*.py")]
    for name in re.findall(r"(?m)^([a-z0-9-]+)==", (ROOT / "requirements" / "dev.lock").read_text()):
        try:
            listed = importlib.metadata.distribution(name).files or ()
        except importlib.metadata.PackageNotFoundError:
            continue  # the lock is for every platform
        wanted = (one for one in listed if one.suffix in {".py", ".md", ".rst"} or one.name == "METADATA")
        files += [(f"{name}/{one.as_posix()}", Path(str(one.locate()))) for one in wanted]
    return [path for name, path in sorted(files) if not SKIPPED.intersection(Path(name).parts)]


def _paragraphs(file: Path, read: set[str]) -> Iterator[str]:
    """Yield a file's paragraphs of prose that `read` has not seen yet: licences stand in every file."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    blocks: Iterable[str] = (text,)
    if file.suffix not in DOCUMENTS:
        comments = (re.sub(r"(?m)^\s*#+ ?", "", block) for block in COMMENTS.findall(text))
        blocks = (*LONG_STRINGS.findall(text), *comments)
    for block in blocks:
        for paragraph in re.split(r"\n\s*\n", block):
            line = " ".join(paragraph.split())
            if line not in read and _is_prose(line):
                read.add(line)
                yield line


def _is_prose(line: str) -> bool:
    """Whether the line reads as English rather than as code, markup or a table."""
    words = line.split()
    plain = sum(word.strip(".,;:()'\"`*").isalpha() for word in words)
    return len(words) >= LEAST_WORDS and plain >= 0.75 * len(words) and ">>>" not in line


def _cut(paragraphs: Iterable[str], random: Random) -> Iterator[str]:
    """Join a file's paragraphs and cut them to passages; what is left over at the end is one more."""
    held: list[str] = []
    length = _length(random)
    for paragraph in paragraphs:
        for word in paragraph.split():
            held.append(word)
            ends = word.endswith((".", "!", "?", ":"))
            if len(held) >= length + (0 if ends else RUN_ON):
                yield " ".join(held)
                held, length = [], _length(random)
    if len(held) >= LEAST_WORDS:
        yield " ".join(held)


def _length(random: Random) -> int:
    return max(LEAST_WORDS, min(MOST_WORDS, round(random.lognormvariate(*WORDS))))


def token_counts(texts: Sequence[str]) -> list[int]:
    """Return what all-MiniLM-L6-v2's tokenizer makes of each text, special tokens included, nothing cut."""
    from tokenizers import Tokenizer  # noqa: PLC0415  (making texts does not need it)

    from embatch.engine.models import DEFAULT_MODEL, serve_model  # noqa: PLC0415  (nor this)

    tokenizer = Tokenizer.from_file(str(Path(serve_model(DEFAULT_MODEL).spec.model, "tokenizer.json")))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(one.ids) for one in tokenizer.encode_batch_fast(list(texts))]


def digest(texts: Iterable[str]) -> str:
    """Return the SHA-256 of the texts, each in UTF-8 with a line feed: the same for every file format."""
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode()).hexdigest()


def write(texts: Sequence[str], output: Path) -> None:
    """Write rows of `id` (its number as a string) and `text`: Parquet by its suffix, else JSONL."""
    rows = {"id": [str(number) for number in range(len(texts))], "text": list(texts)}
    if output.suffix == ".parquet":
        import pyarrow as pa  # noqa: PLC0415  (JSONL does not need it)
        import pyarrow.parquet as pq  # noqa: PLC0415  (nor this)

        pq.write_table(pa.table(rows), output)
        return
    with output.open("w", encoding="utf-8", newline="\n") as out:
        for one, text in zip(rows["id"], rows["text"], strict=True):
            out.write(json.dumps({"id": one, "text": text}, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the corpus and say on standard error what it is."""
    parser = argparse.ArgumentParser(description="Write English passages of mixed length to measure with.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="FILE.jsonl or FILE.parquet")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.output.suffix not in {".jsonl", ".parquet"}:
        parser.error("--output must end in .jsonl or .parquet")
    if chosen.count < 1:
        parser.error("--count must be at least 1")
    try:
        texts = passages(chosen.count, chosen.seed)
    except ValueError as error:
        parser.error(str(error))
    write(texts, chosen.output)
    tokens = sorted(token_counts(texts))
    sys.stderr.write(
        f"{len(texts)} texts, {len(set(texts))} distinct; tokens: median {statistics.median(tokens):.0f}, "
        f"p95 {tokens[int(0.95 * (len(tokens) - 1))]}, max {tokens[-1]}; "
        f"{100 * sum(one > 256 for one in tokens) / len(tokens):.1f} % beyond 256\n"
        f"SHA-256 of the texts {digest(texts)}\n"
    )


if __name__ == "__main__":
    main()
