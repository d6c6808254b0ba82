"""The models of a target, as flows: which there are, which one is meant, and what to say of one that is not.

Also what all lists have in common, of which this is the shortest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embatch.batch import Page
from embatch.client import arguments
from embatch.errors import FailedPrecondition, Internal, NotFound
from embatch.wire import private
from embatch.wire.private import WantedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from embatch.batch import Model
    from embatch.client.calls import Flow, T
    from embatch.client.retry import Session
    from embatch.wire.private import ModelAnswer

_PAUSES: Final = (0.1, 0.1, 0.2, 0.4)
"""Seconds between questions about a fetch, the first ones."""
_PAUSE: Final = 1.0
_NOT_PRIVATE: Final = "not private"


def models(session: Session, token: str | None) -> Flow[Page[Model]]:
    """Return one page of the target's models."""
    if known := session.provider.known_models:
        return Page(known, None)
    return advanced((yield from session.ask(session.provider.models(None, token))), token)


def advanced(found: Page[T], token: str | None) -> Page[T]:
    """Return a page. Raises `Internal` for one that leads to itself."""
    if token is not None and found.next_page_token == token:
        raise Internal("the service's list does not end: it named the same page twice")
    return found


def model_name(session: Session, name: str | None) -> Flow[str]:
    """Return a model's name without `models/`; the service's first one where nobody named any.

    The local service serves what it did not before: a Hub name, or a folder.
    """
    name = name or session.provider.model
    if name is not None and session.target.data is not None and session.can.any_model:
        return (yield from serve(session, session.wanted.get(name) or wanted(name)))
    if name is None:
        served = (yield from session.ask(session.provider.models(1, None))).items
        if not served:
            if session.target.data is not None and session.can.any_model:
                return (yield from serve(session, WantedModel()))
            raise FailedPrecondition("the service has no model: start it with --model")
        name = served[0].name
    return (yield from _bare(session, name))


def _bare(session: Session, name: str) -> Flow[str]:
    model = name.removeprefix("models/")
    if any(part in ("", ".", "..") for part in model.split("/")):  # as of a folder: it would be another path
        raise (yield from not_served(session, model, NotFound("there is no such model", field="model")))
    return model


def not_served(session: Session, model: str, error: NotFound) -> Flow[NotFound]:
    """Return what to say where a service does not know a model."""
    return (yield from session.provider.not_served(session, session.target, model, error))


def wanted(name: str) -> WantedModel:
    """Return what a caller means by a model: what begins as a path does is a folder, all else a name.

    Raises InvalidArgument for what no message can carry: a path whose bytes are not UTF-8.
    """
    if name in (".", "..") or name.startswith(("/", "./", "../", "~")):
        # Links are the service's to follow.
        return WantedModel(folder=arguments.text("model", str(Path(name).expanduser().absolute())))
    return WantedModel(model=arguments.text("model", name))


def serve(
    session: Session, model: WantedModel, on_progress: Callable[[ModelAnswer], object] | None = None
) -> Flow[str]:
    """Have the local service serve a model; return the name by which requests name it.

    What is known of it is remembered until the connection is a new one: then it is asked for again, for the
    service may be. `on_progress` is told how far its files are while they are fetched.
    """
    key = private.write_wanted(model).decode()
    if (known := session.known.get(key)) is not None:
        return known
    if _NOT_PRIVATE in session.known:
        return (yield from _of_others(session, model))
    exchange, asked = session.provider.serve(model), 0
    while True:
        try:
            answer = yield from session.ask(exchange)
        except NotFound as error:
            if error.reason is None:  # there is no such address: somebody runs this service for good
                session.known[_NOT_PRIVATE] = ""
                return (yield from _of_others(session, model))
            raise _with_folder(model, error) from None
        if answer.name is not None:
            served = answer.name.removeprefix("models/")
            session.known[key] = served
            session.wanted[served] = model
            return served
        if on_progress is not None:
            on_progress(answer)
        pause = _PAUSES[asked] if asked < len(_PAUSES) else _PAUSE
        exchange, asked = replace(exchange, call=replace(exchange.call, after=pause)), asked + 1


def _of_others(session: Session, model: WantedModel) -> Flow[str]:
    """Return the name of a model of a service that serves what it was started with, and no more."""
    plain = model == WantedModel(model.model)
    if model.model is not None and plain:
        return (yield from _bare(session, model.model))
    shown = model.folder or model.model or "the default model"
    found = NotFound("there is no such model", field="model", reason="MODEL_NOT_FOUND")
    raise (yield from not_served(session, shown, found))


def _with_folder(model: WantedModel, error: NotFound) -> NotFound:
    """Return the error of a name, with the folder of that name where there is one."""
    name = model.model
    if name is None or not Path(name).is_dir():
        return error
    return NotFound(
        f"{error.message}. There is a folder of that name here: write ./{name}",
        field=error.field,
        reason=error.reason,
    )
