"""The models of a target, as flows: which there are, which one is meant, and what to say of one that is not.

Also what all lists have in common, of which this is the shortest.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from embatch.client.calls import Call
from embatch.client.retry import send
from embatch.errors import EmbatchError, FailedPrecondition, Internal, NotFound, printable
from embatch.wire.gemini import read_responses

if TYPE_CHECKING:
    from embatch.batch import Model, Page
    from embatch.client.calls import Flow, T
    from embatch.client.retry import Session

_NAMED: Final = 200
"""Most characters of a model's name in an error."""


def models(session: Session, token: str | None) -> Flow[Page[Model]]:
    """Return one page of the target's models."""
    found = read_responses.parse_models(
        (yield from send(session, list_call(session, "models", None, token))).body
    )
    return advanced(found, token)


def list_call(session: Session, what: str, size: int | None, token: str | None) -> Call:
    """Return the call for one page of what a target lists."""
    query = {} if size is None else {"pageSize": str(size)}
    if token is not None:
        query["pageToken"] = token
    return Call("GET", service_path(session, what), query)


def advanced(found: Page[T], token: str | None) -> Page[T]:
    """Return a page. Raises `Internal` for one that leads to itself."""
    if token is not None and found.next_page_token == token:
        raise Internal("the service's list does not end: it named the same page twice")
    return found


def model_path(session: Session, name: str | None) -> Flow[str]:
    """Return `models/{model}`; the service's first one where nobody named any."""
    name = name or session.target.model
    if name is None:
        reply = yield from send(session, list_call(session, "models", 1, None))
        served = read_responses.parse_models(reply.body).items
        if not served:
            raise FailedPrecondition("the service has no model: start it with --model")
        name = served[0].name
    model = name.removeprefix("models/")
    if any(part in ("", ".", "..") for part in model.split("/")):  # as of a folder: it would be another path
        raise (
            yield from not_served(session, quote(model), NotFound("there is no such model", field="model"))
        )
    return "models/" + quote(model, safe="/")


def not_served(session: Session, model: str, error: NotFound) -> Flow[NotFound]:
    """Return what to say where a service does not know a model, `models/…` as in a path: what to type."""
    if not session.target.ours:
        return error
    name = printable(unquote(model.removeprefix("models/")), _NAMED)
    try:
        served = read_responses.parse_models(
            (yield from send(session, list_call(session, "models", None, None))).body
        ).items
    except EmbatchError:
        return error
    names = ", ".join(one.name.removeprefix("models/") for one in served)
    typed = shlex.quote(name)
    if session.target.data is not None:
        return NotFound(
            # In a folder of its own: the local service may still hold the other one.
            f"{name} is not served here: the local service has {names}. Start one that has it, "
            f"`embatch serve --model {typed} --port 8080 --data ./embatch-data`, and go to it: "
            '--to http://127.0.0.1:8080, or Client("http://127.0.0.1:8080")',
            field="model",
            reason=error.reason,
        )
    first = served[0].name.removeprefix("models/") if served else "MODEL"
    place = session.target.socket or session.target.url
    return NotFound(
        f"{name} is not served here: {place} has {names}. Whoever runs it "
        f"adds a model by `embatch serve --model {typed}`, and another name by `--alias {typed}={first}`",
        field="model",
        reason=error.reason,
    )


def service_path(session: Session, rest: str) -> str:
    """Return the path of a resource under the target's version of the protocol."""
    return f"/{session.target.version}/{rest}"
