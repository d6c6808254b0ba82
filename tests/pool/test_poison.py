"""The decisions of the bisection, without any process: who is blamed, and at what cost."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from embatch.engine.protocol import Shape
from embatch.errors import Code, Reason
from embatch.pool.poison import Blame, Fault, Group, Inquiry, suspects

SPOILING = [Fault.DIED, Fault.HUNG, Fault.RAISED]
SHAPE = Shape(64, 16)


class Engine:
    """What happens to groups of rows, some of which are bad, and how many processes that takes."""

    def __init__(self, bad: dict[int, Fault]) -> None:
        self.bad = bad
        self.starts = 0
        self.passed: set[int] = set()
        self.shapes: set[Shape | None] = set()
        self.blamed: dict[int, Fault] = {}

    def run(self, groups: tuple[Group, ...]) -> None:
        """Drive an inquiry to its end."""
        inquiry = Inquiry(groups)
        while (trial := inquiry.next()) is not None:
            self.starts += trial.new_process
            self.shapes.add(trial.group.shape)
            faults = [self.bad[row] for row in trial.group.rows if row in self.bad]
            # What kills the process hides what is merely wrong.
            fault = min(faults, key=lambda one: not one.spoils, default=None)
            if fault is None:
                self.passed |= set(trial.group.rows)
            blame = inquiry.report(fault)
            if blame is not None:
                assert blame.row not in self.blamed
                self.blamed[blame.row] = blame.fault


@given(
    size=st.integers(1, 300),
    bad=st.dictionaries(st.integers(0, 299), st.sampled_from([*SPOILING, Fault.WRONG, Fault.REFUSED])),
)
def test_exactly_the_bad_rows_are_blamed(size: int, bad: dict[int, Fault]) -> None:
    """Whatever is among the suspects: the bad are blamed, each for its own fault, all others pass."""
    bad = {row: fault for row, fault in bad.items() if row < size}
    engine = Engine(bad)
    engine.run((Group(tuple(range(size)), SHAPE),))
    assert engine.blamed == bad
    assert engine.passed == set(range(size)) - set(bad)
    assert engine.shapes == {SHAPE}


@given(st.data())
def test_one_poison_costs_few_processes(data: st.DataObject) -> None:
    """At most 2 log2(B) + 2 starts, with the one that replaces the process that the poison killed first."""
    size = data.draw(st.integers(1, 2000))
    row = data.draw(st.integers(0, size - 1))
    fault = data.draw(st.sampled_from(SPOILING))
    whole = Group(tuple(range(size)), SHAPE)
    for groups in ((whole,), suspects([whole])):
        engine = Engine({row: fault})
        engine.run(groups)
        assert engine.blamed == {row: fault}
        assert 1 + engine.starts <= 2 * math.ceil(math.log2(size)) + 2


@given(size=st.integers(1, 200), fault=st.sampled_from([Fault.WRONG, Fault.REFUSED]), at=st.integers(0, 199))
def test_wrong_numbers_cost_one_process_in_all(size: int, fault: Fault, at: int) -> None:
    """A process that answers wrongly is as good as before."""
    engine = Engine({at % size: fault})
    engine.run((Group(tuple(range(size)), SHAPE),))
    assert engine.starts == 1


@given(st.integers(1, 64), st.lists(st.booleans(), max_size=200))
def test_kills_from_outside_blame_nobody(size: int, kills: list[bool]) -> None:
    """Somebody kills processes at random, never three in a row: every row passes in the end."""
    inquiry = Inquiry([Group(tuple(range(size)), SHAPE)])
    passed: list[int] = []
    in_a_row = 0
    while (trial := inquiry.next()) is not None:
        killed = bool(kills) and kills.pop() and in_a_row < 2
        in_a_row = in_a_row + 1 if killed else 0
        if not killed:
            passed += trial.group.rows
        assert inquiry.report(Fault.KILLED if killed else None) is None
    assert sorted(passed) == list(range(size))


def test_a_row_that_is_killed_whenever_it_is_alone_is_blamed() -> None:
    """As by a kernel that is out of memory: three times alone is proof enough."""
    engine = Engine({5: Fault.KILLED})
    engine.run((Group(tuple(range(8)), SHAPE),))
    assert engine.blamed == {5: Fault.KILLED}


def test_a_row_that_fails_in_company_only_is_innocent() -> None:
    """Two rows that kill the process together and never alone are both let go."""
    inquiry = Inquiry([Group((0, 1, 2, 3), SHAPE)])
    passed: set[int] = set()
    while (trial := inquiry.next()) is not None:
        fatal = {1, 2} <= set(trial.group.rows)
        passed |= set() if fatal else set(trial.group.rows)
        assert inquiry.report(Fault.DIED if fatal else None) is None
    assert passed == {0, 1, 2, 3}


def test_a_row_that_fails_in_a_used_process_is_tried_again() -> None:
    """The last half ran where another one had run before: that is no proof."""
    inquiry = Inquiry([Group((0, 1), SHAPE)])
    inquiry.next()
    assert inquiry.report(Fault.DIED) is None
    inquiry.next()
    assert inquiry.report(None) is None
    trial = inquiry.next()
    assert trial is not None
    assert (trial.group.rows, trial.new_process) == ((1,), False)
    assert inquiry.report(Fault.DIED) is None
    trial = inquiry.next()
    assert trial is not None
    assert (trial.group.rows, trial.new_process) == ((1,), True)
    assert inquiry.report(Fault.DIED) == Blame(1, Fault.DIED)
    assert inquiry.next() is None


def test_a_trial_that_never_began_is_not_counted() -> None:
    """The process was gone before: a new one tries the same group."""
    inquiry = Inquiry([Group((3,), SHAPE)])
    first = inquiry.next()
    inquiry.lost()
    assert inquiry.next() == first


def test_groups_that_ran_together_are_first_tried_whole() -> None:
    """One that ran alone is halved at once, a single row cannot be."""
    one, two = Group((0, 1, 2), SHAPE), Group((3,), SHAPE)
    assert suspects([one]) == (Group((0,), SHAPE), Group((1, 2), SHAPE))
    assert suspects([two]) == (two,)
    assert suspects([one, two]) == (one, two)
    assert suspects([]) == ()


def test_every_fault_has_its_words() -> None:
    """Codes and reasons are those of the documentation; only a refusal speaks with the engine's own words."""
    errors = {fault: Blame(0, fault).error("limit of 10 tokens") for fault in Fault}
    assert {fault: error.reason for fault, error in errors.items()} == {
        Fault.DIED: Reason.ENGINE_CRASH,
        Fault.KILLED: Reason.ENGINE_CRASH,
        Fault.RAISED: Reason.ENGINE_CRASH,
        Fault.HUNG: Reason.ENGINE_HANG,
        Fault.WRONG: Reason.ENGINE_BAD_OUTPUT,
        Fault.REFUSED: Reason.BAD_FIELD,
    }
    assert errors[Fault.REFUSED].code is Code.INVALID_ARGUMENT
    assert {error.code for fault, error in errors.items() if fault is not Fault.REFUSED} == {Code.INTERNAL}
    assert [fault for fault, error in errors.items() if "10 tokens" in error.message] == [Fault.REFUSED]
