"""What a user submits and gets back, as frozen values: request, batch, stats, model, the page of a list.

Nothing here knows the wire, a database or a clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from embatch.errors import InvalidArgument
from embatch.jsontext import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from embatch.errors import Code
    from embatch.states import State

DISPLAY_NAME: Final = 512
"""Most characters of a display name, of a batch as of a file."""
RESULTS: Final = "batch-"
"""How the ids of results files begin; no uploaded file may be named so."""
FILE_ID: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
"""What the id of an uploaded file is made of."""
WAITS: Final = "it waits: "
"""How a note begins that says why a batch is not worked although it could be."""
T = TypeVar("T")


class TaskType(StrEnum):
    """What an embedding is for. A model with prompts of its own gets the prompt that fits."""

    RETRIEVAL_QUERY = "RETRIEVAL_QUERY"
    RETRIEVAL_DOCUMENT = "RETRIEVAL_DOCUMENT"
    SEMANTIC_SIMILARITY = "SEMANTIC_SIMILARITY"
    CLASSIFICATION = "CLASSIFICATION"
    CLUSTERING = "CLUSTERING"
    QUESTION_ANSWERING = "QUESTION_ANSWERING"
    FACT_VERIFICATION = "FACT_VERIFICATION"
    CODE_RETRIEVAL_QUERY = "CODE_RETRIEVAL_QUERY"


def check_display_name(name: str | None, field: str) -> None:
    """Refuse a display name that cannot be stored. Raises InvalidArgument.

    All else is somebody's name, controls and line ends too: whoever shows it shows them as escapes.
    """
    if name is not None and (len(name) > DISPLAY_NAME or "\0" in name or not encodable(name)):
        raise InvalidArgument(
            f"a display name has at most {DISPLAY_NAME} whole characters and no NUL", field=field
        )


def check_file_id(id_: str, field: str) -> None:
    """Refuse an id that no uploaded file may have. Raises InvalidArgument."""
    if FILE_ID.fullmatch(id_) is None or id_.startswith(RESULTS):
        raise InvalidArgument(
            "a file's name is files/ and up to 40 lower-case letters, digits and dashes, neither beginning "
            "nor ending with a dash; names that begin with batch- are those of results",
            field=field,
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One text to embed. Its `index` is its position in the batch."""

    text: str | None
    """`None`, as a table has it where a text is missing: the request fails alone, as NOT_TEXT."""
    key: str | None = None
    """Your own id, echoed with the result; unique within the batch, at most 512 bytes."""
    metadata: Mapping[str, Any] | None = None
    """Any JSON object, echoed with the result, never read."""
    task_type: TaskType | None = None
    title: str | None = None
    """The document's title; only with RETRIEVAL_DOCUMENT."""
    output_dimensionality: int | None = None
    """Leading dimensions wanted, re-normalised; `None` for the model's native number."""


