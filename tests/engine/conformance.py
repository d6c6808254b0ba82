"""What every engine must pass: plain functions of an engine and a tolerance, the least cosine that is "same".

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check, engine):
        check(engine, 0.9999)

`CHECKS` hold for every engine; `check_references` for those that run all-MiniLM-L6-v2.
"""

from __future__ import annotations

import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from embatch.engine.packing import MicroBatch, distinct, plan
from embatch.engine.protocol import Shape
from embatch.vectors import cosine, norm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from embatch.engine.protocol import Engine

REFERENCES: Final = Path(__file__).parent / "references"
BUDGET: Final = 2048
TEXTS: Final = (
    "A batch is what a user submits and awaits.",
    "The engine turns texts into vectors.",
    "Rain fell on the tin roof all night, and by morning the river had taken the lower field.",
    "no",
    "Compute the inverse of a matrix by Gauss-Jordan elimination with partial pivoting; raise if singular. "
    * 4,
    "The engine turns texts into vectors.",
    "Which city is the capital of France?",
)
UNICODE: Final = {
    "composed": unicodedata.normalize("NFC", "Crème brûlée in Zürich, façade, 한국어"),
    "decomposed": unicodedata.normalize("NFD", "Crème brûlée in Zürich, façade, 한국어"),
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 😀 to the moon 🚀",
    "nul": "before\x00after",
    "controls": "tab\tnewline\nreturn\r\nbell\x07 vertical\x0b",
    "right to left": "שלום עולם \u202emirrored\u202c مرحبا",
    "han": "自然言語処理は面白い。中文分词也很有趣。",
    "marks": "Z̸̡̡̛a̵̢̕l̶̢̛g̸̨͝o̴̢͝" * 3,
    "beyond the first plane": "\U0001d518\U0001d52b\U0001d526 𐍈 𒀀",
    "not a character": "\ufffe \uffff \ufeff",
    "special tokens": "[CLS] [SEP] [PAD] [MASK] <s> </s> <pad> <|endoftext|>",
    "spaces only": " \u00a0\u3000\u200b ",
}


def embed(engine: Engine, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of all texts, in order, planned and run as the service does with a shard."""
    about = engine.describe()
    apart = distinct(texts)
    encoded = engine.encode(apart.texts)
    vectors = np.full((len(apart.texts), about.dimensions), np.nan, np.float32)

    def forward(part: MicroBatch) -> None:
        vectors[list(part.rows)] = engine.forward([encoded.rows[row] for row in part.rows], part.shape)

    with ThreadPoolExecutor(about.streams) as streams:
        list(streams.map(forward, plan(encoded.lengths.tolist(), BUDGET, about)))
    return vectors[list(apart.of)]


def check_description(engine: Engine, tolerance: float) -> None:
    """Every field says something usable."""
    about = engine.describe()
    assert about == engine.describe()
    assert about.engine
    assert about.model
    assert about.identity
    assert about.dimensions >= 1
    assert about.max_tokens >= 1
    assert about.precision in {"f32", "bf16"}
    assert about.streams >= 1
    assert about.multiple >= 1
    assert all(isinstance(prompt, str) for prompt in about.prompts.values())


def check_empty(engine: Engine, tolerance: float) -> None:
    """An empty list encodes to nothing and forwards to nothing."""
    encoded = engine.encode([])
    assert len(encoded.rows) == len(encoded.lengths) == len(encoded.truncated) == 0
    assert engine.forward([], Shape(2, 16)).shape == (0, engine.describe().dimensions)


def check_encoding(engine: Engine, tolerance: float) -> None:
    """One row, length and flag a text; lengths within the limit, short texts not flagged."""
    encoded = engine.encode(TEXTS)
    assert len(encoded.rows) == len(TEXTS)
    assert encoded.lengths.shape == encoded.truncated.shape == (len(TEXTS),)
    assert encoded.lengths.dtype == np.int32
    assert encoded.truncated.dtype == np.bool_
    assert (encoded.lengths >= 1).all()
    assert (encoded.lengths <= engine.describe().max_tokens).all()
    assert encoded.lengths[3] < encoded.lengths[2] < encoded.lengths[4]
    assert not encoded.truncated[[0, 1, 2, 3, 5, 6]].any()


def check_vectors(engine: Engine, tolerance: float) -> None:
    """Vectors are finite float32 of the described size, and of length 1 where that is described."""
    about = engine.describe()
    vectors = embed(engine, TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), about.dimensions)
    assert np.isfinite(vectors).all()
    assert (norm(vectors) > 0).all()
    if about.normalized:
        np.testing.assert_allclose(norm(vectors), 1, atol=1e-3)


def check_order(engine: Engine, tolerance: float) -> None:
    """Vector i is text i's, whatever stands before and after it; different texts differ."""
    together = embed(engine, TEXTS)
    backwards = embed(engine, TEXTS[::-1])[::-1]
    alone = np.concatenate([embed(engine, [text]) for text in TEXTS])
    assert cosine(together, backwards).min() >= tolerance
    assert cosine(together, alone).min() >= tolerance
    assert cosine(together[0], together[2]) < tolerance
    assert together[1].tobytes() == together[5].tobytes()


def check_same_plan_same_bytes(engine: Engine, tolerance: float) -> None:
    """The same texts planned the same way give the same bytes, every time and in any thread."""
    texts = [*TEXTS, *UNICODE.values()]
    first = embed(engine, texts).tobytes()
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: embed(engine, texts).tobytes(), range(4)))
    assert again == [first] * 4


