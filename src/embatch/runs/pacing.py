"""When the blocks of a run are handed over, asked for, and sent another way; and what that costs.

The choices are in `flight`, `course` and `polling`, the money in `spending`: here they meet one run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from embatch.client.base import target_of
from embatch.errors import EmbatchError, FailedPrecondition, InvalidArgument
from embatch.runs.bill import bill
from embatch.runs.counts import Counts
from embatch.runs.course import Course, Piece, Step, Way
from embatch.runs.deadline import Terms
from embatch.runs.flight import Flight, FlightLimits
from embatch.runs.in_flight import InFlight, tokens_of
from embatch.runs.polling import StuckWatch, between
from embatch.runs.progress import between_polls
from embatch.runs.spending import AT_ONCE, BATCH, Spending
from embatch.runs.tokens import TokenRate
from embatch.states import State

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from embatch.batch import Batch
    from embatch.client.client import Client
    from embatch.client.providers.provider import Capabilities
    from embatch.client.results import BatchResult
    from embatch.runs.alignment.sampling import Budget as Checks
    from embatch.runs.bill import Bill
    from embatch.runs.blocks import Blocks
    from embatch.runs.clock import Clock
    from embatch.runs.ledger import Ledger
    from embatch.runs.ledger_lines import Block
    from embatch.runs.options import RunOptions
    from embatch.runs.prices import Price

REQUESTS, TOKENS = 50.0, 16_000.0
"""Texts and tokens a second that a hosted API takes at once: a guess, until the first block went that way."""
_CHARACTERS: Final = 4
"""Characters of a token, for what is paid by them and was only counted in tokens."""
_SAMPLE: Final = 200
"""Texts of the first block whose tokens are counted, which costs nothing."""


@dataclass(slots=True)
class Pacing:
    """The pace and the money of one run."""

    client: Client
    clock: Clock
    flight: Flight
    price: Price | None
    """`None` where what is embedded has none: then nothing is counted in dollars."""
    spending: Spending
    course: Course | None = None
    """`None` where there is neither a deadline nor a cap."""
    rate: TokenRate = field(default_factory=TokenRate)
    stuck: StuckWatch = field(default_factory=StuckWatch)
    _sizes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    """Requests, reckoned tokens and characters of every block that is not done."""
    _begun: dict[int, float] = field(default_factory=dict)
    _longest: int = 0
    """Reckoned tokens of the longest text."""
    _notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, client: Client, can: Capabilities, options: RunOptions, price: Price | None, ledger: Ledger
    ) -> Pacing:
        """Return the pace of a run that begins or goes on, with its terms kept for later calls."""
        flight = Flight(FlightLimits.of(can))
        spending = Spending() if price is None else Spending.read(ledger.folder, fresh=ledger.fresh)
        pacing = cls(client, options.clock, flight, price, spending)
        if price is not None:
            now = datetime.fromtimestamp(options.clock.now(), UTC)
            terms = spending.terms.moved(options.deadline, options.max_cost, now)
            spending.keep(terms)
            if terms != Terms():
                left = None if terms.deadline is None else (terms.deadline - now).total_seconds()
                deadline = None if left is None else options.clock.monotonic() + left
                pacing.course = Course(spending.budget, Way("interactive", REQUESTS, TOKENS), deadline)
        return pacing

    def survey(self, blocks: Blocks, ledger: Ledger, checks: Checks) -> None:
        """Learn the sizes of all blocks that are to be done: what they may cost is told before any is sent.

        Args:
            blocks: of the run.
            ledger: of the run.
            checks: how many texts may be embedded again to check vectors.

        Raises:
            InvalidArgument: all together they cost more than the cap, and nothing was sent yet.
        """
        if self.course is None or self.price is None:
            return
        fresh = not list(self.spending)
        seen = replace(blocks, counts=Counts.of(blocks.counts.source, ledger))  # it counts what is read later
        for number, rows in seen.todo():
            block = InFlight.of(number, rows, ledger)
            if block.requests:
                texts = block.sent(ledger).texts
                self._calibrate(texts)
                self._size(block)
                self._longest = max(self._longest, *(tokens_of([text]) for text in texts))
        pieces = self._pieces({}, ())
        cost, alone = sum(one.batch for one in pieces), sum(one.alone for one in pieces)
        done = sum(block.rows for block in ledger.blocks.values())
        again = checks.of_run(done + sum(one.requests for one in pieces)) * self.rate.tokens(self._longest)
        _, checked = self.price.of(again, again * _CHARACTERS)
        cost, cap = cost + checked, self.spending.budget.cap
        if cap is not None and fresh and cost > cap:
            raise InvalidArgument(
                f"as batches this costs about ${cost:,.4f}, more than --max-cost ${cap:,.4f}: raise it, or "
                "give fewer rows",
                field="--max-cost",
            )
        if again:
            self.spending.keep_back(again, checked)
        if self.course.deadline is not None and not self.course.insured(pieces):
            self._notes.append(
                f"at once all that is left costs about ${alone:,.4f}, and --max-cost leaves "
                f"${self.spending.budget.room:,.4f}: whether the deadline is kept depends on the batches"
            )

    def _calibrate(self, texts: list[str]) -> None:
        """Count the tokens of some texts, once, where the service does that."""
        if self._sizes:
            return
        sample = texts[:_SAMPLE]
        try:
            counted = self.client.count_tokens(sample)
        except EmbatchError:  # many an embedding model counts none
            return
        self.rate.learn(tokens_of(sample), counted)

    def _size(self, block: InFlight) -> tuple[int, int, int]:
        size = self._sizes[block.number] = (block.requests, block.tokens, block.characters)
        return size

    def _pieces(self, flying: Mapping[int, InFlight], apart: Collection[int]) -> list[Piece]:
        found = []
        for number in sorted(self._sizes.keys() - apart):
            block = flying.get(number)
            polled = None if block is None else block.polled
            running = polled is not None and polled.state is not State.PENDING
            found.append(self._piece(number, sent=block is not None, running=running))
        return found

    def _piece(self, number: int, *, sent: bool = False, running: bool = False) -> Piece:
        requests, reckoned, characters = self._sizes[number]
        tokens = self.rate.tokens(reckoned)
        batch, alone = (0.0, 0.0) if self.price is None else self.price.of(tokens, characters)
        return Piece(number, requests, tokens, batch, alone, sent, running)

    # what to do

    def step(
        self, following: InFlight | None, flying: Mapping[int, InFlight], apart: Collection[int], now: float
    ) -> Step:
        """Return what to do now.

        Args:
            following: the first block that is not handed over, if it is read.
            flying: those that are handed over.
            apart: numbers of those of which nobody knows whether they are: they go no other way meanwhile.
            now: the time, by the monotonic clock.

        Raises:
            FailedPrecondition: the cap has no room for what is left, and nothing is in flight.
        """
        if self.course is None:
            if following is not None and self.flight.may_begin(following.tokens, now):
                return Step(begun=self._piece_of(following))
            return Step(seconds=self.flight.pause(now) if following is not None else 0.0)
        if following is not None and following.requests:
            self._size(following)
        elif following is not None:  # nothing of it is sent, and it costs nothing
            return Step(begun=self._piece_of(following))
        step = self.course.step(self._pieces(flying, apart), self.flight, now, self.stuck.usual)
        if step.stopped:
            self._stop()
        return step

    def _piece_of(self, block: InFlight) -> Piece:
        return Piece(block.number, block.requests, block.tokens, 0.0, 0.0)

    def _stop(self) -> None:
        budget = self.spending.budget
        raise FailedPrecondition(
            f"--max-cost ${budget.cap or 0:,.4f} is reached: ${budget.committed:,.4f} is spent or under way, "
            "and the next block does not fit. What is done is kept: the same command with a higher "
            "--max-cost goes on",
            field="--max-cost",
        )

    def interval(self, block: InFlight, blocks: int) -> float:
        """Return the seconds until a block's batch is asked for again; `blocks`: those that are done."""
        requests = block.requests
        if not self.flight.limits.waits:
            return between_polls(requests, blocks)
        age = self.clock.monotonic() - self._begun.get(block.number, self.clock.monotonic())
        return between(requests, age, self.flight.batches)

    # what happened

    def begin(self, block: InFlight) -> bool:
        """Count a block's batch before it is created; return whether the cap has room for it."""
        if self.price is None or not block.requests:
            return True
        number = block.number
        self._size(block)
        piece = self._piece(number)
        return self.spending.begin(number, BATCH, piece.tokens, piece.batch)

    def begun(self, block: InFlight) -> None:
        """Count it in flight."""
        now = self.clock.monotonic()
        self._begun.setdefault(block.number, now)
        self.flight.begun(block.number, self.rate.tokens(block.tokens), now)

    def refused(self, block: InFlight, error: EmbatchError) -> None:
        """Count it no more: its submit was refused, or it failed for want of quota, and cost nothing.

        Raises the error where that is not waited for.
        """
        number = block.number
        self.flight.ended(number, self.clock.monotonic(), good=False)
        self.flight.refused(error, self.clock.monotonic())
        self._begun.pop(number, None)
        self.spending.settle(number, BATCH, 0, 0.0)
        self._notes.append(self.flight.note(self.clock.monotonic()))

    def looked(self, batch: Batch) -> None:
        """Notice that a batch goes nowhere."""
        said = self.stuck.look(batch, self.clock.monotonic()) if self.flight.limits.waits else None
        if said is not None:
            self._notes.append(said)

    def ended(self, block: InFlight, batch: Batch | None, result: BatchResult | None) -> None:
        """Count what a block's batch has cost."""
        number, now = block.number, self.clock.monotonic()
        self.flight.ended(number, now)
        if batch is not None and number in self._begun:
            self.stuck.ended(batch.name, now - self._begun[number])
        self._settle(block, BATCH, result)

    def _settle(self, block: InFlight, way: str, result: BatchResult | None) -> None:
        number = block.number
        if self.price is not None and result is not None:
            requests, reckoned, characters = self._size(block)
            counted = int(result.tokens.sum())
            if way == BATCH and len(result) == requests and not result.failed_responses:
                self.rate.learn(reckoned, counted)
            tokens = counted or self.rate.tokens(reckoned)
            prices = self.price.of(tokens, characters)
            self.spending.settle(number, way, tokens, prices[0] if way == BATCH else prices[1])
        self._sizes.pop(number, None)
        self._begun.pop(number, None)

    # the other way

    def move(self, block: InFlight, batch: Batch | None) -> None:
        """Count a block that is to go the other way, and its batch as given up, in full for now.

        Raises:
            FailedPrecondition: the cap has no room for it.
        """
        number = block.number
        self._size(block)
        piece = self._piece(number)
        self.flight.ended(number, self.clock.monotonic(), good=False)
        self.spending.give_up(number, 1.0)
        if not self.spending.begin(number, AT_ONCE, piece.tokens, piece.alone):
            self._stop()
        given = "" if batch is None else f"; {batch.name} is given up"
        self._notes.append(
            f"{piece.requests:,} texts are embedded at once for about ${piece.alone:,.4f}, to be done in "
            f"time{given}"
        )

    def tokens(self, block: InFlight) -> int:
        """Return about how many tokens the texts of a block have."""
        return self.rate.tokens(block.tokens)

    def came_back(self, block: InFlight) -> None:
        """Count the batch again of a block that was to go the other way: it was done that moment."""
        self.spending.settle(block.number, AT_ONCE, 0, 0.0)
        self.spending.take_back(block.number)

    def given_up(self, block: InFlight, batch: Batch) -> None:
        """Count what of a batch that is given up is paid all the same."""
        self.stuck.forget(batch.name)
        self.spending.take_back(block.number)
        self.spending.give_up(block.number, _worked(batch))

    def moved(self, block: InFlight, result: BatchResult, seconds: float) -> None:
        """Count what it has cost, and learn how fast the other way is."""
        course, piece = self.course, self._piece(block.number)
        if course is not None and course.way is not None and (took := course.way.seconds([piece])) > 1.0:
            way, slower = course.way, max(0.2, seconds / took)
            way = Way(way.name, way.requests_per_second / slower, way.tokens_per_second / slower)
            self.course = Course(course.budget, way, course.deadline)
        self._settle(block, AT_ONCE, result)

    # what to say

    def notes(self) -> str:
        """Return what is new for people, in one line; empty where nothing is."""
        said, self._notes = " · ".join(filter(None, self._notes)), []
        return said

    def bill(self, blocks: Iterable[Block], options: RunOptions) -> Bill | None:
        """Return what the run cost; `None` where nothing has a price."""
        if self.price is None:
            return None
        blocks = list(blocks)
        checks = sum((block.alignment or {}).get("tokens", 0) for block in blocks)
        if checks or self.course is not None:
            self.spending.keep_back(checks, self.price.of(checks, checks * _CHARACTERS)[1])
        provider = target_of(self.client).provider.name
        return bill(self.spending, blocks, self.price, provider, options.prices.date)


def _worked(batch: Batch) -> float:
    """Return the share of a batch that may be on the bill: what it had done, or all where it does not say."""
    stats = batch.batch_stats
    if not batch.done or not stats.request_count:
        return 1.0
    return min(1.0, stats.successful_request_count / stats.request_count)
