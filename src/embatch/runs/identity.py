"""What makes two calls one run, and two submits one batch; what the first call decides for all later ones."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.batch import Request, TaskType
from embatch.client.base import target_of
from embatch.runs.locations import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from embatch.client.client import Client
    from embatch.client.providers.provider import Target
    from embatch.runs.ledger import Ledger
    from embatch.runs.options import EmbedOptions
    from embatch.runs.sources import Source


_TEXT: Final = "{text}"


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
        **(place_of(target) if hosted else {}),
    }


def place_of(target: Target) -> dict[str, object]:
    """Return whose batches a run's are, beside the provider's name, as JSON."""
    return {"base address": shown(target.url), **target.provider.account}


def provider_note(about: Mapping[str, object]) -> dict[str, object]:
    """Return where a run was embedded, for the output's metadata: the same in every call of the run."""
    known = ("base address", "project", "location")
    place = {name.replace(" ", "_"): about[name] for name in known if name in about}
    return {"v": 1, "name": about["target"], **place}


def request_note(client: Client, about: Mapping[str, object], model: str) -> dict[str, object]:
    """Return what was asked of the model, for the output's metadata: the same in every call of the run.

    `prompt` is what stands around each text where the task is written into it, `None` where it is not.
    """
    task = about["task type"]
    plain = Request(_TEXT, task_type=None if task is None else TaskType(str(task)))
    sent = target_of(client).provider.as_sent(model, plain).text
    return {"v": 1, "model": model, "task_type": task, "prompt": None if sent == _TEXT else sent}


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


def name_of(about: Mapping[str, object], begun: Mapping[str, object], place: str) -> str:
    """Return the name of a run, 32 characters: what its ledger says of it tells it from all others.

    `place`: of the output, for a ledger from before the first call's words were kept.
    """
    return hashlib.sha256(orjson.dumps([about, begun or place])).hexdigest()[:32]


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
