"""How badly a stand-in behaves: with every switch off it does what the live services do on a good day.

    Behaviour(seed=7, reorder=True, swap_pairs=2, faults=(Fault("create", calls=(1,), cut="handled"),))

What the services always do is no switch: `done` is absent until the end, zero counters are left out, inline
results come under a doubled key, vectors below the native width are not of unit length.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Cut = Literal["unread", "request", "handled", "head", "body", "end", "silent"]
"""Where a connection breaks: before the request is read; in its body, `at` bytes in; once it was handled,
before the first byte of the reply; after the reply's head; in its body, `at` bytes in; after its last byte.
`silent`: the request is read and nothing is answered until the client leaves or the stand-in closes.
"""
Details = Literal["none", "help", "retry", "quota"]
End = Literal["SUCCEEDED", "FAILED", "FAILED_QUOTA", "EXPIRED", "CANCELLED", "PARTIALLY_SUCCEEDED"]


@dataclass(frozen=True, kw_only=True)
class _FaultFields:
    calls: tuple[int, ...] = ()
    """Which calls of the route, counted from 1 since the stand-in began; empty: every one."""
    chance: float = 1.0
    """Share of these calls, chosen by the seed."""
    status: int = 503
    handled: bool = False
    """Do what was asked before it is refused, or before the silence: a gateway that lost patience."""
    details: Details = "none"
    retry_seconds: float = 2.0
    """For RetryInfo (details `retry` or `quota`)."""
    retry_after: str = ""
    """Header Retry-After; empty: not sent."""
    plain: str = ""
    """Body instead of Google's envelope, as a proxy in between writes."""
    cut: Cut | None = None
    """Break the connection instead of answering with `status`."""
    at: int = 0
    """Bytes of the body that get through, for `request` and `body`."""
    reset: bool = False
    """Break it by RST instead of FIN."""


