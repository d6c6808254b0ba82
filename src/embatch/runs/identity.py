"""What makes two calls one run, and two submits one batch; what the first call decides for all later ones."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any

import orjson

from embatch.client.base import target_of
from embatch.runs.locations import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.client.client import Client
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.sources import Source


def about(client: Client, source: Source, embed_options: EmbedOptions, block_rows: int) -> dict[str, object]:
    """Return what makes two calls the same run, as JSON."""
    target = target_of(client)
    provider = target.provider
    native = provider.capabilities.native_results
    # Where batches are known by their keys it is one service, whatever leads there.
    hosted = not provider.capabilities.idempotency_keys
    return {
        "version": 2,
        "input": source.fingerprint(),
        "model": embed_options.model,
        "task type": embed_options.task_type and embed_options.task_type.value,
        "target": provider.name,
        # Where results are native, they are whatever is written; elsewhere they come shortened.
        "dimensions": None if native else max(embed_options.dimensions, default=None),
        "block rows": block_rows,
        **({"base address": shown(target.url), **provider.account} if hosted else {}),
    }


def begun(client: Client, source: Source, embed_options: EmbedOptions, block_bytes: int) -> dict[str, object]:
    """Return what the first call of a run decides for all later ones, as JSON."""
    salt = secrets.token_hex(16)
    return {
        # Two outputs of one input are two runs, and so is one that begins anew: they share no batch.
        "token": secrets.token_hex(8),
        # A part of each batch, and so of what its idempotency key stands for.
        "display name": embed_options.display_name or source.name,
        # What the fingerprint is of: a later call that gives another one hears what it is.
        "input": source.parts(),
        # Where it lies, for people: a digest tells them nothing.
        "place": shown(source.place),
        "block bytes": block_bytes,
        # Tells whether a later call has the same key, and nothing of the key itself.
        "key": {"salt": salt, "digest": _digest(salt, target_of(client).key)},
    }


def same_key(client: Client, begun: Mapping[str, Any]) -> bool:
    """Return whether a call has the key of the call that began the run; a ledger that does not say has."""
    key = begun.get("key")
    return key is None or key["digest"] == _digest(key["salt"], target_of(client).key)


def _digest(salt: str, key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(f"{salt}:{key}".encode()).hexdigest()[:32]


def differences(
    then: Mapping[str, object],
    now: Mapping[str, object],
    begun: Mapping[str, object],
    beginning: Mapping[str, object],
) -> list[str]:
    """Return what makes two calls different runs: each by its name, with what it was and what it is.

    Args:
        then: `about` of the first call.
        now: `about` of this one.
        begun: what the first call decided; empty in a ledger from before that was kept.
        beginning: what this call would have decided in its place.
    """
    found: list[str] = []
    for name in dict.fromkeys([*now, *then]):
        if name in then and name in now and then[name] == now[name]:
            continue
        changed = {name: (then.get(name), now.get(name))}
        was, has = begun.get(name), beginning.get(name)
        if isinstance(was, dict) and isinstance(has, dict):  # what it consists of says more
            parts = {part: (was.get(part), has[part]) for part in has if was.get(part) != has[part]}
            changed = parts or changed
        if "input" in changed:
            changed["input"] = (begun.get("place"), beginning.get("place"))
        found += [name + _change(name, *values) for name, values in changed.items()]
    return found


def _change(name: str, then: object, now: object) -> str:
    if name == "input":
        if then is None:  # a ledger from before the place was kept
            return ""
        return f" ({then} has changed since)" if then == now else f" ({then} then, {now} now)"
    return f" ({'none' if then is None else then} then, {'none' if now is None else now} now)"


def batch_key(ledger: Ledger, number: int, priority: int, texts: Sequence[str], *, cache: bool) -> str:
    """Return the idempotency key of a block's batch: a digest of the run, what is embedded and how."""
    earlier = ledger.blocks.get(number)
    said = [ledger.about, number, priority, cache, earlier and earlier.part, *filter(None, [ledger.begun])]
    digest = hashlib.sha256(orjson.dumps(said))
    for text in texts:  # told apart by their lengths
        content = text.encode(errors="surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"run-{digest.hexdigest()}"
