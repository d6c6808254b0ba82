"""How a batch goes: by looks at it, by the clock, or by the test's word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hosted.results import Damage

if TYPE_CHECKING:
    from hosted.behaviour import Behaviour, End

FINAL = {"SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED"}


@dataclass
class Job:
    """One batch."""

    ordinal: int
    name: str
    account: str
    """Project whose batch it is."""
    model: str
    display_name: str
    created: float
    tokens: int
    details: dict[str, Any]
    """Fields that the service repeats."""
    rows: Any
    """Where its requests are."""
    problems: bytes
    """A byte a row: whether it fails by itself."""
    state: str = "PENDING"
    looks: int = 0
    free: bool = False
    """Nothing keeps it any more."""
    fails_for_quota: bool = False
    done: float = 1.0
    """Share of its rows that have results."""
    code: int = 0
    """Code of the error with which it ended."""
    message: str = ""
    started: float | None = None
    ended: float | None = None
    updated: float = 0.0
    life: float = 48 * 3600.0
    """Seconds after which it expires, if it has not ended."""
    refused: str = ""
    """Why it fails once it runs."""
    held: int = 0
    """Looks that its results were kept back for."""
    late: int = 0
    """Requests for its files that found none yet."""
    hurt: Damage = field(default_factory=Damage)
    """What its results suffered, once they were made."""
    output: Any = None
    """Where its results are, once they were made."""

    @property
    def count(self) -> int:
        """How many requests it has."""
        return len(self.problems)

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL


def look(job: Job, behaviour: Behaviour, now: float, looks: int = 1) -> None:
    """Let a batch go on, as far as looks and time take it."""
    if job.final:
        return
    job.looks += looks
    if job.state == "CANCELLING":
        if looks:
            _end(job, "CANCELLED", now)
        return
    if now - job.created > job.life:
        _end(job, "EXPIRED", now)
        return
    stays = "" if job.free else behaviour.stay(job.ordinal)
    if stays in {"PENDING", "QUEUED", "PAUSED"}:
        job.state = stays
        return
    if behaviour.seconds_to_end is not None:
        ended = now - job.created >= behaviour.seconds_to_end
        runs = now > job.created
    else:
        ended, runs = job.looks >= behaviour.polls_to_end, job.looks >= behaviour.polls_to_run
    if ended and not stays:
        finish(job, behaviour, now)
    elif (runs or ended) and job.state != "RUNNING":
        job.state, job.started, job.updated = "RUNNING", now, now


def finish(job: Job, behaviour: Behaviour, now: float, end: End | None = None) -> None:
    """End a batch as it should, or as the test says."""
    if job.refused and end is None:
        _end(job, "FAILED", now, 3, job.refused)
        return
    end = end or ("FAILED_QUOTA" if job.fails_for_quota else behaviour.end(job.ordinal))
    job.started = job.started or now
    match end:
        case "FAILED_QUOTA":
            _end(job, "FAILED", now, 8, "Resource has been exhausted (e.g. check quota).")
        case "FAILED":
            _end(job, "FAILED", now, 13, "Internal error encountered.")
        case "CANCELLED":
            _end(job, "CANCELLED", now, behaviour.cancelled_code, "Batch was cancelled.")
        case "PARTIALLY_SUCCEEDED":
            job.done = behaviour.partial
            _end(job, "PARTIALLY_SUCCEEDED", now)
        case _:
            _end(job, end, now)


def cancel(job: Job, behaviour: Behaviour, now: float) -> None:
    """Cancel as the Developer API does: what runs succeeds in part, what waits is cancelled."""
    if job.final:
        return
    if job.state == "RUNNING":
        job.done = behaviour.partial
        _end(job, "SUCCEEDED", now)
        return
    finish(job, behaviour, now, "CANCELLED")


def _end(job: Job, state: str, now: float, code: int = 0, message: str = "") -> None:
    job.state, job.code, job.message = state, code, message
    job.ended = job.updated = now
