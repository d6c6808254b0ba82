"""The main job on real input: a real model embeds a real corpus as an asynchronous batch.

Started by `python3 run.py demo`. It makes the corpus (`corpus.py`), submits it to a private service that it
starts by itself, follows it, says what it cost against asking one by one, and answers a few questions by
nearest neighbours.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from corpus import Passage, passages

from embatch import Batch, Client
from embatch.cli.display import Display, seconds_words
from embatch.client.cpu_time import service_cpu_seconds

if TYPE_CHECKING:
    from embatch.vectors import Vectors

SAMPLE = 150
QUESTIONS = (
    "How do I run a function in another process and get its result?",
    "compress a file",
    "What parses dates and times from text?",
    "send an e-mail message over the network",
)


@dataclass(frozen=True, slots=True)
class Cost:
    """What embedding some texts took."""

    seconds: float
    cpu_seconds: float | None
    """Of the whole service; `None` where the system does not tell."""
    texts: int

    def per_thousand(self, *, cpu: bool) -> float | None:
        """Return seconds a thousand texts."""
        spent = self.cpu_seconds if cpu else self.seconds
        return None if spent is None else 1000 * spent / self.texts


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Embed a real corpus as an asynchronous batch.")
    parser.add_argument("--count", type=int, default=3000, help="passages to embed")
    parser.add_argument("--data", type=Path, help="data folder; the usual one by default")
    chosen = parser.parse_args()

    corpus = passages(chosen.count)
    words = sum(len(one.text.split()) for one in corpus)
    print(f"corpus    {len(corpus)} passages of the standard library's documentation, {words} words")
    with Client(data=chosen.data) as client:
        one_by_one(client, corpus[:8])  # load the query engine
        batch, vectors, in_batch = as_batch(client, corpus)
        compare(in_batch, one_by_one(client, corpus[:: max(1, len(corpus) // SAMPLE)]))
        answer(client, corpus, vectors)
        client.delete_batch(batch.name)


def as_batch(client: Client, corpus: list[Passage]) -> tuple[Batch, Vectors, Cost]:
    """Embed the corpus as one batch; return it, its vectors and its cost."""
    texts = [one.text for one in corpus]
    # The first text loads the bulk engine: what is measured below is embedding.
    warm = client.async_batch_embed_contents(texts[:1], display_name="warm up")
    client.delete_batch(client.await_batch_completion(warm.name, poll_interval=0.1).name)
    begun, spent = time.monotonic(), service_cpu_seconds(client)
    with Display() as display:
        batch = client.async_batch_embed_contents(
            texts, display_name="Standard library", task_type="RETRIEVAL_DOCUMENT"
        )
        print(f"submitted {batch.name}, {batch.state}")
        batch = client.await_batch_completion(batch.name, poll_interval=0.25, on_progress=display.batch)
    seconds = time.monotonic() - begun
    cpu = service_cpu_seconds(client)
    stats = batch.batch_stats
    print(f"finished  {batch.state}: {stats.successful_request_count} of {stats.request_count} embedded, "
          f"{stats.failed_request_count} failed, {seconds_words(seconds)}, "
          f"{stats.request_count / seconds:.0f} texts/s")  # fmt: skip
    for note in batch.notes:
        print(f"note      {note}")
    result = client.get_batch_embeddings(batch)
    cost = Cost(seconds, None if cpu is None or spent is None else cpu - spent, len(corpus))
    return batch, result.to_numpy(), cost


def one_by_one(client: Client, sample: list[Passage]) -> Cost:
    """Embed texts one request at a time, each waiting for the one before, as interactive code does."""
    begun, spent = time.monotonic(), service_cpu_seconds(client)
    for passage in sample:
        client.embed_content(passage.text)
    cpu = service_cpu_seconds(client)
    return Cost(time.monotonic() - begun, None if cpu is None or spent is None else cpu - spent, len(sample))


def compare(batch: Cost, single: Cost) -> None:
    """Print what a thousand texts cost both ways, on this machine, just now."""
    for name, cpu in (("seconds", False), ("CPU seconds", True)):
        ours, theirs = batch.per_thousand(cpu=cpu), single.per_thousand(cpu=cpu)
        if ours and theirs:
            print(f"cost      {name} per 1,000 texts: {ours:.1f} as a batch, {theirs:.1f} one by one "
                  f"({single.texts} asked), {theirs / ours:.1f} times as much")  # fmt: skip


def answer(client: Client, corpus: list[Passage], vectors: Vectors) -> None:
    """Find the nearest passages to a few questions."""
    for question in QUESTIONS:
        query = client.embed_content(question, task_type="RETRIEVAL_QUERY")
        scores = vectors @ query.values
        print(f"\n? {question}")
        for at in map(int, np.argsort(-scores)[:3]):
            text = corpus[at].text
            print(f"  {scores[at]:.2f}  {corpus[at].id}: {text[:110]}{'…' if len(text) > 110 else ''}")


if __name__ == "__main__":
    main()
