"""A model that the local service shall serve, with an engine of one's choice: for commands."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from embatch.client import models
from embatch.wire.private import WantedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embatch.client.client import Client
    from embatch.wire.private import ModelAnswer


def serve_model(
    client: Client,
    model: str | None,
    *,
    engine: str,
    precision: str,
    options: Mapping[str, str],
    on_progress: Callable[[ModelAnswer], object],
) -> str:
    """Have the local service serve a model; return the name to submit by.

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
    """
    wanted = WantedModel() if model is None else models.wanted(model)
    rest = {name: value for name, value in options.items() if name != "revision"}
    wanted = replace(
        wanted, engine=engine, precision=precision, options=rest, revision=options.get("revision")
    )
    return client._run(models.serve(client._session, wanted, on_progress))  # noqa: SLF001  (the same package)
