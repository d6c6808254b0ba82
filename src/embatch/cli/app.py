"""What all commands share: the application, its common options, exit codes, and how a client is made."""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import App, Parameter

from embatch.batch import TaskType, check_display_name
from embatch.errors import InvalidArgument
from embatch.escapes import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embatch.client.client import Client

DONE, FAILED, USAGE, PARTLY, REFUSED, TIMED_OUT, INTERRUPTED = 0, 1, 2, 3, 4, 6, 130

EPILOGUE = """
The data folder holds the database, the texts waiting and the embeddings: {folder}
Another one: --data DIR, or EMBATCH_DATA. Exit codes: 0 done, 1 failed, 2 usage, 3 finished with failed
rows, 4 not authorised, 6 wait timed out, 75 data folder or database taken, 130 interrupted (repeat to go on).
"""


def data_folder() -> Path:
    """Return the data folder of the local service where none is named."""
    from embatch.client.local import default_data_folder  # noqa: PLC0415  (start-up time of --help)

    return default_data_folder()


app = App(
    name="embatch",
    help="Asynchronous batch embeddings: hand over texts, come back for the vectors.",
    help_epilogue=EPILOGUE.format(folder=visible(str(data_folder()))),
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)

SOURCES = (
    "Parquet, JSONL, CSV, TSV, Arrow or text file, a folder or a quoted glob of them; a path, or an s3://, "
    "gs:// or hf://datasets/ address."
)
SINKS = (
    "Where to: .parquet, .arrow, .jsonl, .npy, .lance, s3://, gs://, postgresql://…?table=NAME, "
    "qdrant://host:port/COLLECTION."
)
To = Annotated[str, Parameter(help="local, a service's URL such as http://host:8080, gemini, or vertex.")]
Data = Annotated[Path | None, Parameter(help="Data folder of the local service.", show_default=False)]
Model = Annotated[
    str | None,
    Parameter(
        help="Model; the service's first one by default. The local service takes any: a Hub name, or a "
        "folder, which begins with / or ./."
    ),
]
Dim = Annotated[
    int | None, Parameter(help="Leading dimensions wanted; the model's native number by default.")
]
Task = Annotated[TaskType | None, Parameter(help="What the embeddings are for.")]
Text = Annotated[str | None, Parameter(help="Column of the texts; `text` by default.", show_default=False)]
Id = Annotated[str | None, Parameter(help="Column of your ids; row numbers by default.", show_default=False)]
CancelOnInterrupt = Annotated[
    bool, Parameter(help="Ctrl-C cancels the batches in work; they wait otherwise.", negative="")
]
Rate = Annotated[
    str | None,
    Parameter(
        help="Most texts a minute that are embedded at once, beside batches; after a comma most of their "
        "tokens: 3000,1000000. By default as many as the service lets pass.",
        show_default=False,
    ),
]
Out = Annotated[str, Parameter(name=["--out", "-o"], help=SINKS)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class GoogleFlags:
    """Where batches run on Vertex."""

    project: Annotated[
        str | None, Parameter(help="Project of vertex; GOOGLE_CLOUD_PROJECT by default.", show_default=False)
    ] = None
    location: Annotated[
        str | None,
        Parameter(help="Location of vertex, such as us-central1; GOOGLE_CLOUD_LOCATION by default."),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class StagingFlags(GoogleFlags):
    """The same, and the bucket that batches go through."""

    staging: Annotated[
        str | None,
        Parameter(
            help="Bucket, or folder in one, that batches of vertex go through: gs://bucket/folder; "
            "EMBATCH_STAGING by default."
        ),
    ] = None


GOOGLE: Final = GoogleFlags()
STAGED: Final = StagingFlags()


def client(
    to: str, data: Path | None, at: GoogleFlags = GOOGLE, *, preload: bool = False, rate: str | None = None
) -> Client:
    """Return the client of a target; close it. A private service starts while its caller goes on.

    `preload`: whether it loads its default model at once, for it will be needed.

    Raises:
        InvalidArgument: no such target, or `rate` is none of the forms that --rate has.
    """
    limits = _limits(rate)
    from embatch.client.local import begin  # noqa: PLC0415  (start-up time of --help)

    if to == "local":  # before anything else is imported, which takes as long as the service's own imports
        begin(data or data_folder(), preload=preload)
    from embatch import Client  # noqa: PLC0415

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        staging = at.staging if isinstance(at, StagingFlags) else None
        made = Client(to, data=data, project=at.project, location=at.location, staging=staging, rate=limits)
    if told:
        from embatch.cli.display import report  # noqa: PLC0415

        for one in told:
            report(f"warning: {one.message}")
    return made


def _limits(rate: str | None) -> int | tuple[int, int] | None:
    """Return what --rate says: requests a minute, and perhaps tokens a minute."""
    if rate is None:
        return None
    words = rate.replace("_", "").split(",")
    if len(words) > 2 or not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise InvalidArgument(
            "--rate is requests a minute, or requests and tokens a minute, such as 3000 or 3000,1000000",
            field="--rate",
        )
    requests, *tokens = map(int, words)
    return (requests, tokens[0]) if tokens else requests


def check_range(flag: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Refuse a number that an option cannot be; NaN is one. Raises InvalidArgument."""
    if value is None or least <= value <= most:
        return
    limits = f"{least:,} or more" if most == math.inf else f"from {least:,} to {most:,}"
    raise InvalidArgument(f"{flag} is out of range: it is {limits}, not {value}", field=flag)


def check_name(flag: str, value: str | None) -> None:
    """Refuse a name without a character, as an unset variable of a shell gives. Raises InvalidArgument."""
    if value is not None and not value.strip():
        raise InvalidArgument(f"{flag} is empty: give a name, or leave {flag} out", field=flag)


def check_labels(name: str | None, priority: int) -> None:
    """Refuse what no batch can be called, and a priority that none can have. Raises InvalidArgument."""
    check_name("--name", name)
    check_display_name(name, "--name")
    check_range("--priority", priority, -(1 << 63), (1 << 63) - 1)


def check_dimensions(service: Client, model: str | None, dim: int | None) -> None:
    """Refuse more dimensions than the model has, which is loaded for that. Raises InvalidArgument.

    Where the target does not say how many it has, it refuses them itself.
    """
    from embatch.client.for_runs import ForRuns  # noqa: PLC0415  (start-up time of --help)

    said = None if dim is None else ForRuns(service).embed_reference([], model=model)
    if dim is not None and said is not None and said.dimensions is not None and dim > said.dimensions:
        raise InvalidArgument(f"--dim {dim}: the model has {said.dimensions} dimensions", field="--dim")


@contextmanager
def saying(words: Callable[[], str]) -> Iterator[None]:
    """Say, where Ctrl-C ends what is done here, what stays and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        stopped.add_note(words())
        raise
