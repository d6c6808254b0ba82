"""What fewer dimensions and smaller numbers cost: storage exactly, quality as neighbours still found.

    .venv/bin/python benchmarks/dimensions.py [--count 3000] [--queries 300] [--json FILE]

Embeds distinct passages of the benchmarks' corpus with the default model, takes some of them as queries, and
asks of every size and form how many of the ten nearest in native float32 are among its ten nearest. The
nearest of a cut vector are found by cosine after normalising again, those of bits by Hamming distance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.corpus import passages
from benchmarks.served import LINGER

from embatch import Client
from embatch.dtypes import Dtype, dequantize, quantize
from embatch.vectors import normalize, truncate

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAREST: Final = 10
SIZES: Final = (384, 256, 192, 128, 64, 32)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=3000, help="passages that are searched")
    parser.add_argument("--queries", type=int, default=300, help="passages that are asked for")
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    texts = list(dict.fromkeys(passages(round((options.count + options.queries) * 1.1))))
    texts = texts[: options.count + options.queries]
    os.environ[LINGER] = "2"
    with Client() as client:
        batch = client.async_batch_embed_contents(texts, display_name="dimensions")
        batch = client.await_batch_completion(batch, poll_interval=1.0)
        vectors = client.get_batch_embeddings(batch).to_numpy()
        client.delete_batch(batch)
    queries, found = vectors[: options.queries], vectors[options.queries :]
    true = _nearest(queries, found)
    rows: list[dict[str, Any]] = []
    for size in (one for one in SIZES if one <= vectors.shape[1]):
        for numbers in Dtype:
            forms = [_form(part, size, numbers) for part in (queries, found)]
            overlap = _overlap(_nearest(*forms), true)
            width = numbers.width(size) * numbers.numpy.itemsize + (4 if numbers is Dtype.INT8 else 0)
            rows.append({"dimensions": size, "numbers": numbers.value, "bytes": width, "overlap": overlap})
    print(f"{batch.model}, {len(queries)} queries, {len(found)} passages, ten nearest of native float32")
    print("dimensions  numbers   bytes  GB for 1e6  share of native  neighbours kept")
    native = rows[0]["bytes"]
    for row in rows:
        print(
            f"{row['dimensions']:10}  {row['numbers']:8}  {row['bytes']:5}  {row['bytes'] / 1e3:10.3f}  "
            f"{row['bytes'] / native:15.1%}  {row['overlap']:15.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def _form(vectors: NDArray[np.float32], size: int, numbers: Dtype) -> NDArray[np.float32]:
    """Return vectors as a form says them. The order by dot product of signs is that by Hamming distance."""
    values, scales = quantize(truncate(vectors, size), numbers)
    return normalize(dequantize(values, scales, numbers, size))


def _nearest(queries: NDArray[np.float32], found: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.argsort(-(queries @ found.T), axis=1, kind="stable")[:, :NEAREST]


def _overlap(mine: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    shares = [len(set(a) & set(b)) / NEAREST for a, b in zip(mine.tolist(), true.tolist(), strict=True)]
    return float(np.mean(shares))


if __name__ == "__main__":
    main()
