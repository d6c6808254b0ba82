"""What a target answers at once, as flows: embeddings for somebody who waits, the reference path, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from embatch.client import arguments
from embatch.client import payload as payloads
from embatch.client.asking import ask
from embatch.client.calls import SLOW, Call
from embatch.client.flows import JSON, defaults
from embatch.client.models import model_path, not_served, service_path
from embatch.errors import Internal, InvalidArgument, NotFound, Reason
from embatch.jsontext import encodable
from embatch.wire import answers, bodies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embatch.batch import Request
    from embatch.client.asking import Terms
    from embatch.client.calls import Flow, Reply
    from embatch.client.flows import Wish
    from embatch.vectors import ContentEmbedding


_COUNTED: Final = 1000
"""Texts of one call that counts tokens."""


def embed(terms: Terms, text: str, title: str | None, wish: Wish) -> Flow[ContentEmbedding]:
    """Embed one text now."""
    like = defaults(wish)
    request = replace(like, text=_sayable("text", text), title=arguments.optional_text("title", title))
    reply = yield from _embed(terms, wish, "embedContent", lambda model: bodies.embed_body(model, request))
    return answers.parse_embedding(reply.body)


def embed_many(terms: Terms, requests: Iterable[str | Request], wish: Wish) -> Flow[list[ContentEmbedding]]:
    """Embed a few texts now, as many a call as the target takes."""
    found: list[ContentEmbedding] = []
    for block in payloads.blocks(requests, defaults(wish), terms.target.interactive_requests):
        for at, one in enumerate(block):
            _sayable(f"requests[{len(found) + at}]", one.text)
        encode = partial(bodies.embed_many_body, requests=block)
        reply = yield from _embed(terms, wish, "batchEmbedContents", encode)
        part = answers.parse_embeddings(reply.body)
        if len(part) != len(block):
            raise Internal(f"{len(block)} texts came back as {len(part)} embeddings: none can be matched")
        found += part
    return found


def reference(terms: Terms, texts: Sequence[str], wish: Wish) -> Flow[answers.Reference | None]:
    """Embed a few texts by the service's reference path; `None`: the target has none."""
    if not terms.target.ours:
        return None
    like = defaults(wish)
    requests = [replace(like, text=_sayable(f"texts[{at}]", text)) for at, text in enumerate(_listed(texts))]
    encode = partial(bodies.embed_many_body, requests=requests)
    return answers.parse_reference((yield from _embed(terms, wish, "embedReference", encode)).body)


def publish(terms: Terms, run: str) -> Flow[int]:
    """Let what a run computed answer later runs; return how many vectors are new."""
    arguments.text("run", run)
    if not terms.target.ours:
        return 0
    call = Call("POST", service_path(terms, f"runs/{quote(run, safe='')}:publish"), patience=SLOW)
    return answers.parse_published((yield from ask(terms, call)).body)


def count_tokens(terms: Terms, texts: Sequence[str], wish: Wish) -> Flow[int]:
    """Return the tokens of texts as the target's model counts them."""
    defaults(wish)
    for at, text in enumerate(_listed(texts)):
        if not isinstance(text, str):
            arguments.refuse(f"texts[{at}]", "a text", text)
    total, size = 0, min(_COUNTED, terms.target.inline_requests)
    for begin in range(0, len(texts), size):
        block = texts[begin : begin + size]
        encode = partial(bodies.count_body, texts=block)
        total += answers.parse_count((yield from _embed(terms, wish, "countTokens", encode)).body)
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


def _embed(terms: Terms, wish: Wish, verb: str, encode: Callable[[str], bytes]) -> Flow[Reply]:
    """Send one interactive call; a default model that the service no longer has is asked for anew."""
    while True:
        remembered = "model" in terms.known
        model = yield from model_path(terms, wish.model or terms.known.get("model"))
        if wish.model is None:
            terms.known["model"] = model
        call = Call(
            "POST", service_path(terms, f"{model}:{verb}"), headers=JSON, body=encode(model), patience=SLOW
        )
        try:
            return (yield from ask(terms, call))
        except NotFound as error:
            terms.known.clear()
            if wish.model is not None or not remembered:
                raise (yield from not_served(terms, model, error)) from None
