"""What a target answers at once, as flows: embeddings for somebody who waits, the reference path, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from embatch.client import arguments
from embatch.client import payload as payloads
from embatch.client.calls import Call, together
from embatch.client.flows import default_request
from embatch.client.models import model_name, not_served
from embatch.client.rate import Load, cut, load_of
from embatch.errors import Internal, InvalidArgument, NotFound, Reason
from embatch.jsontext import encodable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from embatch.batch import Request
    from embatch.client.calls import Exchange, Flow, T
    from embatch.client.flows import RequestDefaults
    from embatch.client.retry import Session
    from embatch.vectors import ContentEmbedding
    from embatch.wire.gemini.read_responses import Reference


def embed(
    session: Session, text: str, title: str | None, defaults: RequestDefaults
) -> Flow[ContentEmbedding]:
    """Embed one text now."""
    like = default_request(defaults)
    request = replace(like, text=_sayable("text", text), title=arguments.optional_text("title", title))
    step = partial(session.provider.embed, request=request)
    return (yield from _ask(session, defaults, step, load_of([request])))


def embed_many(
    session: Session, requests: Iterable[str | Request], defaults: RequestDefaults
) -> Flow[list[ContentEmbedding]]:
    """Embed a few texts now, as many a call and as many calls at a time as the target takes."""
    blocks: list[Sequence[Request]] = []
    count = 0
    # All are looked at before any is sent: where one is refused, nothing was paid for.
    for block in payloads.blocks(requests, default_request(defaults), session.can.interactive_requests):
        for at, one in enumerate(block):
            _sayable(f"requests[{count + at}]", one.text)
        blocks += cut(block, session.budget.most)
        count += len(block)
    steps = [_embed_block(session, defaults, block) for block in blocks]
    if len(steps) == 1 or session.can.interactive_calls == 1:
        parts = []
        for step in steps:
            parts.append((yield from step))  # noqa: PERF401  (a flow cannot be comprehended)
    else:
        parts = yield from together(steps, session.can.interactive_calls)
    return [one for part in parts for one in part]


def _embed_block(
    session: Session, defaults: RequestDefaults, block: Sequence[Request]
) -> Flow[list[ContentEmbedding]]:
    step = partial(session.provider.embed_many, requests=block)
    part = yield from _ask(session, defaults, step, load_of(block))
    if len(part) != len(block):
        raise Internal(f"{len(block)} texts came back as {len(part)} embeddings: none can be matched")
    return part


def reference(session: Session, texts: Sequence[str], defaults: RequestDefaults) -> Flow[Reference | None]:
    """Embed a few texts by the service's reference path; `None`: the target has none."""
    if not session.can.reference_path:
        return None
    like = default_request(defaults)
    requests = [replace(like, text=_sayable(f"texts[{at}]", text)) for at, text in enumerate(_listed(texts))]
    step = partial(session.provider.embed_reference, requests=requests)
    return (yield from _ask(session, defaults, step))


def publish(session: Session, run: str) -> Flow[int]:
    """Let what a run computed answer later runs; return how many vectors are new."""
    arguments.text("run", run)
    if not session.can.run_cache:
        return 0
    return (yield from session.ask(session.provider.publish(run)))


def count_tokens(session: Session, texts: Sequence[str], defaults: RequestDefaults) -> Flow[int]:
    """Return the tokens of texts as the target's model counts them."""
    default_request(defaults)
    for at, text in enumerate(_listed(texts)):
        if not isinstance(text, str):
            arguments.refuse(f"texts[{at}]", "a text", text)
    total, size = 0, session.can.counted_requests
    for begin in range(0, len(texts), size):
        block = texts[begin : begin + size]
        step = partial(session.provider.count_tokens, texts=block)
        total += yield from _ask(session, defaults, step)
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


def _ask(
    session: Session, defaults: RequestDefaults, step: Callable[[str], Exchange[T]], load: Load | None = None
) -> Flow[T]:
    """Send one interactive call; a default model that the service no longer has is asked for anew.

    `load`: what it takes of the budget; `None` for what is not counted.
    """
    while True:
        remembered = "model" in session.known
        model = yield from model_name(session, defaults.model or session.known.get("model"))
        if defaults.model is None:
            session.known["model"] = model
        try:
            asked = session.ask(step(model))
            return (yield from (asked if load is None else _paced(session, asked, load)))
        except NotFound as error:
            session.known.clear()
            if defaults.model is not None or not remembered:
                raise (yield from not_served(session, model, error)) from None


def _paced(session: Session, flow: Flow[T], load: Load) -> Flow[T]:
    """Run a flow whose calls each take so much of the session's budget; those too many wait."""
    budget, clock = session.budget, session.outside.clock
    try:
        step = next(flow)
        while True:
            sent = 0.0
            if isinstance(step, Call):
                now = clock()
                sent = budget.book(load, now + step.after)
                step = replace(step, after=sent - now)
            try:
                reply = yield step
            except Exception as error:  # noqa: BLE001  (the flow judges it)
                step = flow.throw(error)
                continue
            if isinstance(step, Call):
                if reply.status == 429:
                    budget.refused(load, sent, clock(), session.provider.read_error(reply).retry_after)
                elif reply.status == 404:
                    load = Load(1, load.tokens / load.requests)  # what is asked instead is asked one by one
                elif 200 <= reply.status < 300:
                    budget.answered(load)
            step = flow.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result
