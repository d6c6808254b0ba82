"""The whole workflow on ten texts: submit, follow, fetch, compare, and what the vectors cost to keep.

python examples/quickstart.py                     # a private service on this machine
python examples/quickstart.py --target gemini     # Google's batch API; GEMINI_API_KEY or GOOGLE_API_KEY
python examples/quickstart.py --target vertex     # Vertex AI; GOOGLE_CLOUD_PROJECT, EMBATCH_STAGING=gs://bucket
"""

from __future__ import annotations

import argparse
import time

from embatch import Batch, Client

TEXTS = [
    "Machine learning finds patterns in data instead of following rules that somebody wrote down.",
    "A neural network is a stack of simple functions whose weights are fitted to examples.",
    "Retrieval-augmented generation looks up passages first and lets a model answer from them.",
    "Embeddings place texts in a space where near means alike.",
    "A vector index answers nearest-neighbour questions without comparing everything with everything.",
    "The Rhine rises in the Swiss Alps and reaches the North Sea near Rotterdam.",
    "Sourdough needs flour, water, salt, and the patience of a day.",
    "A bicycle stays upright because steering moves the wheels under the rider.",
    "Batch processing trades an answer now for a cheaper answer later.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
]


def main() -> None:
    """Run the workflow against the chosen target."""
    parser = argparse.ArgumentParser(description="Embed ten texts as an asynchronous batch.")
    parser.add_argument("--target", default="local", help="local, a service's URL, gemini or vertex")
    parser.add_argument(
        "--dimensions", type=int, help="leading dimensions wanted; the native number by default"
    )
    chosen = parser.parse_args()

    with Client(chosen.target) as client:
        batch = client.async_batch_embed_contents(
            TEXTS,
            display_name=f"Quick start {time.strftime('%Y-%m-%d %H:%M')}",
            task_type="RETRIEVAL_DOCUMENT",
            output_dimensionality=chosen.dimensions,
        )
        print(f"submitted  {batch.name}, {batch.state}")
        batch = client.await_batch_completion(batch.name, on_progress=show)
        stats = batch.batch_stats
        done, failed = stats.successful_request_count, stats.failed_request_count
        print(f"finished   {batch.state}: {done} of {stats.request_count} embedded, {failed} failed")
        result = client.get_batch_embeddings(batch)

    first, second, river = result.embeddings[0], result.embeddings[1], result.embeddings[5]
    assert first is not None and second is not None and river is not None  # noqa: S101, PT018  (none failed)
    print(f"dimensions {first.dimensionality}, length {first.norm:.4f}")
    print(f"alike      {first.cosine_similarity(second):.3f}  machine learning and neural networks")
    print(f"unlike     {first.cosine_similarity(river):.3f}  machine learning and the Rhine")

    native = first.dimensionality
    print("storage    of a million vectors as float32:")
    for dimensions in sorted({native, native * 2 // 3, native // 3}, reverse=True):
        share = dimensions / native
        print(f"           {dimensions:5d} dimensions {dimensions * 4 / 1000:6.2f} GB, {share:.0%}")


def show(batch: Batch) -> None:
    """Print one line a poll."""
    print(f"progress   {batch.state} {batch.batch_stats.progress_percentage:.0f} %")


if __name__ == "__main__":
    main()
