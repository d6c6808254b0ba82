"""The command line: `embatch serve | embed | submit | list | watch | results | cancel | delete | models`.

Commands talk to the private service of the data folder, which starts and ends by itself, or to the service
that `--to` names. Exit codes: 0 done · 1 failed · 2 usage · 3 finished with failed rows · 4 not authorised ·
6 wait timed out · 75 the data folder is taken · 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from cyclopts import App, Parameter

from embatch.batch import TaskType
from embatch.display import Display, batch_table, report, seconds_words
from embatch.errors import (
    BatchFailed,
    BatchNotCompleted,
    BatchTimeout,
    EmbatchError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
)
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embatch.batch import Batch
    from embatch.client.client import Client

DONE, FAILED, USAGE, PARTLY, REFUSED, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 6, 130

EPILOGUE = """
The data folder holds the database, the texts waiting and the embeddings: {folder}
Another one: --data DIR, or EMBATCH_DATA. Exit codes: 0 done, 1 failed, 2 usage, 3 finished with failed
rows, 4 not authorised, 6 wait timed out, 75 data folder taken, 130 interrupted (repeat to go on).
"""


def _data_folder() -> Path:
    from embatch.client.local import default_data_folder  # noqa: PLC0415  (start-up time of --help)

    return default_data_folder()


app = App(
    name="embatch",
    help="Asynchronous batch embeddings: hand over texts, come back for the vectors.",
    help_epilogue=EPILOGUE.format(folder=_data_folder()),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)

To = Annotated[str, Parameter(help="local, a service's URL such as http://host:8080, or gemini.")]
Data = Annotated[Path | None, Parameter(help="Data folder of the local service.", show_default=False)]
Model = Annotated[str | None, Parameter(help="Model; the service's first one by default.")]
Dim = Annotated[
    int | None, Parameter(help="Leading dimensions wanted; the model's native number by default.")
]
Task = Annotated[TaskType | None, Parameter(help="What the embeddings are for.")]
Text = Annotated[str | None, Parameter(help="Column of the texts; `text` by default.", show_default=False)]
Id = Annotated[str | None, Parameter(help="Column of your ids; row numbers by default.", show_default=False)]
Out = Annotated[Path, Parameter(name=["--out", "-o"], help="Parquet file to write.")]


def _client(to: str, data: Path | None) -> Client:
    from embatch import Client  # noqa: PLC0415  (start-up time of --help)

    return Client(to, data=data)


@app.command
def embed(  # noqa: PLR0913  (one parameter a flag)
    source: Annotated[Path, Parameter(name="IN", help="Parquet, JSONL or CSV file.")],
    *,
    out: Out,
    text: Text = None,
    id: Id = None,  # noqa: A002  (the flag's name)
    to: To = "local",
    data: Data = None,
    model: Model = None,
    dim: Dim = None,
    task_type: Task = None,
    priority: int = 0,
    name: Annotated[str | None, Parameter(help="Display name of the batches.")] = None,
) -> int:
    """Embed a file into a Parquet file of id, embedding and error, in the input's order.

    Interrupted or killed, the work stays in the data folder and the same command goes on with it.
    """
    from embatch.runs.run import Wish, embed_file  # noqa: PLC0415
    from embatch.runs.sources import open_source  # noqa: PLC0415

    if out.suffix != ".parquet":
        raise InvalidArgument(f"{out} must end in .parquet", field="--out")
    if not out.absolute().parent.is_dir():
        raise InvalidArgument(f"there is no folder {out.absolute().parent}", field="--out")
    opened = open_source(source, text, id)
    wish = Wish(model, task_type, dim, priority, name or source.name)
    with _client(to, data) as client, Display() as display:
        summary = embed_file(client, opened, out, wish, display.rows)
        elapsed = display.elapsed
    report(
        f"{summary.rows} rows, {summary.failed} failed, {summary.dimensions} dimensions, {summary.model}, "
        f"{seconds_words(elapsed)} ({summary.rows / max(elapsed, 1e-9):,.0f} rows/s), "
        f"{summary.file_bytes / 1e6:,.1f} MB in {out}"
    )
    if summary.resumed:
        report(f"{summary.resumed} rows had been handed over by an earlier call")
    for note in summary.notes:
        report(f"note: {note}")
    return PARTLY if summary.failed else DONE


@app.command
def submit(  # noqa: PLR0913  (one parameter a flag)
    source: Annotated[Path, Parameter(name="IN", help="Parquet, JSONL or CSV file.")],
    *,
    text: Text = None,
    id: Id = None,  # noqa: A002
    to: To = "local",
    data: Data = None,
    model: Model = None,
    dim: Dim = None,
    task_type: Task = None,
    priority: int = 0,
    name: Annotated[str | None, Parameter(help="Display name; the file's name by default.")] = None,
) -> int:
    """Submit a file as one batch and print its name; come back with `watch` and `results`.

    The local service works only while a command is attached to it: `embatch watch NAME` goes on.
    """
    from embatch import Request  # noqa: PLC0415
    from embatch.runs.sources import open_source  # noqa: PLC0415

    requests = []
    for rows in open_source(source, text, id).blocks():
        for at, (key, body) in enumerate(zip(rows.ids.to_pylist(), rows.texts, strict=True)):
            if body is None:
                raise InvalidArgument(
                    f"row {rows.first + at}: {rows.faults[at]}; `embatch embed` goes on", field="IN"
                )
            requests.append(Request(body, key=None if id is None or key is None else str(key)))
    with _client(to, data) as client:
        batch = client.async_batch_embed_contents(
            requests,
            display_name=name or source.name,
            model=model,
            task_type=task_type,
            output_dimensionality=dim,
            priority=priority,
        )
    print(batch.name)  # noqa: T201  (what the caller's script reads)
    return DONE


@app.command(name="list")
def list_(*, to: To = "local", data: Data = None, limit: int = 50, json: bool = False) -> int:
    """List batches, newest first.

    Args:
        to: Where.
        data: Data folder of the local service.
        limit: Most batches to show.
        json: One JSON object a line.
    """
    with _client(to, data) as client:
        batches: list[Batch] = []
        for batch in client.list_batches():
            if len(batches) == limit:
                break
            batches.append(batch)
    if json:
        for batch in batches:
            _print_json(batch)
    else:
        batch_table(batches)
    return DONE


@app.command
def watch(
    name: str,
    *,
    to: To = "local",
    data: Data = None,
    timeout: Annotated[float, Parameter(help="Seconds to wait at most.")] = float("inf"),
    interval: Annotated[float, Parameter(help="Seconds between polls.")] = 1.0,
) -> int:
    """Follow a batch to its end."""
    with _client(to, data) as client, Display() as display:
        batch = client.await_batch_completion(
            name, poll_interval=interval, timeout=timeout, on_progress=display.batch
        )
    batch_table([batch])
    for note in batch.notes:
        report(f"note: {note}")
    if batch.error:
        report(batch.error)
    return _outcome(batch)


@app.command
def results(
    name: str,
    *,
    out: Out,
    to: To = "local",
    data: Data = None,
    dim: Dim = None,
    partial: Annotated[bool, Parameter(help="Read what a cancelled or expired batch finished.")] = False,
) -> int:
    """Write the embeddings of a finished batch to a Parquet file of id, embedding and error."""
    import pyarrow as pa  # noqa: PLC0415

    from embatch.runs.sinks import ParquetSink  # noqa: PLC0415

    if out.suffix != ".parquet":
        raise InvalidArgument(f"{out} must end in .parquet", field="--out")
    with _client(to, data) as client:
        batch = client.get_batch_status(name)
        result = client.get_batch_embeddings(batch, partial=partial, output_dimensionality=dim)
    vectors = result.to_numpy()
    errors: list[str | None] = [None] * len(vectors)
    for index, error in result.failed_responses:
        errors[index] = error.message
    ids = [str(at) if key is None else key for at, key in enumerate(result.keys)]
    sink = ParquetSink(out, pa.string(), vectors.shape[1], {"embatch.model": batch.model})
    sink.write(pa.array(ids, pa.string()), vectors, errors)
    size = sink.finish()
    report(f"{len(ids)} embeddings, {len(result.failed_responses)} failed, {size / 1e6:,.1f} MB in {out}")
    return PARTLY if result.failed_responses else DONE


@app.command
def cancel(name: str, *, to: To = "local", data: Data = None) -> int:
    """Cancel a batch; what was finished stays readable."""
    with _client(to, data) as client:
        batch_table([client.cancel_batch(name)])
    return DONE


@app.command
def delete(name: str, *, to: To = "local", data: Data = None) -> int:
    """Delete a finished batch and its embeddings."""
    with _client(to, data) as client:
        client.delete_batch(name)
    return DONE


@app.command
def models(*, to: To = "local", data: Data = None) -> int:
    """List the models that the service embeds with."""
    with _client(to, data) as client:
        for model in client.list_models():
            print(f"{model.name}  {model.description}")  # noqa: T201
    return DONE


@app.command
def serve(  # noqa: PLR0913  (one parameter a flag)
    *,
    data: Data = None,
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
    engine: Annotated[str, Parameter(help="auto, openvino, torch, remote or hashing.")] = "auto",
    engine_url: Annotated[str | None, Parameter(help="Address of the remote engine's endpoint.")] = None,
    engine_option: Annotated[
        list[str] | None, Parameter(help="NAME=VALUE for the engine; repeatable.", negative="")
    ] = None,
    precision: Annotated[str, Parameter(help="auto, f32 or bf16.")] = "auto",
    threads: Annotated[int, Parameter(help="Threads of bulk embedding; 0 for one per core.")] = 0,
    insecure_no_auth: Annotated[
        bool, Parameter(help="Allow an address others can reach.", negative="")
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
            data=data or _data_folder(),
            host=host,
            port=port,
            socket=socket,
            models=tuple(model or ()),
            aliases=_pairs(alias, "--alias"),
            engine=engine,
            engine_url=engine_url,
            engine_options=_pairs(engine_option, "--engine-option"),
            precision=precision,
            threads=threads,
            private=private,
            insecure_no_auth=insecure_no_auth,
        )
    )


def _pairs(values: Sequence[str] | None, flag: str) -> dict[str, str]:
    pairs = {}
    for value in values or ():
        name, equals, content = value.partition("=")
        if not equals or not name or not content:
            raise InvalidArgument(f"{flag} takes NAME=VALUE, not {value!r}", field=flag)
        pairs[name] = content
    return pairs


def _outcome(batch: Batch) -> int:
    if batch.state is not State.COMPLETED:
        return FAILED
    return PARTLY if batch.batch_stats.failed_request_count else DONE


def _print_json(batch: Batch) -> None:
    stats = batch.batch_stats
    record: dict[str, Any] = {
        "name": batch.name,
        "display_name": batch.display_name,
        "model": batch.model,
        "state": batch.state.value,
        "priority": batch.priority,
        "create_time": batch.create_time,
        "end_time": batch.end_time,
        "request_count": stats.request_count,
        "successful_request_count": stats.successful_request_count,
        "failed_request_count": stats.failed_request_count,
        "pending_request_count": stats.pending_request_count,
    }
    sys.stdout.buffer.write(orjson.dumps(record) + b"\n")


def _exit_code(error: EmbatchError) -> int:
    """Return the code that tells a script what kind of trouble it was."""
    match error:
        case Unauthenticated() | PermissionDenied():
            return REFUSED
        case BatchTimeout():
            return TIMED_OUT
        case InvalidArgument():
            return USAGE
        case BatchFailed() | BatchNotCompleted():
            return FAILED
        case _:
            return FAILED


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    try:
        code = app(arguments, result_action="return_value")
    except EmbatchError as error:
        field = f" ({error.field})" if error.field else ""
        report(f"error: {error.message}{field}")
        code = _exit_code(error)
    except KeyboardInterrupt:
        report("interrupted: the work stays in the data folder, the same command goes on with it")
        code = INTERRUPTED
    sys.exit(code if isinstance(code, int) else DONE)
