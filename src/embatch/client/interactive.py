"""What a target answers at once, as flows: embeddings for somebody who waits, the reference path, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from embatch.client import arguments
from embatch.client import payload as payloads
from embatch.client.calls import SLOW, Call
from embatch.client.flows import JSON, default_request
from embatch.client.models import model_path, not_served, service_path
from embatch.client.retry import send
from embatch.errors import Internal, InvalidArgument, NotFound, Reason
from embatch.jsontext import encodable
from embatch.wire.gemini import read_responses, write_requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embatch.batch import Request
    from embatch.client.calls import Flow, Reply
    from embatch.client.flows import RequestDefaults
    from embatch.client.retry import Session
    from embatch.vectors import ContentEmbedding


_COUNTED: Final = 1000
"""Texts of one call that counts tokens."""


def embed(
    session: Session, text: str, title: str | None, defaults: RequestDefaults
) -> Flow[ContentEmbedding]:
    """Embed one text now."""
    like = default_request(defaults)
    request = replace(like, text=_sayable("text", text), title=arguments.optional_text("title", title))
    reply = yield from _embed(
        session, defaults, "embedContent", lambda model: write_requests.embed_body(model, request)
    )
    return read_responses.parse_embedding(reply.body)


def embed_many(
    session: Session, requests: Iterable[str | Request], defaults: RequestDefaults
) -> Flow[list[ContentEmbedding]]:
    """Embed a few texts now, as many a call as the target takes."""
    found: list[ContentEmbedding] = []
    for block in payloads.blocks(requests, default_request(defaults), session.target.interactive_requests):
        for at, one in enumerate(block):
            _sayable(f"requests[{len(found) + at}]", one.text)
        encode = partial(write_requests.embed_many_body, requests=block)
        reply = yield from _embed(session, defaults, "batchEmbedContents", encode)
        part = read_responses.parse_embeddings(reply.body)
        if len(part) != len(block):
            raise Internal(f"{len(block)} texts came back as {len(part)} embeddings: none can be matched")
        found += part
    return found


def reference(
    session: Session, texts: Sequence[str], defaults: RequestDefaults
) -> Flow[read_responses.Reference | None]:
    """Embed a few texts by the service's reference path; `None`: the target has none."""
    if not session.target.ours:
        return None
    like = default_request(defaults)
    requests = [replace(like, text=_sayable(f"texts[{at}]", text)) for at, text in enumerate(_listed(texts))]
    encode = partial(write_requests.embed_many_body, requests=requests)
    return read_responses.parse_reference(
        (yield from _embed(session, defaults, "embedReference", encode)).body
    )


def publish(session: Session, run: str) -> Flow[int]:
    """Let what a run computed answer later runs; return how many vectors are new."""
    arguments.text("run", run)
    if not session.target.ours:
        return 0
    call = Call("POST", service_path(session, f"runs/{quote(run, safe='')}:publish"), patience=SLOW)
    return read_responses.parse_published((yield from send(session, call)).body)


def count_tokens(session: Session, texts: Sequence[str], defaults: RequestDefaults) -> Flow[int]:
    """Return the tokens of texts as the target's model counts them."""
    default_request(defaults)
    for at, text in enumerate(_listed(texts)):
        if not isinstance(text, str):
            arguments.refuse(f"texts[{at}]", "a text", text)
    total, size = 0, min(_COUNTED, session.target.inline_requests)
    for begin in range(0, len(texts), size):
        block = texts[begin : begin + size]
        encode = partial(write_requests.count_body, texts=block)
        total += read_responses.parse_count(
            (yield from _embed(session, defaults, "countTokens", encode)).body
        )
    return total


def _listed(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        arguments.refuse("texts", "a list of texts", texts)
    return texts


def _sayable(name: str, text: object) -> str:
    """Return a text that somebody waits for: what would fail alone in a batch is refused here.

    Raises:
        InvalidArgument: naming the place.
    """
    if not isinstance(text, str):
        raise InvalidArgument(
            f"{name} must be a text, not {arguments.kind(text)}", field=name, reason=Reason.NOT_TEXT.value
        )
    if not encodable(text):
        raise InvalidArgument(
            f"{name} holds a lone surrogate: give whole characters",
            field=name,
            reason=Reason.BAD_UNICODE.value,
        )
    return text


def _embed(
    session: Session, defaults: RequestDefaults, verb: str, encode: Callable[[str], bytes]
) -> Flow[Reply]:
    """Send one interactive call; a default model that the service no longer has is asked for anew."""
    while True:
        remembered = "model" in session.known
        model = yield from model_path(session, defaults.model or session.known.get("model"))
        if defaults.model is None:
            session.known["model"] = model
        call = Call(
            "POST", service_path(session, f"{model}:{verb}"), headers=JSON, body=encode(model), patience=SLOW
        )
        try:
            return (yield from send(session, call))
        except NotFound as error:
            session.known.clear()
            if defaults.model is not None or not remembered:
                raise (yield from not_served(session, model, error)) from None
