"""A model that the local service shall serve, with an engine of one's choice: for commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from embatch.backoff import Backoff
from embatch.client import models
from embatch.wire.private import WantedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embatch.client.calls import Flow
    from embatch.client.client import Client
    from embatch.client.retry import Session
    from embatch.wire.private import ModelAnswer

_ONCE: Final = Backoff(attempts=1)


def serve_model(
    client: Client,
    model: str | None,
    *,
    engine: str,
    precision: str,
    options: Mapping[str, str],
    on_progress: Callable[[ModelAnswer], object],
) -> str:
    """Have the local service serve a model, and load it; return the name to submit by.

    What no engine can run is said here: a batch would wait for it until it expires.

    Args:
        client: of the local target.
        model: a folder (it begins with `/`, `./`, `../` or `~`), a Hub name, or a name that is served; `None`
            for the default model.
        engine: as of `embatch serve`.
        precision: as of `embatch serve`.
        options: the engine's; `revision` is the Hub's commit, tag or branch.
        on_progress: told how far the files are while they are fetched.

    Raises:
        InvalidArgument: an option cannot be so, or the model needs remote code or pickle.
        NotFound: there is no such model; or somebody else runs the service, which serves its own alone.
        Unavailable: no engine comes up for it.
    """
    wanted = WantedModel() if model is None else models.wanted(model)
    rest = {name: value for name, value in options.items() if name != "revision"}
    wanted = replace(
        wanted, engine=engine, precision=precision, options=rest, revision=options.get("revision")
    )
    return client._run(_served(client._session, wanted, on_progress))  # noqa: SLF001  (the same package)


def _served(session: Session, wanted: WantedModel, on_progress: Callable[[ModelAnswer], object]) -> Flow[str]:
    name = yield from models.serve(session, wanted, on_progress)
    # Once: what is wrong with a model is wrong the next time too.
    yield from session.send(session.provider.count_tokens(name, ["."]).call, backoff=_ONCE)
    return name