class Texts(Sequence[Request]):
    """Requests that differ in nothing but their text; each is made when it is asked for."""

    def __init__(self, texts: Sequence[str | None], like: Request) -> None:
        self.texts, self.like = texts, like

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, at: int) -> Request: ...

    @overload
    def __getitem__(self, at: slice) -> Texts: ...

    def __getitem__(self, at: int | slice) -> Request | Texts:
        if isinstance(at, slice):
            return Texts(self.texts[at], self.like)
        return replace(self.like, text=self.texts[at])


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Counts of one batch. `successful + failed + pending == request_count` in every answer.

    They count what is durable, so `pending` never grows. In a final state nothing is pending: what a
    cancelled or expired batch did not reach counts as failed.
    """

    request_count: int = 0
    """0 while the input file of a batch is still being planned."""
    successful_request_count: int = 0
    failed_request_count: int = 0
    pending_request_count: int = 0
    uncommitted_request_count: int = 0
    """How many of the pending requests are already embedded but not yet durable: progress within a shard.
    Lost, and done again, if the service is killed."""

    @property
    def progress_percentage(self) -> float:
        """Finished share, durable or not, 0.0 to 100.0; 0.0 while nothing is counted."""
        return self._share(
            self.successful_request_count + self.failed_request_count + self.uncommitted_request_count
        )

    @property
    def success_rate(self) -> float:
        """Successful share of **all** requests, 0.0 to 100.0: low as long as a batch runs."""
        return self._share(self.successful_request_count)

    @property
    def finished_success_rate(self) -> float | None:
        """Successful share of what is finished, durable or not, 0.0 to 100.0; `None` before anything is.

        What to watch while a batch runs. What is not yet durable counts as successful: failures are
        counted with their shard.
        """
        good = self.successful_request_count + self.uncommitted_request_count
        finished = good + self.failed_request_count
        return 100.0 * good / finished if finished else None

    @property
    def failure_rate(self) -> float:
        """Failed share of **all** requests, 0.0 to 100.0."""
        return self._share(self.failed_request_count)

    def _share(self, part: int) -> float:
        return min(100.0, 100.0 * part / self.request_count) if self.request_count else 0.0


@dataclass(frozen=True, slots=True)
class BatchUsage:
    """What a batch took. Only an embatch service reports it; elsewhere everything is zero or `None`."""

    token_count: int = 0
    """Tokens the model saw of the finished requests; those of equal texts count each time."""
    uncommitted_token_count: int = 0
    """Tokens of requests that are embedded but not yet durable; see `uncommitted_request_count`."""
    cached_request_count: int = 0
    """Requests answered from what earlier runs had embedded."""
    cpu_seconds: float = 0.0
    """CPU seconds that engine processes spent on it."""
    interactive_cpu_seconds: float | None = None
    """CPU seconds its tokens would have cost one text at a time, as measured on this service with texts of
    this kind, protocol left out; `None` before that was measured."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it was when it was asked for; ask again for news."""

    name: str
    """`batches/{id}`: keep it, it is all that is needed to come back for the embeddings."""
    model: str
    """`models/{model}`, by the name that it was asked for."""
    state: State
    display_name: str | None
    """`None` only for batches that another client submitted without one."""
    priority: int
    """Higher runs first, strictly; equal priorities take turns."""
    create_time: datetime | None
    """UTC, as all times here; `None` where a foreign service did not say."""
    update_time: datetime | None
    end_time: datetime | None
    """When the batch reached its final state; `None` before."""
    batch_stats: BatchStats = field(default_factory=BatchStats)
    input_file: str | None = None
    """`files/{id}` the requests came from, on Vertex `gs://…`; `None` for an inline batch."""
    responses_file: str | None = None
    """`files/{id}` with the results of a file batch; `None` until there are any, and for inline ones."""
    error: str | None = None
    """Why the batch FAILED, or what stopped it; `None` otherwise."""
    notes: tuple[str, ...] = ()
    """What a user should know about how the batch was worked, such as a task type without a prompt."""
    usage: BatchUsage = field(default_factory=BatchUsage)
    alias_of: str | None = None
    """`models/{model}` that works the batch, where `model` is another name for it; `None`: `model` itself.
    An alias may mean another model one day, the batch never does."""
    error_code: Code | None = None
    """What kind of thing `error` is: RESOURCE_EXHAUSTED is a quota that had no room for the batch."""
    note: str | None = None
    """What its state cannot say, such as that a hosted service has it in a queue or paused; `None` where the
    state says all."""
    fingerprint: str | None = None
    """The mark by which a batch is found again where a submit has no idempotency key, 32 characters; `None`
    where it was submitted without one. It is no part of `display_name`."""

    @property
    def worked_by(self) -> str:
        """`models/{model}` that works the batch: vectors of two batches compare where these are equal."""
        return self.alias_of or self.model

    @property
    def done(self) -> bool:
        """Whether the batch is in a final state."""
        return self.state.final


@dataclass(frozen=True, slots=True)
class Model:
    """A model that a service embeds with."""

    name: str
    """`models/{model}`."""
    display_name: str
    description: str
    max_tokens: int | None
    """Longer texts are cut to this many tokens; `None` where the service does not say."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, newest first; `next_page_token` is `None` on the last page."""

    items: tuple[T, ...]
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of a user."""

    id: str
    display_name: str | None
    mime_type: str
    size: int
    """Bytes."""
    sha256: str
    create_time: datetime
    update_time: datetime
    expire_time: datetime | None
    """When it is deleted; `None` for never."""
    source: str
    """`UPLOADED` or `GENERATED`."""
    path: str
