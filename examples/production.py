"""A knowledge base in production: submit and remember, follow from elsewhere, retry what failed, search.

The batch's name goes into a database of your own (here SQLite), so the process that submits, the worker that
follows and the page that searches need not be the same, nor run at the same time.

    python examples/production.py --database kb.db                    # a private service on this machine
    python examples/production.py --database kb.db --target gemini    # Google's batch API; likewise vertex
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from embatch import Batch, BatchTimeout, Client, State
from embatch.vectors import normalize

if TYPE_CHECKING:
    from embatch import BatchResult

DOCUMENTS = {
    "guide": [
        "Submit a batch when nobody waits for the answer: indexing, migration, nightly refreshes.",
        "Ask interactively when a person waits: a search box, a chat.",
        "Keep the name of a batch: it is all you need to come back for its embeddings.",
    ],
    "operations": [
        "A batch that is not finished after two days expires; what was embedded by then stays readable.",
        "Killing the service loses nothing that was acknowledged; it goes on at the next start.",
        "Results are kept for thirty days and then deleted.",
    ],
    "pricing": [
        "Equal texts of a shard are computed once, so duplicates cost almost nothing.",
        "Fewer dimensions cost the same to compute and less to store and to search.",
    ],
    "mistakes": [
        "An empty text fails alone and tells why; the rest of its batch is not held up.",
        "",  # a hole in the data, as there always is one
    ],
}
QUESTION = "What happens to my work when the server crashes?"

SCHEMA = """
CREATE TABLE IF NOT EXISTS document (id INTEGER PRIMARY KEY, category TEXT, text TEXT, embedding BLOB);
CREATE TABLE IF NOT EXISTS embedding_job (batch TEXT PRIMARY KEY, state TEXT, submitted REAL);
"""


def submit(client: Client, database: sqlite3.Connection, priority: int = 0) -> str:
    """Store the documents, submit them as one batch, remember its name; return it."""
    rows = [(category, text) for category, texts in DOCUMENTS.items() for text in texts]
    database.executemany("INSERT INTO document (category, text) VALUES (?, ?)", rows)
    batch = client.async_batch_embed_contents(
        [text for _, text in rows],
        display_name=f"Knowledge base {time.strftime('%Y-%m-%d %H:%M:%S')}",
        task_type="RETRIEVAL_DOCUMENT",
        priority=priority,
    )
    database.execute("INSERT INTO embedding_job VALUES (?, ?, ?)", (batch.name, batch.state, time.time()))
    database.commit()
    return batch.name


def follow(client: Client, database: sqlite3.Connection, name: str) -> Batch:
    """Follow a batch that perhaps another process submitted; keep our own table up to date."""

    def remember(batch: Batch) -> None:
        database.execute("UPDATE embedding_job SET state = ? WHERE batch = ?", (batch.state, batch.name))
        database.commit()
        print(f"  {batch.state} {batch.batch_stats.progress_percentage:.0f} %")

    try:
        return client.await_batch_completion(name, on_progress=remember)
    except BatchTimeout:
        # The batch goes on without us: look once more, and let the next visit find it.
        return client.get_batch_status(name)


def mend(text: str) -> str:
    """Return what to embed in place of a text that failed; here, holes become a word."""
    return text.strip() or "(no text)"


def collect(client: Client, database: sqlite3.Connection, batch: Batch) -> BatchResult:
    """Fetch the embeddings, retry only what failed, store everything beside its document."""
    result = client.get_batch_embeddings(batch)
    texts = [row[0] for row in database.execute("SELECT text FROM document ORDER BY id")]
    print(f"  success rate {batch.batch_stats.success_rate:.1f} %")
    for index, error in result.failed_responses:
        print(f"  document {index + 1}: {error.message}")
    if result.failed_responses:
        again = client.retry_failed(
            batch, [mend(text) for text in texts], display_name="Knowledge base, mended"
        )
        again = client.await_batch_completion(again.name)
        result = result.fill(client.get_batch_embeddings(again))
    rows = [
        (normalize(one.values).tobytes(), document)
        for document, one in enumerate(result.embeddings, 1)
        if one is not None
    ]
    database.executemany("UPDATE document SET embedding = ? WHERE id = ?", rows)
    database.commit()
    return result


def search(
    client: Client, database: sqlite3.Connection, question: str, most: int = 3
) -> list[tuple[float, str]]:
    """Rank the stored documents by cosine similarity to a question, best first."""
    rows = database.execute("SELECT text, embedding FROM document WHERE embedding IS NOT NULL").fetchall()
    vectors = np.stack([np.frombuffer(blob, np.float32) for _, blob in rows])
    query = client.embed_content(question, task_type="RETRIEVAL_QUERY").normalize()
    scores = vectors @ query.values
    return [(float(scores[at]), rows[at][0]) for at in np.argsort(-scores)[:most]]


def main() -> None:
    """Run the four steps, each as if it were a process of its own."""
    parser = argparse.ArgumentParser(description="Index a small knowledge base and search it.")
    parser.add_argument("--database", default="knowledge.db")
    parser.add_argument("--target", default="local", help="local, a service's URL, gemini or vertex")
    parser.add_argument("--priority", type=int, default=0, help="higher runs first; Vertex has none")
    chosen = parser.parse_args()
    with closing(sqlite3.connect(chosen.database)) as database:
        database.executescript(SCHEMA)
        with Client(chosen.target) as client:
            print("1 submit and store")
            name = submit(client, database, chosen.priority)
            print(f"  {name}")
        with Client(chosen.target) as client:  # another process, later
            print("2 follow")
            batch = follow(client, database, name)
            if batch.state is not State.COMPLETED:
                print(f"  {batch.state}: come back later")
                return
            print("3 collect, retry what failed")
            result = collect(client, database, batch)
            stored = sum(one is not None for one in result.embeddings)
            print(f"  {stored} embeddings stored")
            print(f"4 search: {QUESTION}")
            for score, text in search(client, database, QUESTION):
                print(f"  {score:.3f}  {text}")


if __name__ == "__main__":
    main()
