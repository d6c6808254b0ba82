"""The command `serve`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  (cyclopts reads the annotations)
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from embatch.cli.app import Data, app, data_folder
from embatch.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Sequence


EngineName = Annotated[str, Parameter(help="auto, amx, openvino, torch, remote or hashing.")]
EngineOptions = Annotated[
    list[str] | None, Parameter(help="NAME=VALUE for the engine; repeatable.", negative="")
]
Precision = Annotated[str, Parameter(help="auto, f32 or bf16.")]


@app.command
def serve(  # noqa: PLR0913  (one parameter a flag)
    *,
    data: Data = None,
    database: Annotated[
        str | None,
        Parameter(help="Postgres database in place of SQLite in --data; with a password: EMBATCH_DATABASE."),
    ] = None,
    blobs: Annotated[
        Path | None, Parameter(help="Folder for texts and embeddings beside --database; --data by default.")
    ] = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    socket: Annotated[Path | None, Parameter(help="Listen on this Unix socket instead.")] = None,
    model: Annotated[
        list[str] | None,
        Parameter(help="Folder or Hub name; repeatable, the first is the default.", negative=""),
    ] = None,
    alias: Annotated[
        list[str] | None,
        Parameter(help="NAME=MODEL, so that code written for NAME runs unchanged.", negative=""),
    ] = None,
    engine: EngineName = "auto",
    engine_url: Annotated[str | None, Parameter(help="Address of the remote engine's endpoint.")] = None,
    engine_option: EngineOptions = None,
    precision: Precision = "auto",
    threads: Annotated[int, Parameter(help="Threads of bulk embedding; 0 for one per core.")] = 0,
    api_keys: Annotated[
        Path | None, Parameter(help="Answer only those who show a key of this file (embatch keys new).")
    ] = None,
    insecure_no_auth: Annotated[
        bool, Parameter(help="Allow an address others can reach without keys.", negative="")
    ] = False,
    private: Annotated[bool, Parameter(show=False, negative="")] = False,
) -> int:
    """Serve batches, embeddings and files in Google's wire protocol until SIGTERM or Ctrl-C."""
    try:
        from embatch.server import ServeOptions  # noqa: PLC0415
        from embatch.server import serve as run  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise InvalidArgument(
            f'serving needs {missing.name}: pip install "embatch[local]"', field="serve"
        ) from missing

    return run(
        ServeOptions(
            data=data or data_folder(),
            database=database,
            blobs=blobs,
            host=host,
            port=port,
            socket=socket,
            models=tuple(model or ()),
            aliases=pairs(alias, "--alias"),
            engine=engine,
            engine_url=engine_url,
            engine_options=pairs(engine_option, "--engine-option"),
            precision=precision,
            threads=threads,
            private=private,
            api_keys=api_keys,
            insecure_no_auth=insecure_no_auth,
        )
    )


def pairs(values: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Return the content of each NAME=VALUE by its name.

    Raises:
        InvalidArgument: one has another form.
    """
    found = {}
    for value in values or ():
        name, equals, content = value.partition("=")
        if not equals or not name or not content:
            raise InvalidArgument(f"{flag} takes NAME=VALUE, not {value!r}", field=flag)
        found[name] = content
    return found
