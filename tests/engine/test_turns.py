"""Whose micro-batch is next: nobody is left out, priorities hold, equals share, alone is alone."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from embatch.engine.turns import Turn, Turns

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS = st.integers(1, 4096)
SIZES = st.lists(TOKENS, max_size=6)


def _open(turns: Turns, job: int, batch: str, sizes: Sequence[int], priority: int = 0) -> None:
    """Open a job, encoded and planned at once."""
    turns.open(job, batch, priority)
    while (encoded := turns.encode()) is not None:
        turns.plan(encoded, enumerate(sizes) if encoded == job else [])


def _run(turns: Turns) -> Turn | None:
    """Run one micro-batch to its end; `None` where there is none."""
    turn = turns.next()
    if turn is not None:
        turns.end(turn)
    return turn


def _order(turns: Turns) -> list[int]:
    """Run everything, one after the other; return the jobs in their order."""
    return [turn.job for turn in iter(lambda: _run(turns), None)]


def test_the_highest_priority_runs_first_strictly() -> None:
    """Whenever it came; the others go on where they were."""
    turns = Turns()
    _open(turns, 1, "low", [10, 10, 10], priority=-1)
    _open(turns, 2, "middle", [10, 10])
    first = _run(turns)
    _open(turns, 3, "high", [4096, 4096], priority=7)
    assert first == Turn(2, 0, alone=False)
    assert _order(turns) == [3, 3, 2, 1, 1, 1]


def test_equal_priorities_share_by_tokens() -> None:
    """Who had fewer tokens is next, so that small micro-batches come more often than large ones."""
    turns = Turns()
    _open(turns, 1, "large", [300] * 3)
    _open(turns, 2, "small", [100] * 9)
    assert _order(turns) == [1, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 2]


def test_jobs_of_one_batch_follow_one_another() -> None:
    """So that the first of its shards is done as early as can be."""
    turns = Turns()
    _open(turns, 1, "a", [10] * 2)
    _open(turns, 2, "a", [10] * 2)
    _open(turns, 3, "b", [10] * 4)
    assert _order(turns) == [1, 3, 1, 3, 2, 3, 2, 3]


def test_a_newcomer_neither_waits_for_what_was_done_nor_is_paid_for_it() -> None:
    """It begins with as many tokens as the least of the others have by then."""
    turns = Turns()
    _open(turns, 1, "old", [100] * 50)
    for _ in range(40):
        _run(turns)
    _open(turns, 2, "new", [100] * 3)
    assert [turn.job for _ in range(6) if (turn := _run(turns))] == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("others", [1, 2, 7])
def test_a_stream_of_newcomers_starves_nobody(others: int) -> None:
    """As many as there may be at once always wait, and the old batch has its part of the turns."""
    turns = Turns()
    _open(turns, 0, "old", [400] * 200)
    numbers, waiting, had = itertools.count(1), 0, 0
    for _ in range(400):
        while waiting < others:
            number = next(numbers)
            _open(turns, number, f"new {number}", [100])
            waiting += 1
        turn = _run(turns)
        assert turn is not None
        had += turn.job == 0
        waiting -= turn.job != 0
    assert had >= 400 // (2 * others + 1)


def test_a_changed_priority_counts_for_what_is_left() -> None:
    """For all jobs of the batch, whichever of them told of it, and by what a later job brings."""
    turns = Turns()
    _open(turns, 1, "a", [10] * 2)
    _open(turns, 2, "a", [10] * 2)
    _open(turns, 3, "b", [10] * 2)
    assert _run(turns) == Turn(1, 0, alone=False)
    turns.prioritise(2, 5)
    assert [turn.job for _ in range(2) if (turn := _run(turns))] == [1, 2]
    _open(turns, 4, "a", [], priority=-5)
    assert _order(turns) == [3, 3, 2]
    turns.prioritise(1, 5)  # over by then
    assert turns.next() is None


def test_raised_it_is_no_longer_behind_for_what_it_had() -> None:
    """Among those of its new priority it is a newcomer."""
    turns = Turns()
    _open(turns, 1, "a", [10] * 30)
    for _ in range(20):
        _run(turns)
    _open(turns, 2, "b", [10] * 3, priority=1)
    turns.prioritise(1, 1)
    assert [turn.job for _ in range(4) if (turn := _run(turns))] == [1, 2, 1, 2]


def test_what_has_nothing_to_run_is_encoded_first() -> None:
    """Of equals; a higher priority comes before that, and what runs alone before everything."""
    turns = Turns()
    _open(turns, 1, "a", [10] * 2)
    turns.open(2, "a", 0)
    turns.open(3, "b", 0)
    turns.open(4, "c", 5)
    turns.open(5, "", 0, alone=True)
    assert list(iter(turns.encode, None)) == [5, 4, 3, 2]


def test_what_runs_alone_waits_for_what_runs_and_for_nothing_else() -> None:
    """It comes before what is queued, whatever its priority; encoding is not its business."""
    turns = Turns()
    _open(turns, 1, "a", [10] * 4, priority=9)
    running = turns.next()
    assert running is not None
    turns.open(2, "", 0, alone=True)
    turns.open(3, "b", 0)
    assert [turns.encode(), turns.encode()] == [2, 3]
    turns.plan(2, [(0, 1), (1, 1)])
    assert turns.next() is None
    turns.end(running)
    for group in (0, 1):
        alone = turns.next()
        assert alone == Turn(2, group, alone=True)
        assert turns.next() is None
        assert turns.end(alone) == (group == 1)
    turns.plan(3, [(0, 10)])
    assert _order(turns) == [1, 1, 1, 3]


def test_a_cancelled_job_begins_nothing_more() -> None:
    """It is over at once, or with what is under way of it, encoding included; and is told once."""
    turns = Turns()
    turns.open(1, "a", 0)
    assert turns.cancel(1)
    assert not turns.cancel(1)
    turns.open(2, "a", 0)
    assert turns.encode() == 2
    assert not turns.cancel(2)
    assert turns.cancelled(2)
    assert turns.plan(2, [(0, 10)])
    _open(turns, 3, "a", [10] * 3)
    running = turns.next()
    assert running is not None
    assert not turns.cancel(3)
    assert turns.next() is None
    assert turns.end(running)


def test_a_job_without_groups_is_over_when_it_is_planned() -> None:
    """As one that is only encoded."""
    turns = Turns()
    turns.open(1, "a", 0)
    assert turns.encode() == 1
    assert turns.plan(1, [])
    assert turns.next() is None


@given(st.lists(SIZES, min_size=1, max_size=6), SIZES.filter(bool))
def test_a_newcomer_waits_for_about_one_micro_batch_of_each_other(
    others: list[list[int]], sizes: list[int]
) -> None:
    """However much they have had, and however much is left of them."""
    turns = Turns()
    for number, other in enumerate(others):
        _open(turns, number, f"batch {number}", [*other, *other])
    for _ in range(sum(map(len, others))):
        _run(turns)
    _open(turns, 99, "new", sizes)
    before = dict.fromkeys(range(len(others)), 0)
    while (turn := _run(turns)) is not None and turn.job != 99:
        before[turn.job] += (2 * others[turn.job])[turn.group]
    largest = max(map(max, filter(None, others)), default=0)
    assert all(tokens <= 2 * largest for tokens in before.values())


@given(st.lists(st.lists(TOKENS, min_size=3, max_size=12), min_size=2, max_size=5))
def test_those_that_have_work_never_differ_by_more_than_a_micro_batch(batches: list[list[int]]) -> None:
    """In tokens, as long as each has something left."""
    turns = Turns()
    for number, sizes in enumerate(batches):
        _open(turns, number, f"batch {number}", sizes)
    had, left = [0] * len(batches), [len(sizes) for sizes in batches]
    while all(left):
        turn = _run(turns)
        assert turn is not None
        had[turn.job] += batches[turn.job][turn.group]
        left[turn.job] -= 1
        assert max(had) - min(had) <= max(map(max, batches))


class Machine(RuleBasedStateMachine):
    """Jobs come, are encoded, run on several streams, are cancelled and change, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()
        self.numbers = itertools.count()
        self.batch: dict[int, str] = {}
        self.priority: dict[str, int] = {}
        self.alone: set[int] = set()
        self.encoding: set[int] = set()
        self.left: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self.running: list[Turn] = []
        self.over: set[int] = set()

    def _told(self, job: int, *, over: bool) -> None:
        ended = job in self.cancelled or (job in self.left and not self.left[job])
        busy = job in self.encoding or any(turn.job == job for turn in self.running)
        assert over == (ended and not busy and job not in self.over)
        if over:
            self.over.add(job)

    @rule(batch=st.sampled_from("abc"), priority=st.integers(-1, 1), alone=st.booleans())
    def come(self, batch: str, priority: int, alone: bool) -> None:  # noqa: FBT001  (hypothesis calls it)
        """Open a job; one that runs alone is nobody's."""
        number = next(self.numbers)
        self.batch[number] = f"alone {number}" if alone else batch
        self.priority[self.batch[number]] = priority
        if alone:
            self.alone.add(number)
        self.turns.open(number, "" if alone else batch, priority, alone=alone)

    @rule()
    def encode(self) -> None:
        """Take one to encode, if there is one."""
        job = self.turns.encode()
        waiting = self.batch.keys() - self.encoding - self.left.keys() - self.over
        assert (job is None) == (not waiting)
        if job is not None:
            assert job in waiting
            self.encoding.add(job)

    @precondition(lambda self: self.encoding)
    @rule(data=st.data(), sizes=SIZES)
    def plan(self, data: st.DataObject, sizes: list[int]) -> None:
        """End an encoding."""
        job = data.draw(st.sampled_from(sorted(self.encoding)))
        self.encoding.remove(job)
        self.left[job] = [] if job in self.cancelled else list(range(len(sizes)))
        self._told(job, over=self.turns.plan(job, enumerate(sizes)))

    @rule()
    def begin(self) -> None:
        """Begin what is next."""
        turn = self.turns.next()
        ready = {job for job, left in self.left.items() if left}
        if turn is None:
            assert (
                not ready or any(one.alone for one in self.running) or (self.running and ready & self.alone)
            )
            return
        assert turn.group == self.left[turn.job].pop(0)
        assert turn.alone == (turn.job in self.alone)
        if turn.alone:
            assert not self.running
        else:
            assert not ready & self.alone
            best = max(self.priority[self.batch[job]] for job in ready)
            assert self.priority[self.batch[turn.job]] == best
        self.running.append(turn)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """End one that runs."""
        turn = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self._told(turn.job, over=self.turns.end(turn))

    @precondition(lambda self: self.batch)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel any, over or not."""
        job = data.draw(st.sampled_from(sorted(self.batch)))
        if job not in self.over:
            self.cancelled.add(job)
            if job in self.left:
                self.left[job] = []
        self._told(job, over=self.turns.cancel(job))

    @precondition(lambda self: self.batch)
    @rule(data=st.data(), priority=st.integers(-1, 1))
    def prioritise(self, data: st.DataObject, priority: int) -> None:
        """Change a batch by one of its jobs."""
        job = data.draw(st.sampled_from(sorted(self.batch)))
        if job not in self.over:
            self.priority[self.batch[job]] = priority
        self.turns.prioritise(job, priority)

    @invariant()
    def alone_is_alone(self) -> None:
        """Nothing runs beside what runs alone."""
        assert len(self.running) == 1 or not any(turn.alone for turn in self.running)


TestTurns = Machine.TestCase


@pytest.mark.parametrize("streams", [1, 3])
def test_everything_runs_once_in_the_order_of_its_job(streams: int) -> None:
    """On any number of streams."""
    turns = Turns()
    sizes = {number: [10 + number] * (number % 5) for number in range(12)}
    for number, groups in sizes.items():
        _open(turns, number, f"batch {number % 4}", groups, priority=number % 3)
    ran: list[tuple[int, int]] = []
    running: list[Turn] = []
    while True:
        while len(running) < streams and (turn := turns.next()) is not None:
            running.append(turn)
            ran.append(turn[:2])
        if not running:
            break
        turns.end(running.pop(0))
    assert sorted(ran) == [
        (number, group) for number, groups in sizes.items() for group in range(len(groups))
    ]
    for number, groups in sizes.items():
        assert [group for job, group in ran if job == number] == list(range(len(groups)))
