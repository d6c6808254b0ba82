"""A run's way under a deadline and a cap: pure choices on a simulated clock, against batches that stall."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import ResourceExhausted
from embatch.runs.budget import Budget
from embatch.runs.course import Course, Piece, Way
from embatch.runs.flight import Flight, FlightLimits
from embatch.runs.polling import between

BATCH, ALONE = 0.075, 0.15
DAY = 86_400.0
SLOW = 1.25
"""How much slower than it says the other way can be."""
REST = 180.0
"""Seconds that the polls, the verdict and the writing may take."""


@dataclass
class World:
    """A service on a simulated clock: batches that come back, stall, or are refused, and a run against it."""

    rng: random.Random
    pieces: list[Piece]
    takes: dict[int, float]
    """Seconds until the batch of a piece ends; infinite for one that stalls."""
    room: int
    """Tokens that the service lets wait; more is refused at the submit, or fails afterwards."""
    course: Course
    flight: Flight
    pace: float
    """How much longer the other way takes than it says."""
    now: float = 0.0
    paid: float = 0.0
    moved: set[int] = field(default_factory=set)
    done: dict[int, float] = field(default_factory=dict)
    stopped: bool = False
    _ends: dict[int, float] = field(default_factory=dict)
    _polls: list[tuple[float, int]] = field(default_factory=list)
    _begun: dict[int, float] = field(default_factory=dict)
    _fails: set[int] = field(default_factory=set)

    def run(self, until: float) -> None:
        """Go on until all is done, nothing can be begun any more, or a moment is past."""
        while self.pieces and not self.stopped and self.now < until:
            self._poll()
            step = self.course.step(self.pieces, self.flight, self.now)
            self._check_cap()
            if step.moved is not None:
                self._move(step.moved)
            elif step.begun is not None:
                self._begin(step.begun)
            elif step.stopped:
                self.stopped = True
            else:
                polls = self._polls[0][0] if self._polls else math.inf
                self.now = min(self.now + max(step.seconds, 0.001), max(polls, self.now), until)

    def _check_cap(self) -> None:
        cap = self.course.budget.cap
        assert cap is None or max(self.paid, self.course.budget.committed) <= cap + 1e-6

    def _piece(self, key: int) -> Piece:
        return next(piece for piece in self.pieces if piece.key == key)

    def _put(self, piece: Piece) -> None:
        self.pieces = [piece if one.key == piece.key else one for one in self.pieces]

    def _drop(self, piece: Piece) -> None:
        self.pieces = [one for one in self.pieces if one.key != piece.key]
        self.done[piece.key] = self.now
        self._forget(piece.key)

    def _forget(self, key: int) -> None:
        self._polls = [poll for poll in self._polls if poll[1] != key]
        heapq.heapify(self._polls)
        self._ends.pop(key, None)

    def _begin(self, piece: Piece) -> None:
        full = sum(one.tokens for one in self.pieces if one.sent) + piece.tokens > self.room
        waiting = any(one.sent for one in self.pieces)
        if full and waiting and self.rng.random() < 0.5:
            self.flight.refused(
                ResourceExhausted("full", retry_after=self.rng.choice([None, 34.0, 9e4])), self.now
            )
            return
        assert self.course.budget.reserve(("batch", piece.key), piece.batch)
        self.flight.begun(piece.key, piece.tokens, self.now)
        self._put(replace(piece, sent=True))
        self._begun[piece.key] = self.now
        self._ends[piece.key] = self.now + self.takes[piece.key]
        if full and waiting:
            self._fails.add(piece.key)
            self._ends[piece.key] = self.now + 1.0
        heapq.heappush(self._polls, (self.now + 2.0, piece.key))

    def _poll(self) -> None:
        while self._polls and self._polls[0][0] <= self.now:
            _, key = heapq.heappop(self._polls)
            piece = self._piece(key)
            if self.now < self._ends[key]:
                wait = between(piece.requests, self.now - self._begun[key], self.flight.batches)
                heapq.heappush(self._polls, (self.now + wait, key))
            elif key in self._fails:  # accepted, and failed for quota
                self._fails.remove(key)
                self._forget(key)
                self.course.budget.release(("batch", key))
                self.flight.ended(key, self.now, good=False)
                self.flight.refused(ResourceExhausted("full"), self.now)
                self._put(replace(piece, sent=False))
            else:
                cost = piece.batch * self.rng.uniform(0.8, 1.0)
                self.course.budget.settle(("batch", key), cost)
                self.paid += cost
                self.flight.ended(key, self.now)
                self._drop(piece)

    def _move(self, piece: Piece) -> None:
        way = self.course.way
        assert way is not None
        assert self.course.budget.reserve(("alone", piece.key), piece.alone)
        self.paid += piece.alone + (piece.batch if piece.sent else 0.0)
        self.moved.add(piece.key)
        self.flight.ended(piece.key, self.now, good=False)
        self.now += way.seconds([piece]) * self.pace
        self._drop(piece)


def piece(key: int, requests: int, tokens: int) -> Piece:
    """Return a block that no batch has."""
    return Piece(key, requests, tokens, tokens / 1e6 * BATCH, tokens / 1e6 * ALONE)


def world(seed: int) -> World:
    """Return a run by its seed: from one in which all comes back to one in which nothing does."""
    rng = random.Random(seed)
    pieces = [
        piece(key, rng.randrange(1, 3_000), rng.randrange(100, 400_000)) for key in range(rng.randrange(1, 9))
    ]
    stalls = rng.choice([0.0, 0.2, 0.5, 1.0])
    takes = {one.key: math.inf if rng.random() < stalls else 60 * 10 ** rng.uniform(0, 2.3) for one in pieces}
    way = Way("interactive", rng.choice([5.0, 50.0]), rng.choice([2_000.0, 16_000.0]))
    alone = sum(one.alone for one in pieces)
    cap = rng.choice([None, alone * rng.uniform(0.3, 1.7)])
    need = SLOW * way.seconds(pieces) + REST
    deadline = rng.choice([need + rng.uniform(0, DAY / 8), need * rng.uniform(0.2, 1.0)])
    course = Course(Budget(cap), way, deadline)
    flight = Flight(FlightLimits(rng.choice([1, 3, 90]), rng.choice([None, 500_000])), rng.random)
    return World(
        rng, pieces, takes, rng.choice([400_000, 10**9]), course, flight, rng.choice([0.3, 1.0, SLOW])
    )


@pytest.mark.parametrize("seeds", [range(at, at + 100) for at in range(0, 1_000, 100)], ids=str)
def test_the_cap_is_never_passed_and_the_deadline_kept_whenever_it_can_be(seeds: range) -> None:
    """The cap at every moment; the deadline wherever the money for all is there and the time is enough."""
    for seed in seeds:
        one = world(seed)
        course, pieces, way = one.course, list(one.pieces), one.course.way
        assert way is not None
        assert course.deadline is not None
        begun = course.starts(course.movable(pieces))
        insured = course.insured(pieces)
        one.run(course.deadline)
        late = one.pieces
        if insured and begun >= 0:
            assert not late, f"seed {seed}: {late} are late"
        # Where it was not kept, no money was left, or there had been too little time from the beginning.
        assert not late or begun < 0 or not course.movable(late), f"seed {seed}: {late} could have gone"


@pytest.mark.parametrize("seeds", [range(at, at + 100) for at in range(0, 200, 100)], ids=str)
def test_nothing_is_paid_twice_that_comes_back_in_time(seeds: range) -> None:
    """Where every batch is back before the last moment, none goes the other way."""
    for seed in seeds:
        one = world(seed)
        whole = replace(one.course, budget=Budget(None))
        patient = replace(one, course=whole, takes=dict.fromkeys(one.takes, 60.0), room=10**9)
        assert whole.way is not None
        time = 600.0 * len(one.pieces) + SLOW * whole.way.seconds(one.pieces) + REST
        patient.course = replace(whole, deadline=time)
        patient.run(time)
        assert not patient.pieces
        assert not patient.moved


def test_a_run_without_enough_money_stops() -> None:
    """Nothing is in flight and nothing can be begun: the run says so, and does not wait for ever."""
    pieces = [piece(0, 10, 1_000_000), piece(1, 10, 1_000_000)]
    course, flight = Course(Budget(0.10), Way("interactive", 50, 16_000)), flown()
    first = course.step(pieces, flight, 0.0)
    assert first.begun == pieces[0]
    course.budget.reserve("batch", pieces[0].batch)
    flight.begun(0, 1_000_000, 0.0)
    waits = course.step([replace(pieces[0], sent=True), pieces[1]], flight, 0.0)
    assert waits.seconds == math.inf
    assert not waits.stopped
    assert course.step(pieces[1:], flight, 0.0).stopped


def test_what_pays_for_all_in_the_end_is_not_spent_on_batches() -> None:
    """With just enough for full price no batch is begun: it might not come back. With more, some are."""
    pieces = [piece(key, 10, 1_000_000) for key in range(4)]
    way = Way("interactive", 50, 16_000)
    assert Course(Budget(0.60), way, DAY).step(pieces, flown(), 0.0).begun is None
    assert Course(Budget(0.675), way, DAY).step(pieces, flown(), 0.0).begun == pieces[0]
    # Without a deadline, or with too little for it anyway, nothing is kept back.
    assert Course(Budget(0.60), way).step(pieces, flown(), 0.0).begun == pieces[0]
    assert Course(Budget(0.59), way, DAY).step(pieces, flown(), 0.0).begun == pieces[0]


def test_a_batch_that_cannot_be_back_is_not_begun() -> None:
    """Near the last moment a block waits for it, and is paid once."""
    one, way = piece(0, 10, 1_000), Way("interactive", 50, 16_000)
    course = Course(Budget(None), way, 10_000.0)
    assert course.step([one], flown(), 0.0, usual=3_600.0).begun == one
    late = course.step([one], flown(), 8_000.0, usual=3_600.0)
    assert late.begun is None
    assert course.step([one], flown(), 8_000.0 + late.seconds, usual=3_600.0).moved == one


@given(st.lists(st.floats(0, 10), max_size=8), st.floats(0, 30))
def test_a_budget_holds_whatever_is_asked(amounts: list[float], cap: float) -> None:
    """What does not fit is refused and changes nothing; what is settled or released makes room."""
    budget = Budget(cap)
    for key, amount in enumerate(amounts):
        before, fits = budget.committed, budget.fits(amount)
        assert budget.reserve(key, amount) == fits
        assert fits or budget.committed == before
        assert budget.committed <= cap + 1e-6
    for key in range(len(amounts)):
        budget.settle(key, 0.0) if key % 2 else budget.release(key)
    assert budget.committed == 0.0
    assert budget.room == cap


def flown() -> Flight:
    """Return a flight with nothing in it."""
    return Flight(FlightLimits(90, None), lambda: 0.0)
