"""The models of a target, as flows: which there are, which one is meant, and what to say of one that is not.

Also what all lists have in common, of which this is the shortest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from embatch.errors import FailedPrecondition, Internal, NotFound

if TYPE_CHECKING:
    from embatch.batch import Model, Page
    from embatch.client.calls import Flow, T
    from embatch.client.retry import Session


def models(session: Session, token: str | None) -> Flow[Page[Model]]:
    """Return one page of the target's models."""
    return advanced((yield from session.ask(session.provider.models(None, token))), token)


def advanced(found: Page[T], token: str | None) -> Page[T]:
    """Return a page. Raises `Internal` for one that leads to itself."""
    if token is not None and found.next_page_token == token:
        raise Internal("the service's list does not end: it named the same page twice")
    return found


def model_name(session: Session, name: str | None) -> Flow[str]:
    """Return a model's name without `models/`; the service's first one where nobody named any."""
    name = name or session.provider.model
    if name is None:
        served = (yield from session.ask(session.provider.models(1, None))).items
        if not served:
            raise FailedPrecondition("the service has no model: start it with --model")
        name = served[0].name
    model = name.removeprefix("models/")
    if any(part in ("", ".", "..") for part in model.split("/")):  # as of a folder: it would be another path
        raise (yield from not_served(session, model, NotFound("there is no such model", field="model")))
    return model


def not_served(session: Session, model: str, error: NotFound) -> Flow[NotFound]:
    """Return what to say where a service does not know a model."""
    return (yield from session.provider.not_served(session, session.target, model, error))