def check_company(engine: Engine, tolerance: float) -> None:
    """In one planned shape a row has the same bytes whoever stands beside it, and if nobody does."""
    encoded = engine.encode(list(UNICODE.values()))
    shape = Shape(len(encoded.rows), int(encoded.lengths.max()))
    all_rows = engine.forward(encoded.rows, shape)
    for place, row in enumerate(encoded.rows):
        assert engine.forward([row], shape).tobytes() == all_rows[place].tobytes()
    halves = [engine.forward(rows, shape) for rows in (encoded.rows[:5], encoded.rows[5:])]
    assert np.concatenate(halves).tobytes() == all_rows.tobytes()
    shuffled = np.random.default_rng(3).permutation(len(encoded.rows))
    moved = engine.forward([encoded.rows[row] for row in shuffled], shape)
    assert moved.tobytes() == all_rows[shuffled].tobytes()


def check_padding(engine: Engine, tolerance: float) -> None:
    """A longer or wider planned shape changes nothing that counts."""
    encoded = engine.encode(TEXTS[:3])
    longest = int(encoded.lengths.max())
    tight = engine.forward(encoded.rows, Shape(3, longest))
    loose = engine.forward(encoded.rows, Shape(9, min(2 * longest + 5, engine.describe().max_tokens)))
    assert cosine(tight, loose).min() >= tolerance


def check_unicode(engine: Engine, tolerance: float) -> None:
    """Every sort of text has its vector; none disturbs its neighbour."""
    plain = embed(engine, TEXTS[:1])
    vectors = embed(engine, [*UNICODE.values(), TEXTS[0]])
    assert np.isfinite(vectors).all()
    assert cosine(vectors[-1], plain[0]) >= tolerance


def check_long_texts(engine: Engine, tolerance: float) -> None:
    """Texts too long are cut, flagged, and equal to their beginning; a megabyte is no work."""
    limit = engine.describe().max_tokens
    words = "river stone window paper garden letter mountain winter " * limit
    long = [
        words,
        words + "and a different end",
        "a" * 1_000_000,  # one single word
        "\u0301" * 1_000_000,  # nothing but combining marks
        "👩‍👩‍👧‍👦" * 100_000,
    ]
    encoded = engine.encode(long)
    assert encoded.truncated.all()
    assert (encoded.lengths <= limit).all()
    vectors = embed(engine, long)
    assert np.isfinite(vectors).all()
    assert vectors[0].tobytes() == vectors[1].tobytes()


def check_streams(engine: Engine, tolerance: float) -> None:
    """As many calls at once as described give what one at a time gives."""
    encoded = engine.encode(TEXTS)
    shape = Shape(1, int(encoded.lengths.max()))
    one_by_one = [engine.forward([row], shape).tobytes() for row in encoded.rows]
    with ThreadPoolExecutor(2 * engine.describe().streams) as pool:
        at_once = pool.map(lambda row: engine.forward([row], shape).tobytes(), encoded.rows)
    assert list(at_once) == one_by_one


CHECKS: Final[tuple[Callable[[Engine, float], None], ...]] = (
    check_description,
    check_empty,
    check_encoding,
    check_vectors,
    check_order,
    check_same_plan_same_bytes,
    check_company,
    check_padding,
    check_unicode,
    check_long_texts,
    check_streams,
)


def check_references(engine: Engine, tolerance: float) -> None:
    """Real passages have the vectors sentence-transformers computed in float32; see `references/make.py`."""
    lines = (REFERENCES / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    expected = np.load(REFERENCES / "vectors.npy")
    assert len(lines) == len(expected) >= 500
    vectors = embed(engine, [json.loads(line)["text"] for line in lines])
    cosines = cosine(vectors, expected)
    assert cosines.min() >= tolerance, f"least cosine {cosines.min()}, mean {cosines.mean()}"