@dataclass(frozen=True)
class Fault(_FaultFields):
    """One thing that goes wrong on a route."""

    route: str
    """Name of a route or a pattern with `*`; the module of each stand-in lists its routes."""

    def hits(self, route: str, call: int, seed: int) -> bool:
        """Say whether the `call`-th call of `route` is one of those."""
        if not fnmatchcase(route, self.route) or (self.calls and call not in self.calls):
            return False
        return self.chance >= 1 or random.Random(f"{seed}:{route}:{call}").random() < self.chance


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What a stand-in does wrong, and how fast it works; `calls` and batches are counted from 1."""

    seed: int = 0
    faults: tuple[Fault, ...] = ()
    """Asked in turn; the first that hits decides."""

    # Which results belong to which line. Numbers are rows of each batch.
    reorder: bool = False
    swap_pairs: int = 0
    """Pairs of rows that exchange keys."""
    drop: int = 0
    double: int = 0
    """Lines that come twice, alike."""
    double_differently: int = 0
    """Lines that come twice, the second time with another row's vector."""
    shift: int = 0
    """Length of a run of rows each of which gets the vector of the next."""
    reverse: int = 0
    """Length of a run of rows that get their vectors backwards."""
    shuffle: int = 0
    """Length of a run of rows whose vectors are shuffled."""
    same_vector: int = 0
    """Rows that all get one vector."""
    foreign: int = 0
    """Rows that get the vector of a text that nobody sent."""
    damaged_batches: tuple[int, ...] = ()
    """Creates to which the above applies; empty: all."""

    # How results look, and when they are there.
    results_in: Literal["both", "response", "metadata"] = "both"
    """Which of the two places holds the results of a finished Gemini batch."""
    zeros: bool = False
    """Say `done: false` and zero counters, which the live service leaves out."""
    status_lines: bool = False
    """Failed lines of a Gemini results file say `status` instead of `error`; Vertex: `error` for `status`."""
    late_results: int = 0
    """Looks at a finished batch for which its results are not said yet."""
    late_files: int = 0
    """Downloads, the first ones, that find no results file yet: 403, from Cloud Storage 404."""
    refused_word: str = ""
    """Texts with it fail by themselves, with code 3."""
    ignore_dimensions: bool = False
    short_replies: int = 0
    """Vectors left out at the end of each interactive reply for several texts."""
    scatter: float = 0.0
    """Length of the noise by which interactive vectors differ from those of batches, call by call."""

    # How a batch goes.
    polls_to_run: int = 1
    """Looks after which a batch is RUNNING."""
    polls_to_end: int = 2
    """Looks after which it ends; 1 answers at once."""
    seconds_to_end: float | None = None
    """Seconds of the clock after which it ends, in place of looks."""
    stays: Literal["", "QUEUED", "PENDING", "RUNNING", "PAUSED"] = ""
    """The state that a batch does not leave until the test says so."""
    staying_batches: tuple[int, ...] = ()
    """Creates that stay; empty: all."""
    ends: tuple[End, ...] = ()
    """How the first batches end, in the order of their creates; later ones succeed."""
    partial: float = 0.5
    """Share of rows that a batch has done that is cancelled while it runs, or that succeeds in part."""
    cancelled_code: int = 13
    """Code of a batch cancelled before it ran; the documentation says 1."""

    # What is allowed.
    enqueued_tokens: int | None = None
    """A create that would have more in flight is refused."""
    enqueued_details: Details = "help"
    failing_tokens: int | None = None
    """A batch that has more in flight is accepted and ends FAILED with code 8."""
    concurrent_batches: int = 100
    items_a_minute: int | None = None
    """Interactive texts in a minute of the clock."""
    count_tokens: bool = True
    """Whether countTokens is there."""

    # Lists.
    lists_late_seconds: float = 0.0
    """Seconds of the clock after its creation at which a batch appears in the list."""
    list_size: int | None = None
    """Most entries of a page, whatever is asked for."""
    stale_lists: bool = False
    """A finished batch is listed with all its requests pending."""

    # Files.
    granularity: int = 256 * 1024
    """What an upload that breaks keeps is a multiple of it; 1 keeps every byte."""
    files_processing: int = 0
    """Looks for which an uploaded file is PROCESSING."""
    files_in_v1: bool = False
    """Serve files and uploads under `v1`, which by Google's discovery document has neither."""

    # Vertex.
    output_files: int = 1
    output_name: str = "predictions"
    """First part of the names of the output files; a number follows where there are several."""
    echo_request: bool = False
    """Gemini lines of Vertex hold the `request` that was sent."""
    serves_many: bool = False
    """Answer `:batchEmbedContents` of Vertex, which is 404."""
    storage_wants_token: bool = False
    """Refuse requests to Cloud Storage without a token that counts."""
    token_seconds: float = 3600.0
    """Seconds of the clock for which a token counts."""

    def fault(self, route: str, call: int) -> Fault | None:
        """Return what goes wrong with the `call`-th call of `route`, if anything."""
        return next((fault for fault in self.faults if fault.hits(route, call, self.seed)), None)

    def end(self, ordinal: int) -> End:
        """Return how the `ordinal`-th batch ends."""
        return self.ends[ordinal - 1] if ordinal <= len(self.ends) else "SUCCEEDED"

    def stay(self, ordinal: int) -> str:
        """Return the state that the `ordinal`-th batch does not leave, or nothing."""
        return self.stays if not self.staying_batches or ordinal in self.staying_batches else ""

    def damages(self, ordinal: int) -> bool:
        """Say whether the results of the `ordinal`-th batch are damaged, if any are."""
        return not self.damaged_batches or ordinal in self.damaged_batches

    def to_json(self) -> str:
        """Write it for another process."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes) -> Behaviour:
        """Read what `to_json` wrote, or any part of it."""
        return Behaviour(**told(json.loads(text)))


def told(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `Behaviour` that a JSON object holds; ValueError where it has no such field."""
    if unknown := said.keys() - {field.name for field in fields(Behaviour)}:
        raise ValueError(f"no such behaviour: {', '.join(sorted(unknown))}")
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    if "faults" in read:
        faults = [{**one, "calls": tuple(one.get("calls", ()))} for one in read["faults"]]
        read["faults"] = tuple(Fault(**one) for one in faults)
    return read


def wild(seed: int) -> Behaviour:
    """Return a mixture by seed that damages no result: a careful client ends with every vector, paid once."""
    chosen = random.Random(f"wild:{seed}")
    routes = ("create", "status", "list", "download", "upload.*", "embed*", "file*", "storage.*")
    refusals = [
        Fault(
            route, chance=0.1, status=chosen.choice((429, 500, 503)), details=chosen.choice(("none", "retry"))
        )
        for route in chosen.sample(routes, 3)
    ]
    cuts: tuple[Cut, ...] = ("unread", "request", "handled", "head", "body")
    breaks = [
        Fault(
            route, chance=0.1, cut=chosen.choice(cuts), at=chosen.randrange(500), reset=chosen.random() < 0.5
        )
        for route in chosen.sample(routes, 3)
    ]
    return Behaviour(
        seed=seed,
        faults=(*refusals, *breaks),
        reorder=chosen.random() < 0.5,
        results_in=chosen.choice(("both", "response", "metadata")),
        zeros=chosen.random() < 0.5,
        status_lines=chosen.random() < 0.5,
        late_results=chosen.randrange(3),
        late_files=chosen.randrange(3),
        polls_to_end=chosen.randrange(1, 5),
        lists_late_seconds=chosen.choice((0.0, 30.0, 200.0)),
        list_size=chosen.choice((None, 1, 3)),
        stale_lists=chosen.random() < 0.5,
        granularity=chosen.choice((1, 256 * 1024)),
        output_files=chosen.choice((1, 3)),
        echo_request=chosen.random() < 0.5,
    )
