"""The commands about batches: `submit | list | watch | results | cancel | delete | models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from embatch.batch import DISPLAY_NAME
from embatch.cli.app import (
    DONE,
    FAILED,
    GOOGLE,
    PARTLY,
    SOURCES,
    STAGED,
    CancelOnInterrupt,
    Data,
    Dim,
    GoogleFlags,
    Id,
    Model,
    Out,
    StagingFlags,
    Task,
    Text,
    To,
    app,
    check_dimensions,
    check_labels,
    check_name,
    check_range,
    client,
    saying,
)
from embatch.cli.crowding import crowding
from embatch.cli.display import Display, batch_table, json_line, report, say, usage_lines
from embatch.cli.engine_flags import EngineFlags
from embatch.cli.others import Others
from embatch.errors import InvalidArgument, Unavailable
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embatch.batch import Batch, Request
    from embatch.runs.sources import Source

_DAY: Final = 86_400.0


@app.command
def submit(  # noqa: PLR0913  (one parameter a flag)
    source: Annotated[str, Parameter(name="IN", help=SOURCES)],
    *,
    text: Text = None,
    id: Id = None,  # noqa: A002
    to: To = "local",
    data: Data = None,
    at: StagingFlags = STAGED,
    model: Model = None,
    on: EngineFlags = EngineFlags(),  # noqa: B008  (frozen)
    dim: Dim = None,
    task_type: Task = None,
    priority: int = 0,
    name: Annotated[str | None, Parameter(help="Display name; the file's name by default.")] = None,
) -> int:
    """Submit a file as one batch and print its name; come back with `watch` and `results`.

    The file may be larger than memory: it goes out through a temporary one. The local service works only
    while a command is attached to it: `embatch watch NAME` goes on.
    """
    check_range("--dim", dim, 1)
    check_name("--model", model)
    check_labels(name, priority)
    on.check(to)
    unknown = "`embatch list` says whether the batch was accepted"
    with saying(lambda: unknown), client(to, data, at, preload=on.default(model)) as service:
        # Not before the private service has begun to start.
        from embatch.runs.sources import open_source  # noqa: PLC0415

        opened = open_source(source, text, id)
        model = on.served(service, to, model)
        check_dimensions(service, model, dim)
        batch = service.async_batch_embed_contents(
            _requests(opened, keyed=id is not None),
            display_name=name or default_name(opened.name),
            model=model,
            task_type=task_type,
            output_dimensionality=dim,
            priority=priority,
        )
    try:
        say(batch.name)
    except Unavailable:  # a batch whose name nobody knows is lost work
        report(f"submitted as {batch.name}")
        raise
    return DONE


def _requests(source: Source, *, keyed: bool) -> Iterator[Request]:
    """Yield what a dataset holds, and tell at its end what there was to note. Raises InvalidArgument."""
    from embatch import Request  # noqa: PLC0415  (start-up time of --help)
    from embatch.runs.ids import as_words  # noqa: PLC0415

    for rows in source.blocks():
        for at, (key, body) in enumerate(zip(as_words(rows.ids), rows.texts, strict=True)):
            if body is None:
                raise InvalidArgument(
                    f"row {rows.first + at}: {rows.faults[at]}; `embatch embed` goes on", field="IN"
                )
            yield Request(body, key=key if keyed else None)
    for note in source.notes:
        report(f"note: {note}")


@app.command(name="list")
def list_(
    *, to: To = "local", data: Data = None, at: GoogleFlags = GOOGLE, limit: int = 50, json: bool = False
) -> int:
    """List batches, newest first.

    Args:
        to: Where.
        data: Data folder of the local service.
        at: Where on Vertex.
        limit: Most batches to show.
        json: One JSON object a line.
    """
    check_range("--limit", limit, 1)
    with client(to, data, at) as service:
        batches: list[Batch] = []
        for batch in service.list_batches():
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
def watch(  # noqa: PLR0913  (one parameter a flag)
    name: str,
    *,
    to: To = "local",
    data: Data = None,
    at: GoogleFlags = GOOGLE,
    timeout: Annotated[float, Parameter(help="Seconds to wait at most.")] = float("inf"),
    interval: Annotated[float, Parameter(help="Seconds between polls.")] = 1.0,
    cancel_on_interrupt: CancelOnInterrupt = False,
) -> int:
    """Follow a batch to its end."""
    check_range("--timeout", timeout, 0)
    check_range("--interval", interval, 0, _DAY)
    goes_on = " while it is watched" if to == "local" else ""
    stays = f"the batch goes on{goes_on}, and `embatch watch {name}` waits for it again"
    with saying(lambda: stays), client(to, data, at) as service, Display(notice=crowding(service)) as display:
        others = Others(service, to, data)

        def show(batch: Batch) -> None:
            others.batch(batch)
            display.batch(batch)

        try:
            batch = service.await_batch_completion(
                name, poll_interval=interval, timeout=timeout, on_progress=show
            )
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                service.cancel_batch(name)
                stays = f"the batch is cancelled; `embatch results {name} --partial` reads what was finished"
            raise
    try:
        batch_table([batch])
    except Unavailable as trouble:  # the batch is what it is
        report(f"error: {trouble.message}")
    notes = batch.notes if batch.note is None else (batch.note, *batch.notes)
    for line in (*usage_lines(batch), *(f"note: {note}" for note in notes)):
        report(line)
    if batch.error:
        report(batch.error)
    return _outcome(batch)


@app.command
def results(  # noqa: PLR0913  (one parameter a flag)
    name: str,
    *,
    out: Out,
    to: To = "local",
    data: Data = None,
    at: GoogleFlags = GOOGLE,
    dim: Dim = None,
    partial: Annotated[bool, Parameter(help="Read what a cancelled or expired batch finished.")] = False,
) -> int:
    """Write the embeddings of a finished batch to a file of id, embedding and error."""
    import numpy as np  # noqa: PLC0415
    import pyarrow as pa  # noqa: PLC0415

    from embatch.dtypes import Dtype  # noqa: PLC0415
    from embatch.runs.sinks import Layout, check_sink, open_sink  # noqa: PLC0415

    check_range("--dim", dim, 1)
    check_sink(out, () if dim is None else (dim,), Dtype.FLOAT32, pa.string())
    with client(to, data, at) as service:
        batch = service.get_batch_status(name)
        result = service.get_batch_embeddings(batch, partial=partial, output_dimensionality=dim)
    vectors = result.to_numpy(failed="nan")
    if not vectors.shape[1]:  # nothing succeeded, and nobody says how wide it would have been
        vectors = np.full((len(vectors), dim or 1), np.nan, np.float32)
    errors: list[str | None] = [None] * len(vectors)
    for index, error in result.failed_responses:
        errors[index] = error.message
    keyed = any(key is not None for key in result.keys)  # a row without one among others has none
    ids = [key if keyed else str(at) for at, key in enumerate(result.keys)]
    sink = open_sink(out, Layout(pa.string(), vectors.shape[1]), {"embatch.model": batch.worked_by})
    try:
        sink.write(0, pa.array(ids, pa.string()), vectors, errors)
        written = sink.finish(rows=len(ids))
    except BaseException:
        sink.abandon()
        raise
    size = "" if written.bytes is None else f", {written.bytes / 1e6:,.1f} MB"
    report(f"{len(ids)} embeddings, {len(result.failed_responses)} failed{size} in {written.place}")
    for line in usage_lines(batch):
        report(line)
    return PARTLY if result.failed_responses else DONE


@app.command
def cancel(name: str, *, to: To = "local", data: Data = None, at: GoogleFlags = GOOGLE) -> int:
    """Cancel a batch; what was finished stays readable."""
    with client(to, data, at) as service:
        batch_table([service.cancel_batch(name)])
    return DONE


@app.command
def delete(name: str, *, to: To = "local", data: Data = None, at: GoogleFlags = GOOGLE) -> int:
    """Delete a finished batch and its embeddings."""
    with client(to, data, at) as service:
        service.delete_batch(name)
    return DONE


@app.command
def models(*, to: To = "local", data: Data = None, at: GoogleFlags = GOOGLE) -> int:
    """List the models that the service embeds with."""
    with client(to, data, at) as service:
        for model in service.list_models():
            say(f"{model.name}  {model.description}")
    return DONE


def _outcome(batch: Batch) -> int:
    if batch.state is not State.COMPLETED:
        return FAILED
    return PARTLY if batch.batch_stats.failed_request_count else DONE


def default_name(name: str) -> str:
    """Return what a batch of a file is called: of a name that is not UTF-8, its bytes as escapes."""
    return name.encode(errors="backslashreplace").decode()[-DISPLAY_NAME:]


def _print_json(batch: Batch) -> None:
    stats = batch.batch_stats
    record: dict[str, Any] = {
        "name": batch.name,
        "display_name": batch.display_name,
        "model": batch.model,
        "state": batch.state.value,
        "note": batch.note,
        "priority": batch.priority,
        "create_time": batch.create_time,
        "end_time": batch.end_time,
        "request_count": stats.request_count,
        "successful_request_count": stats.successful_request_count,
        "failed_request_count": stats.failed_request_count,
        "pending_request_count": stats.pending_request_count,
    }
    say(json_line(record))
