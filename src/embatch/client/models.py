"""The models of a target, as flows: which there are, which one is meant, and what to say of one that is not.

Also what all lists have in common, of which this is the shortest.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from embatch.client.asking import ask
from embatch.client.calls import Call
from embatch.errors import EmbatchError, FailedPrecondition, Internal, NotFound, printable
from embatch.wire import answers

if TYPE_CHECKING:
    from embatch.batch import Page
    from embatch.client.asking import Terms
    from embatch.client.calls import Flow, T

_NAMED: Final = 200
"""Most characters of a model's name in an error."""


def models(terms: Terms, token: str | None) -> Flow[Page[answers.Model]]:
    """Return one page of the target's models."""
    found = answers.parse_models((yield from ask(terms, list_call(terms, "models", None, token))).body)
    return advanced(found, token)


def list_call(terms: Terms, what: str, size: int | None, token: str | None) -> Call:
    """Return the call for one page of what a target lists."""
    query = {} if size is None else {"pageSize": str(size)}
    if token is not None:
        query["pageToken"] = token
    return Call("GET", service_path(terms, what), query)


def advanced(found: Page[T], token: str | None) -> Page[T]:
    """Return a page. Raises `Internal` for one that leads to itself."""
    if token is not None and found.next_page_token == token:
        raise Internal("the service's list does not end: it named the same page twice")
    return found


def model_path(terms: Terms, name: str | None) -> Flow[str]:
    """Return `models/{model}`; the service's first one where nobody named any."""
    name = name or terms.target.model
    if name is None:
        reply = yield from ask(terms, list_call(terms, "models", 1, None))
        served = answers.parse_models(reply.body).items
        if not served:
            raise FailedPrecondition("the service has no model: start it with --model")
        name = served[0].name
    model = name.removeprefix("models/")
    if any(part in ("", ".", "..") for part in model.split("/")):  # as of a folder: it would be another path
        raise (yield from not_served(terms, quote(model), NotFound("there is no such model", field="model")))
    return "models/" + quote(model, safe="/")


def not_served(terms: Terms, model: str, error: NotFound) -> Flow[NotFound]:
    """Return what to say where a service does not know a model, `models/…` as in a path: what to type."""
    if not terms.target.ours:
        return error
    name = printable(unquote(model.removeprefix("models/")), _NAMED)
    try:
        served = answers.parse_models(
            (yield from ask(terms, list_call(terms, "models", None, None))).body
        ).items
    except EmbatchError:
        return error
    names = ", ".join(one.name.removeprefix("models/") for one in served)
    typed = shlex.quote(name)
    if terms.target.data is not None:
        return NotFound(
            # In a folder of its own: the local service may still hold the other one.
            f"{name} is not served here: the local service has {names}. Start one that has it, "
            f"`embatch serve --model {typed} --port 8080 --data ./embatch-data`, and go to it: "
            '--to http://127.0.0.1:8080, or Client("http://127.0.0.1:8080")',
            field="model",
            reason=error.reason,
        )
    first = served[0].name.removeprefix("models/") if served else "MODEL"
    return NotFound(
        f"{name} is not served here: {terms.target.socket or terms.target.url} has {names}. Whoever runs it "
        f"adds a model by `embatch serve --model {typed}`, and another name by `--alias {typed}={first}`",
        field="model",
        reason=error.reason,
    )


def service_path(terms: Terms, rest: str) -> str:
    """Return the path of a resource under the target's version of the protocol."""
    return f"/{terms.target.version}/{rest}"
