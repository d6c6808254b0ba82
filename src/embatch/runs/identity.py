"""What makes two calls one run, and two submits one batch; what the first call decides for all later ones."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.client.client import Client
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import Wish
    from embatch.runs.sources import Source


def about(client: Client, source: Source, wish: Wish, block_rows: int) -> dict[str, object]:
    """Return what makes two calls the same run, as JSON."""
    return {
        "version": 1,
        "input": source.fingerprint(),
        "model": wish.model,
        "task type": wish.task_type and wish.task_type.value,
        "target": "embatch" if client.ours else "gemini",
        # A service of ours gives native vectors, whatever is written; elsewhere they come shortened.
        "dimensions": None if client.ours else max(wish.dimensions, default=None),
        "block rows": block_rows,
    }


def begun(source: Source, wish: Wish) -> dict[str, object]:
    """Return what the first call of a run decides for all later ones, as JSON."""
    return {
        # Two outputs of one input are two runs, and so is one that begins anew: they share no batch.
        "token": secrets.token_hex(8),
        # A part of each batch, and so of what its idempotency key stands for.
        "display name": wish.display_name or source.name,
        # What the fingerprint is of: a later call that gives another one hears what it is.
        "input": source.parts(),
    }


def batch_key(ledger: Ledger, number: int, priority: int, texts: Sequence[str], *, cache: bool) -> str:
    """Return the idempotency key of a block's batch: a digest of the run, what is embedded and how."""
    earlier = ledger.blocks.get(number)
    said = [ledger.about, number, priority, cache, earlier and earlier.part, *filter(None, [ledger.begun])]
    digest = hashlib.sha256(orjson.dumps(said))
    for text in texts:  # told apart by their lengths
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"run-{digest.hexdigest()}"
