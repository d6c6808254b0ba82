"""What both batch services have in common: batches, quotas, interactive vectors, and the test's word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hosted import jobs
from hosted.http_server import StandIn
from hosted.replies import Refused, details
from hosted.results import Embedding, damage, embedded, refuse
from hosted.vectors import EMBEDDERS, Vectors, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from hosted.behaviour import Behaviour, End
    from hosted.jobs import Job
    from hosted.moment import Clock
    from hosted.results import Result, Row


class BatchService(StandIn):
    """A stand-in with batches."""

    def __init__(
        self, behaviour: Behaviour | None = None, clock: Clock | None = None, vectors: Vectors | None = None
    ) -> None:
        super().__init__(behaviour, clock)
        self.vectors = vectors or Vectors()
        self.jobs: list[Job] = []
        """Every batch that was created, deleted ones included, in that order."""
        self.items = 0
        """Texts that were embedded interactively."""
        self.cancelled: list[str] = []
        self.deleted: list[str] = []
        self._minute: list[tuple[float, int]] = []

    @property
    def creates(self) -> int:
        """How many batches were created, and so paid."""
        return len(self.jobs)

    def finish(self, name: str | None = None, end: End | None = None) -> None:
        """End a batch, or all of them, now."""
        with self.lock:
            for job in self._those(name):
                if not job.final:
                    jobs.finish(job, self.behaviour, self.clock.now, end)

    def release(self, name: str | None = None) -> None:
        """Let a batch that `stays`, or all of them, go on."""
        with self.lock:
            for job in self._those(name):
                job.free = True

    def _those(self, name: str | None) -> Sequence[Job]:
        return [job for job in self.jobs if name in {None, job.name}]

    def addresses(self) -> dict[str, str]:
        """Return what a client has to know."""
        return {"url": self.url}

    def counts(self) -> dict[str, Any]:
        """Return what was counted, for `/_control`."""
        shown = [
            {"name": job.name, "state": job.state, "display_name": job.display_name, "count": job.count}
            for job in self.jobs
        ]
        return {**super().counts(), "creates": self.creates, "items": self.items, "jobs": shown}

    def tell(self, said: dict[str, Any]) -> None:
        """Do what `/_control` says: also `finish` and `release`, a name or null for all, and `end`."""
        end = said.pop("end", None)
        if "finish" in said:
            self.finish(said.pop("finish"), end)
        if "release" in said:
            self.release(said.pop("release"))
        super().tell(said)

    def find(self, name: str, account: str) -> Job:
        """Return a batch of an account that was not deleted."""
        for job in self.jobs:
            if job.name == name and job.account == account and name not in self.deleted:
                return job
        raise Refused(404, "Requested entity was not found.")

    def weigh(self, rows: Iterable[Row], model: str) -> tuple[bytes, int]:
        """Return a byte a row, 1 where it fails by itself, and the tokens of all."""
        problems, count = bytearray(), 0
        for row in rows:
            problems.append(bool(refuse(row, self.behaviour).problem))
            count += tokens_of(row, model)
        return bytes(problems), count

    def admit(self, count: int, account: str, batches: int | None) -> None:
        """Refuse a batch of so many tokens if too much is in flight."""
        behaviour, (running, enqueued) = self.behaviour, self.in_flight(account)
        many = batches is not None and running >= batches
        much = behaviour.enqueued_tokens is not None and enqueued + count > behaviour.enqueued_tokens
        if many or much:
            raise Refused(429, "", details(behaviour.enqueued_details, 30))

    def add(self, job: Job) -> None:
        """Take up a batch that was admitted."""
        if (most := self.behaviour.failing_tokens) is not None:
            job.fails_for_quota = self.in_flight(job.account)[1] + job.tokens > most
        job.updated = job.created
        self.jobs.append(job)

    def in_flight(self, account: str) -> tuple[int, int]:
        """Count batches that have not ended, and their tokens."""
        for job in self.jobs:
            jobs.look(job, self.behaviour, self.clock.now, 0)
        mine = [job for job in self.jobs if job.account == account and not job.final]
        return len(mine), sum(job.tokens for job in mine)

    def page(self, account: str, size: int, before: int | None) -> tuple[list[Job], bool]:
        """Return a page of the list, newest first, and whether more follow."""
        behaviour, now = self.behaviour, self.clock.now
        shown = [
            job
            for job in self.jobs[::-1]
            if job.account == account
            and job.name not in self.deleted
            and (before is None or job.ordinal < before)
            and now - job.created >= behaviour.lists_late_seconds
        ]
        size = min(size, behaviour.list_size or size)
        for job in shown[:size]:
            jobs.look(job, behaviour, now, 0)
        return shown[:size], len(shown) > size

    def made(self, job: Job, rows: Iterable[Row], model: str) -> Iterator[Result]:
        """Yield the results of a batch, with what its behaviour does to them."""
        good = [refuse(row, self.behaviour) for row in rows]
        job.hurt = damage(good, self.behaviour, job.ordinal)
        return Embedding(self.vectors, model, self.behaviour, job.done).results(good, job.hurt)

    def embed_now(self, rows: Sequence[Row], model: str) -> tuple[list[Any], int]:
        """Return vectors of an interactive call, and its tokens."""
        behaviour = self.behaviour
        for at, row in enumerate(rows):
            if problem := refuse(row, behaviour).problem:
                raise Refused(400, f"* EmbedContentRequest[{at}].content: {problem}")
        self._spend(len(rows))
        found = []
        for row in rows:
            self.items += 1
            clean = embedded(self.vectors, model, row, behaviour)
            found.append(self.vectors.noisy(clean, behaviour.scatter, f"{self.items}"))
        kept = found[: max(1, len(found) - behaviour.short_replies)] if len(found) > 1 else found
        return kept, sum(tokens_of(row, model) for row in rows)

    def _spend(self, count: int) -> None:
        if self.behaviour.items_a_minute is None:
            return
        now = self.clock.now
        self._minute = [(at, n) for at, n in self._minute if now - at < 60]
        if sum(n for _, n in self._minute) + count > self.behaviour.items_a_minute:
            oldest = self._minute[0][0] if self._minute else now
            raise Refused(429, "", details("quota", oldest + 60 - now))
        self._minute.append((now, count))


def served(job: Job) -> int:
    """Return how many rows, the first ones, a batch has done."""
    return -int(-job.done * job.count // 1)


def tokens_of(row: Row, model: str) -> int:
    """Count the tokens of a row that the model reads."""
    return min(len(tokens(row.text)), EMBEDDERS[model].tokens)
