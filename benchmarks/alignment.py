"""What the check of vectors finds, and what it raises for nothing: by kind of text, of damage, and by rows.

    .venv/bin/python benchmarks/alignment.py [--batches 40] [--mixed-batches 200] [--vectors FILE.parquet]
        [--texts FILE.jsonl] [--ngrams] [--kinds de,fr] [--rows 3000] [--json FILE]

Texts are real and of this machine: passages of `corpus.py` (their first 32 words) and their beginnings as
titles, the messages of its programs in English (msgids) and as translated to German, French, Russian and
Japanese (`/usr/share/locale`; what is missing is left out, and said). Vectors are those of the default model
by our own engine; `--vectors` keeps them for the next time. Batches are draws of a kind's texts, and
overlap. Honest batches give what is raised for nothing. Damage is put into a batch before anything is
learned from it: ten single exchanges, each judged without the others' rows, and every other kind by itself.
The levels in
`thresholds.py` were fixed before, on other texts. Intervals are Wilson's, 95 %. `--ngrams` leaves the static
vectors out.
"""

from __future__ import annotations

import argparse
import gettext
import json
import math
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import passages
from benchmarks.served import LINGER

from embatch import Client
from embatch.runs.alignment.features import Features
from embatch.runs.alignment.fit import EarlierRows
from embatch.runs.alignment.ridge import leading
from embatch.runs.alignment.sampling import choose, equal_vectors
from embatch.runs.alignment.spool import Spool
from embatch.runs.alignment.survey import Survey, survey
from embatch.runs.alignment.thresholds import GAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

LOCALES: Final = Path("/usr/share/locale")
LANGUAGES: Final = {"de": 3600, "fr": 1500, "ru": 1200, "ja": 1000}
"""Texts of each at most: what a kind needs for its batches, or what a mixed batch takes of it."""
CALIBRATION: Final = ("passages",)
"""Kinds like those that the levels in `thresholds.py` come from."""
PAIRS: Final = 10
MIXED: Final = "mixed"


def texts_of_kinds() -> dict[str, list[str]]:
    """Return different texts of each kind that this machine has, in an order that stays."""
    read = list(dict.fromkeys(passages(8000)))[:7000]
    random = Random(3)
    others = [text for text in dict.fromkeys(passages(16000, 7)) if text not in set(read)]
    titles = dict.fromkeys(" ".join(text.split()[: random.randint(3, 9)]) for text in others)
    found = {
        "passages": [" ".join(text.split()[:32]) for text in read[:4000]],
        "messages": _messages("de", msgids=True)[:5000],
        "titles": list(titles)[:5000],
        **{language: _messages(language)[:most] for language, most in LANGUAGES.items()},
    }
    seen: set[str] = set()
    for kind, texts in found.items():
        found[kind] = [text for text in dict.fromkeys(texts) if text not in seen and len(text) <= 300]
        seen.update(found[kind])
    return {kind: texts for kind, texts in found.items() if texts}


def given_texts(path: Path) -> dict[str, list[str]]:
    """Return the texts of a file by their kinds, each text once."""
    found: dict[str, dict[str, None]] = {}
    for line in path.read_text("utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["kind"], {})[row["text"]] = None
    return {kind: list(texts) for kind, texts in found.items()}


def _messages(language: str, *, msgids: bool = False) -> list[str]:
    """Return what programs say in a language, or in English as it stands in the same files."""
    found: dict[str, None] = {}
    for path in sorted((LOCALES / language / "LC_MESSAGES").glob("*.mo")):
        try:
            with path.open("rb") as file:
                catalog = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]  # noqa: SLF001
        except (OSError, ValueError, UnicodeDecodeError):
            continue
        for key, said in catalog.items():
            text = (key[0] if isinstance(key, tuple) else key) if msgids else said
            line = " ".join(text.split()) if isinstance(text, str) else ""
            words = len(line) / 3 if language == "ja" and not msgids else len(line.split())
            if words >= 4 and len(line) < 1_200:
                found[line] = None
    texts = list(found)
    Random(1).shuffle(texts)
    return texts


def embedded(texts: Sequence[str], kept: Path | None) -> NDArray[np.float32]:
    """Return the vector of each text by the default model; those that are kept are not embedded again."""
    known: dict[str, Any] = {}
    if kept is not None and kept.exists():
        table = pq.read_table(kept)
        column: Any = table["vector"].combine_chunks()
        vectors = np.asarray(column.flatten()).reshape(table.num_rows, -1)
        rows: list[Any] = table["text"].to_pylist()
        known = dict(zip(rows, vectors, strict=True))
    missing = [text for text in texts if text not in known]
    if missing:
        os.environ[LINGER] = "2"
        with Client() as client:
            batch = client.async_batch_embed_contents(missing, display_name="alignment")
            batch = client.await_batch_completion(batch, poll_interval=1.0, timeout=math.inf)
            known |= dict(zip(missing, client.get_batch_embeddings(batch).to_numpy(), strict=True))
            client.delete_batch(batch)
        if kept is not None:
            flat = np.stack(list(known.values())).astype(np.float32)
            written = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
            pq.write_table(pa.table({"text": list(known), "vector": written}), kept)
    return np.stack([known[text] for text in texts]).astype(np.float32)


@dataclass
class Pool:
    """All texts, their features and vectors; a batch is a choice of them."""

    texts: list[str]
    features: NDArray[np.float32]
    vectors: NDArray[np.float32]

    def survey(
        self,
        rows: NDArray[np.intp],
        order: NDArray[np.intp] | None = None,
        earlier: EarlierRows | None = None,
    ) -> Survey:
        """Survey a batch; row i of it has the vector of row `order[i]`, or of a text elsewhere below zero."""
        vectors = self.vectors[rows]
        if order is not None:
            vectors = self.placed(rows, order)
        spool = Spool(self.features.shape[1])
        spool.append(self.features[rows])
        found = survey(spool, vectors, earlier)
        if found is None:
            raise ValueError(f"rows: {len(rows)} are too few to judge each other")
        return found

    def placed(self, rows: NDArray[np.intp], order: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the vectors of a batch in another order, or from elsewhere."""
        return self.vectors[np.where(order >= 0, rows[np.maximum(order, 0)], -order - 1)]

    def kept(self, rows: NDArray[np.intp]) -> EarlierRows:
        """Return rows as they are kept for later batches."""
        return EarlierRows(
            self.features[rows].astype(np.float16), leading(self.vectors[rows]).astype(np.float16)
        )


@dataclass
class Found:
    """What was counted for one kind of text and one number of rows."""

    honest: int = 0
    medians: list[float] = field(default_factory=list)
    guards: list[float] = field(default_factory=list)
    alarms: dict[str, int] = field(default_factory=dict)
    gains: list[float] = field(default_factory=list)
    """The largest of each honest batch."""
    lowest: list[float] = field(default_factory=list)
    pairs: int = 0
    by_gain: int = 0
    by_calls: dict[int, int] = field(default_factory=dict)
    damages: dict[str, list[int]] = field(default_factory=dict)
    """By kind: batches, alarmed ones, and ones of which ten calls met a damaged row."""
    seconds: float = 0.0


def damages(count: int, pool: int, random: np.random.Generator) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Yield each kind of damage to a batch: the row, or place in the pool, whose vector each row has."""

    def moved(rows: NDArray[np.intp], to: NDArray[np.intp]) -> NDArray[np.intp]:
        order = np.arange(count)
        order[rows] = to
        return order

    some = random.permutation(count)[: count // 100]
    yield "1 % exchanged", moved(some, np.roll(some, 1))
    first = int(random.integers(0, count - count // 30))
    block = np.arange(first, first + count // 30)
    yield "shifted by one, a thirtieth", moved(block, np.roll(block, 1))
    yield "reversed, 20 rows", moved(block[:20], block[:20][::-1])
    yield "shuffled, 20 rows", moved(block[:20], random.permutation(block[:20]))
    yield "everything shuffled", random.permutation(count)
    yield "one vector in 1 %", moved(some, np.full(len(some), some[0]))
    yield "1 % of other texts", moved(some, -1 - random.integers(0, pool, len(some)))


def measure(
    pool: Pool,
    rows: Callable[[np.random.Generator], NDArray[np.intp]],
    batches: int,
    options: argparse.Namespace,
) -> Found:
    """Judge honest and damaged batches of one kind."""
    damaged: int = options.damaged
    earlier: int = options.earlier
    found, random = Found(), np.random.default_rng(17)
    began = time.process_time()
    for number in range(batches):
        chosen = rows(random)
        before = pool.kept(chosen[-earlier:]) if earlier else None
        own = chosen[: len(chosen) - earlier]
        honest = pool.survey(own, earlier=before)
        found.honest += 1
        found.medians.append(honest.median)
        found.guards.append(honest.guard)
        found.gains.append(float(honest.gain.max()))
        found.lowest.append(float(honest.z.min()))
        for alarm in honest.alarms:
            found.alarms[alarm] = found.alarms.get(alarm, 0) + 1
        if number < damaged:
            exchanges(pool, own, before, found, random)
        if number < options.ways:
            for kind, order in damages(len(own), len(pool.texts), random):
                other(pool, own, before, found, (kind, order))
    found.seconds = time.process_time() - began
    return found


def exchanges(
    pool: Pool, rows: NDArray[np.intp], before: EarlierRows | None, found: Found, random: np.random.Generator
) -> None:
    """Exchange some pairs at once, and judge each as if it were the only one."""
    chosen = random.permutation(len(rows))[: 2 * PAIRS].reshape(PAIRS, 2)
    order = np.arange(len(rows))
    order[chosen[:, 0]], order[chosen[:, 1]] = chosen[:, 1], chosen[:, 0]
    judged = pool.survey(rows, order, before)
    for pair in chosen:
        others = np.setdiff1d(chosen.ravel(), pair)
        z, gain = judged.z.copy(), judged.gain.copy()
        z[others], gain[others] = 9.0, -np.inf
        alone = replace(judged, z=z, gain=gain)
        found.pairs += 1
        found.by_gain += bool((gain[pair] > GAIN).any())
        for calls in (2, 4, 10, 30):
            met = not set(choose(len(rows), calls, alone, seed=int(pair[0]))).isdisjoint(pair.tolist())
            found.by_calls[calls] = found.by_calls.get(calls, 0) + met


def other(
    pool: Pool,
    rows: NDArray[np.intp],
    before: EarlierRows | None,
    found: Found,
    damage: tuple[str, NDArray[np.intp]],
) -> None:
    """Judge a batch with another damage; a repeat is also told by equal vectors."""
    kind, order = damage
    judged = pool.survey(rows, order, before)
    equal = equal_vectors(pool.placed(rows, order), [pool.texts[row] for row in rows.tolist()])
    bad = set(np.flatnonzero(order != np.arange(len(rows))).tolist())
    chosen = choose(len(rows), 10, judged, equal)
    counted = found.damages.setdefault(kind, [0, 0, 0])
    counted[0] += 1
    counted[1] += bool(judged.alarms)
    counted[2] += any(row in bad for row in chosen)


def interval(hits: int, count: int) -> str:
    """Return a share with its interval after Wilson, 95 %."""
    if not count:
        return "-"
    z, share = 1.96, hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return f"{hits}/{count} ({max(0.0, middle - half):.1%} to {min(1.0, middle + half):.1%})"


def shown(name: str, rows: int, earlier: int, found: Found) -> None:
    """Print what was counted."""
    beside = f" beside {earlier:,} earlier" if earlier else ""
    chosen = " (levels come from texts like these)" if name in CALIBRATION else ""
    print(f"\n{name}{chosen}, {rows:,} rows{beside}: {found.honest} honest, {found.seconds:.0f} s of CPU")
    print(
        f"  median z {min(found.medians):.2f} to {max(found.medians):.2f}, "
        f"shuffled {min(found.guards):+.2f} to {max(found.guards):+.2f}; "
        f"lowest z {min(found.lowest):.2f}; largest gain {max(found.gains):.2f}"
    )
    raised = ", ".join(f"{name} {count}" for name, count in sorted(found.alarms.items())) or "none"
    print(f"  looked at for nothing (an alarm that calls refuted): {raised}")
    print(f"  exchanged pairs by gain alone: {interval(found.by_gain, found.pairs)}")
    for calls, hits in sorted(found.by_calls.items()):
        print(f"  exchanged pairs met by {calls} calls: {interval(hits, found.pairs)}")
    for kind, (count, alarmed, met) in found.damages.items():
        print(f"  {kind}: alarmed {alarmed}/{count}, met by 10 calls {met}/{count}")
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=20, help="honest batches of each kind")
    parser.add_argument("--mixed-batches", type=int, default=200, help="of all kinds together")
    parser.add_argument("--damaged", type=int, default=8, help="of them in which pairs are exchanged, too")
    parser.add_argument(
        "--ways", type=int, default=3, help="of them that are damaged in every other way, too"
    )
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--earlier", type=int, default=0, help="verified rows beside those of a batch")
    parser.add_argument("--kinds", help="only these, by comma")
    parser.add_argument("--texts", type=Path, help="JSONL of kind and text in place of this machine's")
    parser.add_argument("--vectors", type=Path, help="Parquet file that keeps the vectors")
    parser.add_argument("--ngrams", action="store_true", help="without static vectors")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kinds = texts_of_kinds() if options.texts is None else given_texts(options.texts)
    if options.texts is None and (missing := set(LANGUAGES) - kinds.keys()):
        print(f"not on this machine: {', '.join(sorted(missing))}")
    texts = [text for kind in kinds.values() for text in kind]
    of_kind = np.repeat(np.arange(len(kinds)), [len(kind) for kind in kinds.values()])
    features = Features(None) if options.ngrams else Features.installed()
    began = time.process_time()
    pool = Pool(texts, features.of(texts), embedded(texts, options.vectors))
    print(f"{len(texts):,} texts ({', '.join(f'{kind} {len(one):,}' for kind, one in kinds.items())})")
    print(
        f"{features.name}, {1e3 * (time.process_time() - began) / len(texts):.2f} ms of CPU a text",
        flush=True,
    )
    wanted = options.kinds.split(",") if options.kinds else [MIXED, *kinds]
    report: dict[str, Any] = {}
    for name in wanted:
        mine = np.flatnonzero(of_kind == list(kinds).index(name)) if name != MIXED else np.arange(len(texts))
        size = options.rows + options.earlier
        if len(mine) < size:
            print(f"\n{name}: {len(mine):,} texts are too few for {size:,} rows")
            continue
        batches = options.mixed_batches if name == MIXED else options.batches

        def draw(
            random: np.random.Generator, mine: NDArray[np.intp] = mine, size: int = size
        ) -> NDArray[np.intp]:
            return random.permutation(mine)[:size]

        found = measure(pool, draw, batches, options)
        shown(name, options.rows, options.earlier, found)
        report[name] = vars(found)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
